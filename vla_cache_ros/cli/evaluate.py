"""`vla-cache eval`: success of a policy over tasks and initial states, without ROS.

    python -m vla_cache_ros.cli.evaluate --checkpoint models/weights \
        --tasks libero_object/0,libero_object/3 --init-states 0-9 --cache off

Episodes are shared among worker processes of one thread each. Every finished episode is appended
to a JSONL file and never run twice; a simulator's failure is reported as such, tried again by the
next run, and never counted against the policy.
"""

import contextlib
import multiprocessing
import os
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from vla_cache_ros.cli.checkpoints import CheckpointPolicies, PolicyFactory, PolicyOptions
from vla_cache_ros.cli.episodes import (
    Environment,
    EpisodeRow,
    EpisodeSpec,
    append_row,
    read_rows,
    run_episode,
)
from vla_cache_ros.cli.paired import compare, pair_rows
from vla_cache_ros.cli.progress import Progress
from vla_cache_ros.cli.statistics import Rate, wilson_rate
from vla_cache_ros.cli.tasks import TaskName, parse_indices, parse_tasks
from vla_cache_ros.core.errors import ConfigError, SimulatorError, VlaCacheError
from vla_cache_ros.core.protocols import Policy

EnvironmentFactory = Callable[[str, int, int], Environment]
"""Builds a simulator from (suite, task, image_size_px); picklable."""

MAX_SIMULATOR_ERRORS_IN_A_ROW = 3
"""After so many the simulator is taken for broken, and the evaluation stops."""


class EvaluationError(VlaCacheError):
    """An evaluation stopped; what it had finished is in its file."""


def anonymous(cache: str) -> str:
    """The fingerprint of policies that have none."""
    return ''


def make_libero(suite: str, task: int, image_size_px: int) -> Environment:
    """The default environment factory."""
    from vla_cache_sim.libero import make_env

    return make_env(suite, task, image_size_px=image_size_px)


def evaluate(
    policy_factory: PolicyFactory,
    episodes: Sequence[EpisodeSpec],
    workers: int,
    out_jsonl: Path | None = None,
    *,
    execute_steps: int | None = None,
    fingerprint: Callable[[str], str] = anonymous,
    make_env: EnvironmentFactory = make_libero,
    on_row: Callable[[EpisodeRow], None] | None = None,
    quiet: bool = False,
) -> list[EpisodeRow]:
    """Run the episodes that are not in the file yet.

    Args:
        policy_factory: Builds the policy of a preset; called once per preset and worker.
        episodes: What to run. They are run in order of task and initial state, so that a
            worker seldom rebuilds its simulator.
        workers: Worker processes, each with one torch thread; 0 runs in this process.
        out_jsonl: Rows are appended here; its rows of earlier runs are not run again.
        execute_steps: Actions executed of each chunk; None leaves it to the policy.
        fingerprint: Preset -> a name of weights and settings; a file whose rows of that preset
            bear another name is refused.
        make_env: Builds the simulator.
        on_row: Called with each new row.
        quiet: No progress bar.

    Returns:
        One row per episode, in the order of `episodes`.

    Raises:
        ConfigError: The file holds rows of other weights or settings.
        EvaluationError: The policy raised, or the simulator failed several times in a row.
    """
    suffix = '' if execute_steps is None else f'/execute{execute_steps}'
    names = {cache: fingerprint(cache) + suffix for cache in {spec.cache for spec in episodes}}
    done = _finished(out_jsonl, names)
    todo = sorted(
        {spec for spec in episodes if spec not in done},
        key=lambda spec: (spec.suite, spec.task, spec.init_state, spec.seed, spec.cache),
    )
    job = _Job(policy_factory, make_env, execute_steps)
    failures_in_a_row = 0
    with Progress('episodes', total=len(todo), quiet=quiet) as progress:
        for row in _run_all(job, todo, workers):
            row = replace(row, fingerprint=names[row.cache])
            done[row.spec] = row
            if out_jsonl is not None:
                append_row(out_jsonl, row)
            if on_row is not None:
                on_row(row)
            rate = _rate([done[spec] for spec in episodes if spec in done])
            progress.advance(note=f'success {rate.successes}/{rate.trials}')
            failures_in_a_row = 0 if row.judged else failures_in_a_row + 1
            if failures_in_a_row == MAX_SIMULATOR_ERRORS_IN_A_ROW:
                raise EvaluationError(
                    f'the simulator failed {failures_in_a_row} times in a row, last in '
                    f'{row.suite}/{row.task}, initial state {row.init_state}: {row.note}'
                )
    return [done[spec] for spec in episodes]


