"""Whoever runs the episodes: this process, or worker processes under a watchdog.

A worker whose simulator hangs or dies takes its episode with it, and nothing else: the episode
comes back as a simulator's error and a new worker goes on.
"""

import contextlib
import ctypes
import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, Protocol

from vla_cache_ros.core.errors import ConfigError, EvaluationError, VlaCacheError
from vla_cache_ros.evaluation.episode import EpisodeRow, EpisodeSpec
from vla_cache_ros.evaluation.runner import EpisodeRunner, Job, failed_row

STEP_TIMEOUT_S = 120.0
"""A call of the simulator that takes longer has hung; building one takes seconds."""

_POLL_S = 1.0
_STOP_S = 5.0


class Crew(Protocol):
    """Whoever runs the episodes: this process, worker processes or a cluster."""

    def run(self, job: Job, specs: Sequence[EpisodeSpec]) -> Generator[EpisodeRow, None, None]:
        """Yield a row per spec, in the order of completion; closed early, it ends what runs.

        Raises:
            ConfigError: The policy or the simulator refuses what it is asked for.
            EvaluationError: The policy raised.
        """
        ...


class InlineCrew:
    """Runs the episodes in this process, without a watchdog: for debuggers and tests."""

    def run(self, job: Job, specs: Sequence[EpisodeSpec]) -> Generator[EpisodeRow, None, None]:
        """See `Crew.run`; what the policy raises passes unchanged."""
        runner = EpisodeRunner(job)
        try:
            for spec in specs:
                yield runner.run(spec)
        finally:
            runner.close()


class LocalCrew:
    """Runs the episodes in worker processes of this machine."""

    def __init__(
        self, workers: int = 1, step_timeout_s: float = STEP_TIMEOUT_S, threads: int = 1
    ) -> None:
        """Start nothing yet.

        Args:
            workers: Processes.
            step_timeout_s: A worker whose simulator has not returned from a call (to build it, to
                reset it, to advance it by a step) for so long is killed. The policy may take as
                long as it likes.
            threads: Threads that each worker computes with.

        Raises:
            ConfigError: A value is not positive.
        """
        for name, value in (
            ('workers', workers),
            ('step_timeout_s', step_timeout_s),
            ('threads', threads),
        ):
            if not value > 0:
                raise ConfigError(f'{name} is {value}; valid: greater than 0.')
        self._workers = workers
        self._step_timeout_s = step_timeout_s
        self._threads = threads

    def run(self, job: Job, specs: Sequence[EpisodeSpec]) -> Generator[EpisodeRow, None, None]:
        """See `Crew.run`."""
        pending = list(reversed(specs))
        crew = [_Worker(job, self._threads) for _ in range(min(self._workers, len(specs)))]
        try:
            for worker in crew:
                worker.assign(pending.pop())
            while busy := [worker for worker in crew if worker.spec is not None]:
                for worker, row in self._finished(busy):
                    if worker.is_lost:
                        worker.stop()
                        crew.remove(worker)
                        if pending:
                            worker = _Worker(job, self._threads)
                            crew.append(worker)
                    if pending:
                        worker.assign(pending.pop())
                    yield row
        finally:
            for worker in crew:
                worker.dismiss()
            for worker in crew:
                worker.stop()

    def _finished(self, busy: Sequence['_Worker']) -> Iterator[tuple['_Worker', EpisodeRow]]:
        """Wait a while and yield the workers that are done, dead or stuck, with their rows."""
        poll_s = min(_POLL_S, self._step_timeout_s / 4)
        ready = set(wait([worker.connection for worker in busy], timeout=poll_s))
        for worker in busy:
            if worker.connection in ready:
                yield worker, worker.collect()
            elif worker.pulse.silent_s > self._step_timeout_s:
                yield worker, worker.abandon(self._step_timeout_s)


class _Beat(ctypes.Structure):
    _fields_ = [('since_s', ctypes.c_double), ('call', ctypes.c_char * 16)]


class _Pulse:
    """Which call of the simulator a worker is in, and since when; in shared memory."""

    def __init__(self, beat: Any) -> None:
        self.beat = beat

    def __call__(self, call: str) -> None:
        """Note that a call begins, or with '' that it has returned."""
        self.beat.since_s = 0.0  # a reader between these lines must not see an old time
        self.beat.call = call.encode()
        self.beat.since_s = time.monotonic() if call else 0.0

    @property
    def call(self) -> str:
        return self.beat.call.decode()

    @property
    def silent_s(self) -> float:
        """How long the present call has taken; 0 outside of calls."""
        since_s = self.beat.since_s
        return time.monotonic() - since_s if since_s else 0.0


