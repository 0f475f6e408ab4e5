"""A progress bar with rate and time left; plain lines where there is no terminal."""

import contextlib
import time
from collections.abc import Callable, Iterator
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.progress import Progress as RichProgress

PLAIN_PERIOD_S = 20.0
"""Time between two plain lines."""


class Progress:
    """Counts work; use as a context manager."""

    def __init__(self, what: str, total: int, quiet: bool = False) -> None:
        """Prepare the bar.

        Args:
            what: The unit of work in words, e.g. 'episodes'.
            total: How many.
            quiet: Show nothing.
        """
        self._what, self._total, self._quiet = what, total, quiet
        self._console = Console(stderr=True)
        self._begin = self._last_line = time.monotonic()
        self._done = 0
        self._bar: RichProgress | None = None

    def __enter__(self) -> 'Progress':
        """Show the bar."""
        if not self._quiet and self._console.is_terminal and self._total:
            self._bar = RichProgress(
                TextColumn('{task.description}'),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn('{task.fields[rate]}'),
                TimeRemainingColumn(),
                TextColumn('{task.fields[note]}'),
                console=self._console,
            )
            self._bar.start()
            self._task = self._bar.add_task(self._what, total=self._total, rate='', note='')
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.stop()

    def advance(self, note: str = '') -> None:
        """Count one piece of work.

        Args:
            note: Shown at the end of the line.
        """
        self._done += 1
        now = time.monotonic()
        per_minute = 60.0 * self._done / max(now - self._begin, 1e-9)
        if self._bar is not None:
            self._bar.update(self._task, advance=1, rate=f'{per_minute:.1f}/min', note=note)
        elif not self._quiet and (
            now - self._last_line >= PLAIN_PERIOD_S or self._done == self._total
        ):
            self._last_line = now
            left_s = (self._total - self._done) * 60.0 / per_minute
            self._console.print(
                f'{self._what} {self._done}/{self._total}, {per_minute:.1f}/min, '
                f'{left_s:.0f} s left, {note}',
                highlight=False,
                soft_wrap=True,
            )


@contextlib.contextmanager
def byte_progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """A bar for bytes, on terminals alone.

    Args:
        what: What is read, in words.

    Yields:
        What to call with the bytes read so far and in all.
    """
    console = Console(stderr=True)
    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with RichProgress(
        TextColumn('{task.description}'),
        *columns,
        console=console,
        disable=not console.is_terminal,
        transient=True,
    ) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


@contextlib.contextmanager
def step_progress(what: str) -> Iterator[Callable[[str, int, int], None]]:
    """A bar for work in named steps; plain lines where there is no terminal.

    Args:
        what: What is done, in words.

    Yields:
        What to call with the step at hand, steps done and in all.
    """
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _plain_steps(console, what)
        return
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn('{task.fields[step]}'))
    with RichProgress(
        TextColumn('{task.description}'), *columns, console=console, transient=True
    ) as bar:
        task = bar.add_task(what, total=None, step='')
        yield lambda step, done, total: bar.update(task, completed=done, total=total, step=step)


def _plain_steps(console: Console, what: str) -> Callable[[str, int, int], None]:
    last = [0.0]

    def report(step: str, done: int, total: int) -> None:
        now = time.monotonic()
        if now - last[0] >= PLAIN_PERIOD_S:
            last[0] = now
            console.print(f'{what}: {step} ({done}/{total})', highlight=False, soft_wrap=True)

    return report