def _finished(
    out_jsonl: Path | None, fingerprints: Mapping[str, str]
) -> dict[EpisodeSpec, EpisodeRow]:
    """Read the rows that need not be run again."""
    if out_jsonl is None:
        return {}
    out_jsonl.parent.mkdir(parents=True, exist_ok=True)
    rows = [row for row in read_rows(out_jsonl) if row.cache in fingerprints]
    for row in rows:
        expected = fingerprints[row.cache]
        if row.fingerprint != expected:
            raise ConfigError(
                f'{out_jsonl} holds {row.cache} episodes of {row.fingerprint or "no name"}, this '
                f'is {expected or "no name"}: weights or settings changed; write to another file.'
            )
    return {row.spec: row for row in rows if row.judged}


@dataclass(frozen=True)
class _Job:
    """What a worker needs to know; travels to it once."""

    policy_factory: PolicyFactory
    make_env: EnvironmentFactory
    execute_steps: int | None


class _Runner:
    """Runs episodes one after another, keeping policies and the simulator between them."""

    def __init__(self, job: _Job) -> None:
        self._job = job
        self._policies: dict[str, Policy] = {}
        self._env: Environment | None = None
        self._env_key: tuple[str, int] | None = None

    def run(self, spec: EpisodeSpec) -> EpisodeRow:
        if spec.cache not in self._policies:
            self._policies[spec.cache] = self._job.policy_factory(spec.cache)
        policy = self._policies[spec.cache]
        try:
            env = self._environment(spec, policy.image_size_px)
            return run_episode(env, policy, spec, self._job.execute_steps)
        except SimulatorError as error:
            self.close()  # whatever state it is in, the next episode gets a new one
            return _failed(spec, str(error))

    def close(self) -> None:
        env, self._env, self._env_key = self._env, None, None
        if env is not None:
            env.close()

    def _environment(self, spec: EpisodeSpec, image_size_px: int) -> Environment:
        key = (spec.suite, image_size_px)
        if self._env is None or key != self._env_key:
            self.close()
            self._env = self._job.make_env(spec.suite, spec.task, image_size_px)
            self._env_key = key
        return self._env


def _failed(spec: EpisodeSpec, note: str) -> EpisodeRow:
    return EpisodeRow(
        spec.suite, spec.task, spec.init_state, spec.cache, spec.seed, 'simulator_error', note=note
    )


def _run_all(job: _Job, specs: Sequence[EpisodeSpec], workers: int) -> Iterator[EpisodeRow]:
    """Yield a row per spec, in the order of completion."""
    if workers <= 0:
        runner = _Runner(job)
        try:
            for spec in specs:
                yield runner.run(spec)
        finally:
            runner.close()
        return

    pending = list(reversed(specs))
    crew = [_Worker(job) for _ in range(min(workers, len(specs)))]
    try:
        for worker in crew:
            worker.assign(pending.pop())
        while busy := {worker.connection: worker for worker in crew if worker.spec is not None}:
            for connection in wait(list(busy)):
                worker = busy[connection]  # type: ignore[index]  # wait returns what it was given
                row = worker.collect()
                if not worker.process.is_alive():
                    crew[crew.index(worker)] = worker = _Worker(job)
                if pending:
                    worker.assign(pending.pop())
                yield row
    finally:
        for worker in crew:
            worker.stop()


class _Worker:
    """A worker process and the episode it is busy with."""

    def __init__(self, job: _Job) -> None:
        context = multiprocessing.get_context('spawn')
        self.connection, theirs = context.Pipe()
        self.spec: EpisodeSpec | None = None
        self.process: BaseProcess = context.Process(target=_work, args=(theirs, job), daemon=True)
        with _one_thread():
            self.process.start()
        theirs.close()

    def assign(self, spec: EpisodeSpec) -> None:
        self.spec = spec
        self.connection.send(spec)

    def collect(self) -> EpisodeRow:
        """Receive the row; a worker that died was killed by its simulator's native code."""
        spec, self.spec = self.spec, None
        assert spec is not None  # collect follows assign
        try:
            result: Any = self.connection.recv()
        except EOFError:
            self.process.join()
            return _failed(spec, f'the worker died with exit code {self.process.exitcode}')
        if isinstance(result, str):
            raise EvaluationError(f'the policy failed in {spec}:\n{result}')
        return result

    def stop(self) -> None:
        if self.spec is None and self.process.is_alive():
            self.connection.send(None)
            self.process.join(timeout=5.0)
        if self.process.is_alive():
            self.process.terminate()
        self.connection.close()


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Have children compute with one thread: numerical libraries read this at their import."""
    names = ('OMP_NUM_THREADS', 'MKL_NUM_THREADS', 'OPENBLAS_NUM_THREADS')
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, '1'))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name)
            else:
                os.environ[name] = value


def _work(connection: Connection, job: _Job) -> None:
    """A worker's main loop: a spec in, a row out; None ends it; a traceback goes out as text."""
    import torch

    torch.set_num_threads(1)
    runner = _Runner(job)
    try:
        while (spec := connection.recv()) is not None:
            try:
                connection.send(runner.run(spec))
            except Exception:  # whatever the policy raised must reach the parent
                connection.send(traceback.format_exc())
                return
    except (EOFError, KeyboardInterrupt):
        return
    finally:
        runner.close()


