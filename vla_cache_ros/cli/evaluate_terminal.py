"""What `vla-cache eval` shows on the terminal."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from vla_cache_ros.cli.progress import Progress
from vla_cache_ros.evaluation.episode import EpisodeRow, EpisodeSpec
from vla_cache_ros.evaluation.evaluate import running_order
from vla_cache_ros.evaluation.summary import ALL, EvaluationSummary


class EpisodeProgress:
    """The progress bar, with the success of each arm in this run so far."""

    def __init__(
        self, specs: Sequence[EpisodeSpec], finished: set[EpisodeSpec], quiet: bool
    ) -> None:
        """Say what is done already.

        Args:
            specs: Which episodes were asked for.
            finished: Those that the folder holds.
            quiet: Show nothing.
        """
        todo = set(specs) - finished
        self._bar = Progress('episodes', total=len(todo), quiet=quiet)
        self._trials = dict.fromkeys((spec.arm for spec in specs), 0)
        self._successes = dict(self._trials)
        if len(todo) < len(specs) and not quiet:
            say(f'{len(specs) - len(todo)} of {len(specs)} episodes are done already.')

    def __enter__(self) -> 'EpisodeProgress':
        """Show the bar."""
        self._bar.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        """Remove the bar."""
        self._bar.__exit__(*error)

    def show(self, row: EpisodeRow) -> None:
        """Count a row; a simulator's error, which is tried again, is no progress."""
        if not row.judged:
            say(f'{row.spec.name}, initial state {row.spec.init_state}: {row.note}')
            return
        self._trials[row.spec.arm] += 1
        self._successes[row.spec.arm] += row.success
        rates = (f'{arm} {self._successes[arm]}/{n}' for arm, n in self._trials.items())
        self._bar.advance(note=', '.join(rates))


def plan_of(specs: Sequence[EpisodeSpec], finished: set[EpisodeSpec]) -> list[dict[str, Any]]:
    """Episodes by task, condition and arm, and how many of them are done."""
    counts: dict[tuple[str, str, str], list[int]] = {}
    for spec in running_order(specs):
        count = counts.setdefault((str(spec.name), spec.condition, spec.arm), [0, 0])
        count[0] += 1
        count[1] += spec in finished
    return [
        {'task': task, 'condition': condition, 'arm': arm, 'episodes': total, 'done': done}
        for (task, condition, arm), (total, done) in counts.items()
    ]


def print_plan(plan: Sequence[Mapping[str, Any]]) -> None:
    """Print what `plan_of` returns."""
    table = Table('task', 'condition', 'arm', 'episodes', 'done')
    for line in plan:
        table.add_row(*map(str, line.values()))
    total, done = (sum(line[name] for line in plan) for name in ('episodes', 'done'))
    console = Console()
    console.print(table)
    console.print(f'{total} episodes, {done} done; nothing was run.', highlight=False)


def print_summary(summary: EvaluationSummary, attempts: int, page: Path) -> None:
    """Print the arms, what may be claimed, and where the report is.

    Args:
        summary: Of the rows.
        attempts: Episodes whose simulator failed, each time counted.
        page: The report.
    """
    table = Table('condition', 'arm', 'success [95 %]', 'policy step, ms', 'vision work saved')
    for arm in summary.arms:
        step_ms, saved = arm.step_ms.get(ALL), arm.vision_work_saved
        table.add_row(
            arm.condition,
            arm.arm,
            str(arm.success),
            f'{step_ms.p50:.1f}' if step_ms else '-',
            f'{saved:.0%}' if saved is not None else '-',
        )
    console = Console()
    console.print(table)
    for pair in summary.paired:
        console.print(f'{pair.condition}: {pair.in_words()}', markup=False, highlight=False)
    if attempts:
        console.print(
            f'The simulator failed in {attempts} attempts; {len(summary.failures)} episodes are '
            'without a judgement, and in no rate.',
            highlight=False,
        )
    console.print(f'report: {page}', markup=False, highlight=False, soft_wrap=True)


def say(text: str) -> None:
    """Print on stderr, beside the bar."""
    Console(stderr=True).print(text, markup=False, highlight=False, soft_wrap=True)


def working(what: str) -> AbstractContextManager[object]:
    """Show on stderr that something goes on whose length is not known."""
    return Console(stderr=True).status(what)
