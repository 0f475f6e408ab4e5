"""Record labelled episodes: the expert labels every state, whoever drives the robot there.

Behaviour cloning from clean demonstrations alone teaches no recovery: the policy never saw the
states into which its own errors lead. So an episode starts from a random state, what the robot
executes is the expert's action plus noise, and what is stored is the expert's clean action there:

    a_t* = expert(s_t)             label
    a_t  = a_t* + n_t              executed, n_t = rho n_{t-1} + sqrt(1 - rho^2) sigma e_t
    s_{t+1} = simulator(s_t, a_t)

With a policy as the driver, a_t = policy(o_t) for random stretches, this is DAgger (Ross et al.
2011); the labels stay the expert's.
"""

import signal
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from functools import cached_property
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from vla_cache_ros.core.errors import ConfigError, SimulatorError
from vla_cache_ros.core.protocols import Policy
from vla_cache_ros.core.types import Observation, Proprioception
from vla_cache_ros.dataset import (
    RELEVANCE_BITS,
    DatasetSpec,
    DatasetWriter,
    DemonstrationDataset,
    Episode,
    EpisodeInfo,
)

Action = NDArray[np.float32]

BLOCK = 5
"""Episodes of one task in a row: a process holds one simulator (about 1 GB), and building the
next task's takes seconds."""


@dataclass(frozen=True)
class NoiseConfig:
    """Noise on the executed actions, in action units (translation 1 = 0.05 m of set-point).

    Attributes:
        max_std: Each episode draws its standard deviation from [0, max_std].
        rotation_scale: Rotation noise relative to translation noise.
        correlation: rho, correlation from one control step to the next.
        burst_probability: Chance per control step that a perturbation burst begins.
        burst_steps: Shortest and longest burst, control steps.
        burst_size: Smallest and largest constant push of a burst.
        slip_probability: Chance that a burst also turns the gripper's command round.
    """

    max_std: float = 0.35
    rotation_scale: float = 0.3
    correlation: float = 0.8
    burst_probability: float = 0.012
    burst_steps: tuple[int, int] = (4, 12)
    burst_size: tuple[float, float] = (0.3, 1.0)
    slip_probability: float = 0.1


class ActionNoise:
    """Temporally correlated noise with occasional bursts; new statistics for every episode."""

    def __init__(self, config: NoiseConfig, rng: np.random.Generator) -> None:
        """Draw the episode's standard deviation."""
        self.config = config
        self._rng = rng
        std = rng.uniform(0, config.max_std)
        self._std = std * np.array([1.0] * 3 + [config.rotation_scale] * 3)
        self._noise = self._std * rng.standard_normal(6)
        self._burst = np.zeros(6)
        self._burst_steps_left = 0
        self._slips = False

    def apply(self, action: Action) -> Action:
        """The action to execute in place of `action`, clipped to [-1, 1]."""
        config, rng = self.config, self._rng
        rho = config.correlation
        fresh = self._std * rng.standard_normal(6)
        self._noise = rho * self._noise + np.sqrt(1 - rho**2) * fresh
        if self._burst_steps_left == 0 and rng.random() < config.burst_probability:
            self._burst_steps_left = int(rng.integers(*config.burst_steps, endpoint=True))
            self._burst = rng.uniform(*config.burst_size) * _random_direction(rng)
            self._burst[3:] *= config.rotation_scale
            self._slips = bool(rng.random() < config.slip_probability)
        executed = action.astype(np.float64)
        executed[:6] += self._noise
        if self._burst_steps_left > 0:
            self._burst_steps_left -= 1
            executed[:6] += self._burst
            executed[6] *= -1 if self._slips else 1
        return np.clip(executed, -1, 1).astype(np.float32)


class Driver(Protocol):
    """Who moves the robot."""

    def begin(self, rng: np.random.Generator) -> None:
        """Forget the last episode."""
        ...

    def drive(self, label: Action, observe: Callable[[], Observation]) -> tuple[Action, bool]:
        """Choose the action to execute in this control step.

        Args:
            label: The expert's action in this state.
            observe: Renders this state (once, however often it is called).

        Returns:
            The action [7], and whether it is a policy's.
        """
        ...