def _rate(rows: Sequence[EpisodeRow]) -> Rate:
    judged = [row for row in rows if row.judged]
    return wilson_rate(sum(row.success for row in judged), len(judged))


def rates_by_task(rows: Sequence[EpisodeRow]) -> Mapping[tuple[TaskName, str], Rate]:
    """Success per task and preset; simulator errors left out."""
    groups: dict[tuple[TaskName, str], list[EpisodeRow]] = {}
    for row in rows:
        groups.setdefault((TaskName(row.suite, row.task), row.cache), []).append(row)
    return {key: _rate(group) for key, group in groups.items()}


@dataclass(frozen=True)
class EvaluateConfig(PolicyOptions):
    """Measure a checkpoint's success in closed loop."""

    tasks: str = 'libero_object/0'
    """Comma-separated tasks: libero_object/0, libero_object/* or an instruction's words."""
    init_states: str = '0-9'
    """Official initial states per task: 0-9 or 0,3,7; there are 50."""
    cache: str = 'off'
    """Reuse presets, comma-separated: off, paper, safe. All run on the same initial states."""
    workers: int = 0
    """Worker processes of one thread each; 0 takes one per core."""
    execute_steps: int | None = None
    """Actions executed of each chunk; default: the policy's own."""
    out: Path | None = None
    """JSONL file of the rows; finished episodes in it are not run again."""
    json: bool = False
    """Print the rates as JSON on stdout, nothing else."""


def episode_grid(config: EvaluateConfig) -> list[EpisodeSpec]:
    """Every episode that the configuration names."""
    from vla_cache_sim.suites import EVALUATION_STATES

    return [
        EpisodeSpec(name.suite, name.task, init_state, cache.strip())
        for name in parse_tasks(config.tasks)
        for init_state in parse_indices(config.init_states, EVALUATION_STATES)
        for cache in config.cache.split(',')
    ]


def run_evaluate(config: EvaluateConfig) -> int:
    """Evaluate and print the rates; returns the exit code."""
    import json

    from rich.console import Console

    episodes = episode_grid(config)
    presets = list(dict.fromkeys(episode.cache for episode in episodes))
    factory = CheckpointPolicies.chosen(
        config, next((cache for cache in presets if cache != 'off'), 'off')
    )
    for cache in presets:
        factory.prepare(cache)
    rows = evaluate(
        factory,
        episodes,
        config.workers or os.cpu_count() or 1,
        config.out,
        execute_steps=config.execute_steps,
        fingerprint=factory.fingerprint,
        quiet=config.json,
    )
    if config.json:
        print(json.dumps(_document(rows), indent=2))
    else:
        _print_rates(Console(), rows)
    return 0


def _document(rows: Sequence[EpisodeRow]) -> dict[str, Any]:
    """What --json prints."""
    return {
        'rates': [
            {'task': str(task), 'cache': cache, **asdict(rate)}
            for (task, cache), rate in rates_by_task(rows).items()
        ],
        'paired': {
            cache: asdict(comparison)
            for cache in {row.cache for row in rows}
            if cache != 'off' and (comparison := compare(pair_rows(rows, cache)))
        },
        'simulator_errors': sum(not row.judged for row in rows),
    }


def _print_rates(console: Any, rows: Sequence[EpisodeRow]) -> None:
    from rich.table import Table

    table = Table('task', 'cache', 'success [95 %]', 'policy step, ms', 'recomputed')
    for (task, cache), rate in rates_by_task(rows).items():
        mine = [
            row
            for row in rows
            if row.judged and row.cache == cache and TaskName(row.suite, row.task) == task
        ]
        table.add_row(
            str(task),
            cache,
            str(rate),
            _mean([row.step_ms for row in mine], '.1f'),
            _mean([row.recompute_ratio for row in mine], '.0%'),
        )
    console.print(table)
    for cache in sorted({row.cache for row in rows} - {'off'}):
        comparison = compare(pair_rows(rows, cache))
        if comparison is not None:
            console.print(
                f'{cache} minus dense: {100 * comparison.difference:+.1f} points '
                f'[{100 * comparison.low:+.1f}, {100 * comparison.high:+.1f}] over '
                f'{comparison.pairs} pairs, McNemar p = {comparison.p_value:.2g}',
                markup=False,
                highlight=False,
            )
    failed = [row for row in rows if not row.judged]
    if failed:
        console.print(
            f'{len(failed)} episodes failed in the simulator and are not counted; '
            f'the last: {failed[-1].note}',
            markup=False,
        )


def _mean(values: Sequence[float | None], form: str) -> str:
    known = [value for value in values if value is not None]
    return format(sum(known) / len(known), form) if known else '-'


if __name__ == '__main__':
    import sys

    import tyro
    from rich.console import Console

    try:
        sys.exit(run_evaluate(tyro.cli(EvaluateConfig, description=__doc__)))
    except VlaCacheError as error:
        Console(stderr=True).print(f'error: {error}', markup=False, highlight=False)
        sys.exit(2)
