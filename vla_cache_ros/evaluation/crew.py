"""Worker processes that share the episodes."""

import contextlib
import multiprocessing
import os
import traceback
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, Protocol

from vla_cache_ros.core.errors import VlaCacheError
from vla_cache_ros.evaluation.episode import EpisodeRow, EpisodeSpec
from vla_cache_ros.evaluation.runner import EpisodeRunner, Job, failed_row


class EvaluationError(VlaCacheError):
    """An evaluation stopped; what it had finished is kept."""


class Crew(Protocol):
    """Whoever runs the episodes: this process, worker processes or a cluster."""

    def run(self, job: Job, specs: Sequence[EpisodeSpec]) -> Iterator[EpisodeRow]:
        """Yield a row per spec, in the order of completion."""
        ...


def _run_all(job: Job, specs: Sequence[EpisodeSpec], workers: int) -> Iterator[EpisodeRow]:
    """Yield a row per spec, in the order of completion."""
    if workers <= 0:
        runner = EpisodeRunner(job)
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

    def __init__(self, job: Job) -> None:
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
            return failed_row(spec, f'the worker died with exit code {self.process.exitcode}')
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


def _work(connection: Connection, job: Job) -> None:
    """A worker's main loop: a spec in, a row out; None ends it; a traceback goes out as text."""
    import torch

    torch.set_num_threads(1)
    runner = EpisodeRunner(job)
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
