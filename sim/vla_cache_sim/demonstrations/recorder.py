"""Many labelled episodes, recorded in several processes, stopped and resumed at will."""

import signal
import zlib
from collections import Counter
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from vla_cache_ros.core.errors import ConfigError, SimulatorError
from vla_cache_ros.dataset import DatasetSpec, DatasetWriter, DemonstrationDataset, EpisodeInfo
from vla_cache_sim.demonstrations.drivers import Driver, ExpertDriver, NoiseConfig
from vla_cache_sim.demonstrations.rollout import rollout_episode

BLOCK = 5
"""Episodes of one task in a row: a process holds one simulator (about 1 GB), and building the
next task's takes seconds."""


@dataclass(frozen=True)
class RecordingConfig:
    """What to record.

    Attributes:
        output: Dataset folder, created or gone on with.
        tasks: (suite, task index) pairs, recorded in turn so that a partial set is balanced.
        episodes_per_task: Episodes wanted of each, those already in the folder included.
        seed: Seeds starts and noise; a recording with one seed resumes where it was stopped.
        processes: Simulators running at once, each in its own process.
        source: Name under which the episodes are stored; counts only episodes of this name.
        keep_failures: Store episodes that end without success too (their labels are valid).
        max_failures: Attempts in a row without a stored episode after which a task is given up.
        spread: Scale of the random starts' deviations.
        noise: Noise on the executed actions when the expert drives.
        spec: What each episode stores.
    """

    output: Path
    tasks: tuple[tuple[str, int], ...]
    episodes_per_task: int = 45
    seed: int = 0
    processes: int = 1
    source: str = 'expert'
    keep_failures: bool = False
    max_failures: int = 15
    spread: float = 1.0
    noise: NoiseConfig = field(default_factory=NoiseConfig)
    spec: DatasetSpec = field(default_factory=DatasetSpec)

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            ConfigError: A value is out of its range.
        """
        if not self.tasks or len(set(self.tasks)) != len(self.tasks):
            raise ConfigError(f'name each task once and at least one; got {self.tasks}.')
        for name in ('episodes_per_task', 'processes', 'max_failures'):
            if getattr(self, name) < 1:
                raise ConfigError(f'{name} is {getattr(self, name)}; it must be at least 1.')


@dataclass(frozen=True)
class Attempt:
    """One numbered start of one task: everything that its episode depends on."""

    suite: str
    task: int
    number: int
    seed: int


@dataclass(frozen=True)
class Outcome:
    """What became of an attempt.

    Attributes:
        attempt: The attempt.
        success: Whether the task was accomplished.
        stored: Whether the episode is in the dataset.
        control_steps: Its length.
    """

    attempt: Attempt
    success: bool
    stored: bool
    control_steps: int


@dataclass
class Tally:
    """Counts of one task over a recording."""

    stored: int = 0
    attempts: int = 0
    successes: int = 0
    failures_in_a_row: int = 0


@dataclass(frozen=True)
class RecordingResult:
    """Counts per (suite, task) and how the recording ended."""

    tallies: dict[tuple[str, int], Tally]
    interrupted: bool = False

    def given_up(self, config: RecordingConfig) -> list[tuple[str, int]]:
        """Tasks that failed too often in a row."""
        return [
            task
            for task, tally in self.tallies.items()
            if tally.failures_in_a_row >= config.max_failures
        ]


EnvFactory = Callable[[str, int, int], tuple[Any, Any]]
"""(suite, task, image size) -> (environment, function that makes its expert after a start)."""


def libero_factory(suite: str, task: int, image_size_px: int) -> tuple[Any, Any]:
    """Build a LIBERO environment; its expert is made after the first start."""
    from vla_cache_sim.experts import make_expert
    from vla_cache_sim.libero import make_env

    return make_env(suite, task, image_size_px=image_size_px), make_expert


def record_demonstrations(
    config: RecordingConfig,
    driver_factory: Callable[[], Driver] | None = None,
    report: Callable[[Outcome, dict[tuple[str, int], Tally]], None] | None = None,
    env_factory: EnvFactory = libero_factory,
) -> RecordingResult:
    """Record until every task has its episodes; what is in the folder already counts.

    A KeyboardInterrupt lets the running episodes finish and be stored, and is reported in the
    result; a second one ends the processes. Nothing is ever stored by halves.

    Args:
        config: What to record.
        driver_factory: Makes each process's driver (picklable); None: the expert under
            `config.noise`.
        report: Called after every attempt.
        env_factory: Makes each process's environments (picklable).

    Returns:
        The counts.

    Raises:
        DatasetError: The folder holds another kind of dataset.
        SimulatorError: A process died.
    """
    DatasetWriter(config.output, config.spec)  # creates the folder, or refuses a foreign one
    tallies, numbers = _resume(config)
    if driver_factory is None:
        driver_factory = _ExpertFactory(config.noise)
    interrupted = False
    in_flight: Counter[tuple[str, int]] = Counter()
    pool = ProcessPoolExecutor(
        config.processes,
        mp_context=get_context('spawn'),
        initializer=_start_worker,
        initargs=(config, driver_factory, env_factory),
    )
    pending: set[Future[Outcome]] = set()
    try:
        while True:
            while len(pending) < config.processes:
                task = _next_task(config, tallies, in_flight)
                if task is None:
                    break
                in_flight[task] += 1
                pending.add(pool.submit(_record_one, _attempt(config, task, numbers[task])))
                numbers[task] += 1
            if not pending:
                break
            done, pending = wait(pending, return_when=FIRST_COMPLETED)
            for future in done:
                outcome = future.result()
                in_flight[outcome.attempt.suite, outcome.attempt.task] -= 1
                _count(tallies, outcome)
                if report is not None:
                    report(outcome, tallies)
    except KeyboardInterrupt:
        interrupted = True
    except BrokenProcessPool as error:
        raise SimulatorError(
            'a recording process died (out of memory, or a crash of the renderer); the episodes '
            'stored so far are whole. Run the same command again, with fewer processes if memory '
            'is short.'
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
    for future in pending:  # not empty after an interrupt alone
        if future.done() and not future.cancelled() and future.exception() is None:
            _count(tallies, future.result())
    return RecordingResult(tallies, interrupted)


def count_stored(config: RecordingConfig) -> dict[tuple[str, int], int]:
    """Episodes of each task that the folder holds already; none where there is no folder."""
    if not config.output.exists():
        return dict.fromkeys(config.tasks, 0)
    tallies, _ = _resume(config)
    return {task: tally.stored for task, tally in tallies.items()}


def _resume(
    config: RecordingConfig,
) -> tuple[dict[tuple[str, int], Tally], dict[tuple[str, int], int]]:
    """Episodes stored so far, and the number of the next attempt, per task."""
    tallies = {task: Tally() for task in config.tasks}
    numbers = dict.fromkeys(config.tasks, 0)
    for entry in DemonstrationDataset.open(config.output).select(sources=[config.source]):
        task = (entry.info.suite, entry.info.task)
        if task in tallies:
            tallies[task].stored += 1
            numbers[task] = max(numbers[task], entry.info.attempt + 1)
    return tallies, numbers


def _next_task(
    config: RecordingConfig,
    tallies: dict[tuple[str, int], Tally],
    in_flight: Counter[tuple[str, int]],
) -> tuple[str, int] | None:
    """The task that lacks most blocks, or None when all have, or are getting, their episodes."""
    wanting = [
        ((tally.stored + in_flight[task]) // BLOCK, order, task)
        for order, (task, tally) in enumerate(tallies.items())
        if tally.stored + in_flight[task] < config.episodes_per_task
        and tally.failures_in_a_row < config.max_failures
    ]
    return min(wanting)[2] if wanting else None


def _attempt(config: RecordingConfig, task: tuple[str, int], number: int) -> Attempt:
    suite, index = task
    entropy = [config.seed, zlib.crc32(f'{config.source}/{suite}'.encode()), index, number]
    seed = int(np.random.SeedSequence(entropy).generate_state(1)[0])
    return Attempt(suite, index, number, seed)


def _count(tallies: dict[tuple[str, int], Tally], outcome: Outcome) -> None:
    tally = tallies[outcome.attempt.suite, outcome.attempt.task]
    tally.attempts += 1
    tally.successes += outcome.success
    tally.stored += outcome.stored
    tally.failures_in_a_row = 0 if outcome.stored else tally.failures_in_a_row + 1


# Inside a recording process


@dataclass(frozen=True)
class _ExpertFactory:
    noise: NoiseConfig

    def __call__(self) -> Driver:
        return ExpertDriver(self.noise)


class _Worker:
    """One process's simulator and driver."""

    def __init__(
        self,
        config: RecordingConfig,
        driver_factory: Callable[[], Driver],
        env_factory: EnvFactory,
    ) -> None:
        self.config = config
        self.env_factory = env_factory
        self.driver = driver_factory()
        self.writer = DatasetWriter(config.output, config.spec)
        self.task: tuple[str, int] | None = None
        self.env: Any = None

    def record(self, attempt: Attempt) -> Outcome:
        config = self.config
        task = (attempt.suite, attempt.task)
        if task != self.task:
            if self.env is not None:
                self.env.close()
            self.env, self.make_expert = self.env_factory(*task, config.spec.image_size_px)
            self.task = task
        env = self.env
        env.start(seed=attempt.seed, options={'init_state': 'random', 'spread': config.spread})
        info = EpisodeInfo(
            env.instruction,
            suite=attempt.suite,
            task=attempt.task,
            source=config.source,
            seed=attempt.seed,
            attempt=attempt.number,
        )
        rng = np.random.default_rng(attempt.seed)
        episode = rollout_episode(env, self.make_expert(env), self.driver, rng, config.spec, info)
        stored = episode.info.success or config.keep_failures
        if stored:
            self.writer.append(episode)
        return Outcome(attempt, episode.info.success, stored, episode.info.control_steps)


_worker: _Worker | None = None


def _start_worker(*args: Any) -> None:
    global _worker  # noqa: PLW0603 - a pool hands its processes no other place for their state
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what an interrupt means
    _worker = _Worker(*args)


def _record_one(attempt: Attempt) -> Outcome:
    assert _worker is not None
    return _worker.record(attempt)