class ExpertDriver:
    """The expert under noise."""

    def __init__(self, noise: NoiseConfig | None = None) -> None:
        """Keep the configuration; `begin` draws from it."""
        self.noise = noise or NoiseConfig()

    def begin(self, rng: np.random.Generator) -> None:
        """Draw the episode's noise."""
        self._action_noise = ActionNoise(self.noise, rng)

    def drive(self, label: Action, observe: Callable[[], Observation]) -> tuple[Action, bool]:
        """The expert's action plus noise."""
        del observe
        return self._action_noise.apply(label), False


class DaggerDriver:
    """A policy drives for random stretches, the expert (under noise) between them.

    The last stretch ends where the expert can still finish, so that most episodes succeed.
    """

    def __init__(
        self,
        policy: Policy,
        replan_steps: int = 4,
        policy_stretch: tuple[int, int] = (8, 60),
        expert_stretch: tuple[int, int] = (4, 40),
        policy_share_of_steps: int = 160,
        noise: NoiseConfig | None = None,
    ) -> None:
        """Set the mixture.

        Args:
            policy: Whose states are to be visited.
            replan_steps: Control steps between two of its chunks; even numbers reuse the frames
                that are rendered for the dataset anyway.
            policy_stretch: Shortest and longest stretch of the policy, control steps.
            expert_stretch: The same for the expert.
            policy_share_of_steps: Control step after which the expert drives for good.
            noise: Noise while the expert drives.

        Raises:
            ConfigError: The policy's chunk is shorter than `replan_steps`.
        """
        if not 1 <= replan_steps <= policy.chunk_size:
            raise ConfigError(
                f'replan_steps is {replan_steps}; valid: 1..{policy.chunk_size}, the chunk size.'
            )
        self.policy = policy
        self.replan_steps = replan_steps
        self.policy_stretch = policy_stretch
        self.expert_stretch = expert_stretch
        self.policy_share_of_steps = policy_share_of_steps
        self.expert = ExpertDriver(noise)

    def begin(self, rng: np.random.Generator) -> None:
        """Draw who drives first."""
        self._rng = rng
        self._step = -1
        self._policy_drives = bool(rng.random() < 0.5)
        self._stretch_left = self._draw_stretch()
        self._queue: list[Action] = []
        self.policy.reset('episode')
        self.expert.begin(rng)

    def drive(self, label: Action, observe: Callable[[], Observation]) -> tuple[Action, bool]:
        """The action of whoever drives in this stretch."""
        self._step += 1
        if self._stretch_left == 0:
            self._policy_drives = not self._policy_drives
            self._stretch_left = self._draw_stretch()
            self._queue = []  # a chunk computed before the expert's stretch is stale
        self._stretch_left -= 1
        if not self._policy_drives or self._step >= self.policy_share_of_steps:
            return self.expert.drive(label, observe)
        if not self._queue:
            chunk = self.policy.act(observe())
            self._queue = list(chunk.actions[: self.replan_steps])
        return np.clip(self._queue.pop(0), -1, 1).astype(np.float32), True

    def _draw_stretch(self) -> int:
        bounds = self.policy_stretch if self._policy_drives else self.expert_stretch
        # Even lengths keep the policy's chunks on the control steps that are rendered anyway.
        return max(2, int(self._rng.integers(*bounds, endpoint=True)) // 2 * 2)


def rollout_episode(
    env: Any,
    expert: Any,
    driver: Driver,
    rng: np.random.Generator,
    spec: DatasetSpec,
    info: EpisodeInfo,
) -> Episode:
    """Record one episode from the environment's present state until success or its step limit.

    Args:
        env: A started `LiberoEnv`.
        expert: Its expert, reset.
        driver: Who moves the robot.
        rng: Source of the driver's randomness.
        spec: What to store.
        info: Where the episode comes from; `success` and `control_steps` are filled in here.

    Returns:
        The episode, one frame every `spec.control_steps_per_frame` control steps.
    """
    labels: list[Action] = []
    frames: list[_Frame] = []
    driver.begin(rng)
    done = success = False
    while not done:
        label = expert.act()
        view = _View(env)
        action, policy_drives = driver.drive(label, view.observation)
        if len(labels) % spec.control_steps_per_frame == 0:
            frames.append(_Frame.capture(view, action, policy_drives, spec))
        labels.append(label)
        _, success, truncated, _ = env.advance(action)
        done = success or truncated
    return _assemble(frames, np.stack(labels), spec, info, bool(success))


class _View:
    """The present control step, rendered when somebody looks and only once."""

    def __init__(self, env: Any) -> None:
        self.env = env

    @cached_property
    def values(self) -> dict[str, NDArray[Any]]:
        return self.env.observe()

    def observation(self) -> Observation:
        values = self.values
        return Observation(
            images={camera: values[camera] for camera in self.env.cameras},
            proprioception=Proprioception(
                values['ee_position_m'], values['ee_quaternion_xyzw'], values['gripper_position_m']
            ),
            instruction=self.env.instruction,
        )


@dataclass(frozen=True)
class _Frame:
    """One stored frame, without the labels of later control steps."""

    values: dict[str, NDArray[Any]]
    executed_action: Action
    policy_drives: bool
    target_position_m: NDArray[np.float64]
    goal_position_m: NDArray[np.float64]
    relevance: NDArray[np.uint8]

    @classmethod
    def capture(
        cls, view: _View, action: Action, policy_drives: bool, spec: DatasetSpec
    ) -> '_Frame':
        scene = view.env.scene
        rows = spec.relevance_rows
        relevance = np.zeros((len(spec.cameras), rows, rows), dtype=np.uint8)
        for grid, camera in zip(relevance, spec.cameras, strict=True):
            masks = scene.relevance_masks(camera, rows, rows)
            for name, bit in RELEVANCE_BITS.items():
                grid |= np.where(getattr(masks, name), bit, 0).astype(np.uint8)
        return cls(
            view.values,
            action,
            policy_drives,
            scene.target_position_m(),
            scene.goal_position_m(),
            relevance,
        )


def _assemble(
    frames: list[_Frame], labels: Action, spec: DatasetSpec, info: EpisodeInfo, success: bool
) -> Episode:
    """Stack the frames; each gets the labels [T, 7] of its own and the next control steps."""
    starts = np.arange(len(frames)) * spec.control_steps_per_frame
    steps = starts[:, None] + np.arange(spec.chunk_size)
    proprioception = ('ee_position_m', 'ee_quaternion_xyzw', 'gripper_position_m')

    def stack(values: Iterator[Any]) -> NDArray[np.float32]:
        return np.stack(list(values)).astype(np.float32)

    return Episode(
        images={c: np.stack([frame.values[c] for frame in frames]) for c in spec.cameras},
        state=stack(np.concatenate([f.values[name] for name in proprioception]) for f in frames),
        action=labels[starts],
        executed_action=stack(frame.executed_action for frame in frames),
        label_chunk=labels[np.minimum(steps, len(labels) - 1)],
        label_valid=steps < len(labels),
        target_position_m=stack(frame.target_position_m for frame in frames),
        goal_position_m=stack(frame.goal_position_m for frame in frames),
        relevance=np.stack([frame.relevance for frame in frames]),
        policy_drives=np.array([frame.policy_drives for frame in frames]),
        info=EpisodeInfo(
            instruction=info.instruction,
            suite=info.suite,
            task=info.task,
            source=info.source,
            seed=info.seed,
            attempt=info.attempt,
            success=success,
            control_steps=len(labels),
        ),
    )


# The recorder: many episodes, several processes.


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


def _random_direction(rng: np.random.Generator) -> NDArray[np.float64]:
    direction = rng.standard_normal(6)
    return direction / np.linalg.norm(direction[:3])
