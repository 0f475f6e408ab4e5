"""What TensorRT calls back: a logger that remembers errors, and a monitor of the build."""

import functools
import logging
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

PROGRESS_STEPS = 1000
_log = logging.getLogger(__name__)


@dataclass
class _Phase:
    parent: str | None
    steps: int
    done: int = 0


@functools.cache
def make_logger(trt: ModuleType) -> Any:
    """The logger of a package; one for all of its objects, as it demands.

    Returns:
        An ILogger with `errors`, a list of messages, and `last()`.
    """
    severe = (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR)

    class Logger(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in severe:
                self.errors.append(message)
                _log.info('%s', message)
            else:
                _log.debug('%s', message)

        def last(self) -> str:
            return self.errors[-1] if self.errors else 'it gave no reason'

    return Logger()


def make_monitor(trt: Any, on_progress: Callable[[int, int], None]) -> Any:
    """A monitor that turns the builder's nested phases into one number that only grows.

    Args:
        trt: The package.
        on_progress: Called with steps done and steps in all.

    Returns:
        An IProgressMonitor with `stopped_by`: what on_progress raised, Ctrl-C included; the
        build stops for it.
    """

    class Monitor(trt.IProgressMonitor):
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.stopped_by: BaseException | None = None
            self._phases: dict[str, _Phase] = {}
            self._reached = -1

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self._phases[phase_name] = _Phase(parent_phase, max(1, num_steps))

        def step_complete(self, phase_name: str, step: int) -> bool:
            # An exception must not leave through the builder: it would end the process.
            try:
                self._advance(phase_name, step + 1)
            except BaseException as error:
                self.stopped_by = error
            return self.stopped_by is None

        def phase_finish(self, phase_name: str) -> None:
            self._phases.pop(phase_name, None)

        def _advance(self, name: str | None, done: int) -> None:
            if name not in self._phases:
                return
            self._phases[name].done = done
            share = 0.0
            while name in self._phases:
                phase = self._phases[name]
                share = min(1.0, (phase.done + share) / phase.steps)
                name = phase.parent
            reached = int(PROGRESS_STEPS * share)
            if reached > self._reached and reached < PROGRESS_STEPS:
                self._reached = reached
                on_progress(reached, PROGRESS_STEPS)

    return Monitor()