@dataclass(frozen=True)
class Refusal:
    """What a worker says when it cannot go on: nothing of it is an episode's outcome."""

    message: str
    is_bug: bool

    @classmethod
    def of(cls, error: Exception) -> 'Refusal':
        """What to say of an exception that a worker is handling."""
        is_bug = not isinstance(error, VlaCacheError)
        return cls(traceback.format_exc() if is_bug else str(error), is_bug)


def judge(spec: EpisodeSpec, result: EpisodeRow | Refusal) -> EpisodeRow:
    """What a worker sent, as a row.

    Raises:
        ConfigError: The policy or the simulator refused what it was asked for.
        EvaluationError: The policy raised.
    """
    if isinstance(result, EpisodeRow):
        return result
    if result.is_bug:
        raise EvaluationError(f'the policy failed in {spec}:\n{result.message}')
    raise ConfigError(result.message)


class _Worker:
    """A worker process and the episode it is busy with."""

    def __init__(self, job: Job, threads: int) -> None:
        context = multiprocessing.get_context('spawn')
        self.connection, theirs = context.Pipe()
        self.spec: EpisodeSpec | None = None
        self.pulse = _Pulse(context.RawValue(_Beat))
        self.process: BaseProcess = context.Process(
            target=_work, args=(theirs, job, self.pulse), daemon=True
        )
        with _environment(_quiet_children(threads)):
            self.process.start()
        theirs.close()

    @property
    def is_lost(self) -> bool:
        return not self.process.is_alive()

    def assign(self, spec: EpisodeSpec) -> None:
        self.spec = spec
        with contextlib.suppress(BrokenPipeError):  # it died; `collect` will say so
            self.connection.send(spec)

    def collect(self) -> EpisodeRow:
        """Receive the row; a worker that died was killed by its simulator's native code."""
        spec, self.spec = self.spec, None
        assert spec is not None  # collect follows assign
        try:
            result = self.connection.recv()
        except (EOFError, ConnectionResetError):
            self.process.join()
            inside = f' in {self.pulse.call}' if self.pulse.call else ''
            return failed_row(
                spec, f'the worker died{inside} with exit code {self.process.exitcode}'
            )
        return judge(spec, result)

    def abandon(self, timeout_s: float) -> EpisodeRow:
        """Kill a worker that is stuck in its simulator."""
        spec, self.spec = self.spec, None
        assert spec is not None  # only busy workers are watched
        note = f'{self.pulse.call} did not return within {timeout_s:g} s; the worker was killed'
        self.process.kill()
        self.process.join()
        return failed_row(spec, note)

    def dismiss(self) -> None:
        """Ask an idle worker to leave; end a busy one."""
        if self.spec is None:
            with contextlib.suppress(BrokenPipeError):
                self.connection.send(None)
        else:
            self.process.terminate()

    def stop(self) -> None:
        """See to it that the process is gone."""
        self.process.join(timeout=_STOP_S)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        self.connection.close()


def _quiet_children(threads: int) -> dict[str, str]:
    """What children's numerical libraries and rich read once, at their import."""
    names = ('OMP_NUM_THREADS', 'MKL_NUM_THREADS', 'OPENBLAS_NUM_THREADS')
    # rich draws no bars into the parent's.
    return {**dict.fromkeys(names, str(threads)), 'TTY_COMPATIBLE': '0'}


@contextlib.contextmanager
def _environment(wanted: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables for a while."""
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name)
            else:
                os.environ[name] = value


def _work(connection: Connection, job: Job, pulse: Callable[[str], None]) -> None:
    """A worker's main loop: a spec in, a row or a refusal out; None ends it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, who ends the crew
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    os.dup2(2, 1)  # simulators are chatty; stdout is the parent's
    runner = EpisodeRunner(job, pulse)
    try:
        while (spec := connection.recv()) is not None:
            connection.send(_run(runner, spec))
    except (EOFError, BrokenPipeError):
        return
    finally:
        runner.close()


def _run(runner: EpisodeRunner, spec: EpisodeSpec) -> EpisodeRow | Refusal:
    try:
        return runner.run(spec)
    except Exception as error:  # whatever the policy raised must reach the parent
        return Refusal.of(error)


def _leave_with_parent() -> None:
    """End the worker as soon as the parent is gone, in mid-episode too."""
    parent = multiprocessing.parent_process()
    assert parent is not None  # runs in workers alone
    wait([parent.sentinel])
    os._exit(1)
