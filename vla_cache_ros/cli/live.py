"""The demo's live table; plain lines where there is no terminal."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import TracebackType

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

REFRESH_PERIOD_S = 0.25
PLAIN_PERIOD_S = 5.0


@dataclass(frozen=True)
class ArmStatus:
    """What the table shows of one arm.

    Attributes:
        episode: Initial state being played, None before the first.
        step: Policy steps of the episode so far.
        mode: The newest step's mode.
        reused: Camera -> tokens reused, of how many.
        stage_ms: Stage -> newest time, milliseconds.
        refresh_hz, command_hz: Wall-clock rates over the episode so far.
        outcomes: Of the finished episodes.
    """

    episode: int | None = None
    step: int = 0
    mode: str = ''
    reused: Mapping[str, tuple[int, int]] = field(default_factory=dict[str, tuple[int, int]])
    stage_ms: Mapping[str, float] = field(default_factory=dict[str, float])
    refresh_hz: float = 0.0
    command_hz: float = 0.0
    outcomes: tuple[str, ...] = ()


class LiveTable:
    """Shows both arms side by side while they play; use as a context manager."""

    def __init__(self, title: str, arms: Sequence[str], console: Console | None = None) -> None:
        """Prepare the table.

        Args:
            title: The task in words.
            arms: Names of the arms.
            console: Where to show it.
        """
        self._title = title
        self._console = console or Console()
        self._status = dict.fromkeys(arms, ArmStatus())
        self._live: Live | None = None
        self._shown_s = self._begin_s = time.monotonic()

    def __enter__(self) -> 'LiveTable':
        """Show the table."""
        if self._console.is_terminal:
            self._live = Live(self._render(), console=self._console, auto_refresh=False)
            self._live.start()
        else:
            self._print(self._title)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Leave the last state on the terminal."""
        if self._live is not None:
            self._live.update(self._render(), refresh=True)
            self._live.stop()

    def update(self, arm: str, status: ArmStatus) -> None:
        """Show an arm's newest state, at most four times a second."""
        self._status[arm] = status
        now = time.monotonic()
        period = REFRESH_PERIOD_S if self._live is not None else PLAIN_PERIOD_S
        if now - self._shown_s < period:
            return
        self._shown_s = now
        if self._live is not None:
            self._live.update(self._render(), refresh=True)
        else:
            self._print(f'{arm}: {_line(status)}')

    def finish_episode(self, arm: str, outcome: str) -> None:
        """Count an episode's outcome."""
        status = self._status[arm]
        self._status[arm] = replace(status, outcomes=(*status.outcomes, outcome))
        if self._live is not None:
            self._live.update(self._render(), refresh=True)
        else:
            self._print(f'{arm}: {_line(self._status[arm])}; {outcome}')

    def outcomes(self, arm: str) -> tuple[str, ...]:
        """Outcomes of the arm's finished episodes."""
        return self._status[arm].outcomes

    def _print(self, line: str) -> None:
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def _render(self) -> RenderableType:
        table = Table(expand=False)
        table.add_column('')
        for arm in self._status:
            table.add_column(arm, min_width=26)
        arms = self._status.values()
        cameras = list(dict.fromkeys(name for status in arms for name in status.reused))
        stages = list(dict.fromkeys(name for status in arms for name in status.stage_ms))

        table.add_row('initial state', *(_or_dash(status.episode) for status in arms))
        table.add_row('policy step', *(f'{status.step} {status.mode}' for status in arms))
        for camera in cameras:
            table.add_row(
                f'reused, {camera}', *(_bar(status.reused.get(camera)) for status in arms)
            )
        for stage in stages:
            table.add_row(f'{stage}, ms', *(_ms(status.stage_ms.get(stage)) for status in arms))
        table.add_row(
            'policy step, ms',
            *(_ms(sum(status.stage_ms.values())) for status in arms),
            end_section=True,
        )
        table.add_row('policy refresh, Hz', *(f'{status.refresh_hz:.1f}' for status in arms))
        table.add_row('commands, Hz', *(f'{status.command_hz:.1f}' for status in arms))
        table.add_row('success', *(_outcomes(status.outcomes) for status in arms))
        elapsed_s = time.monotonic() - self._begin_s
        return Group(Text(self._title), table, Text(f'{elapsed_s:.0f} s', style='dim'))


def _line(status: ArmStatus) -> str:
    reused = ', '.join(f'{name} {n}/{of}' for name, (n, of) in status.reused.items())
    stages = ' '.join(f'{stage} {value:.1f}' for stage, value in status.stage_ms.items())
    return (
        f'initial state {_or_dash(status.episode)}, step {status.step} {status.mode}, '
        f'reused {reused or "-"}, ms: {stages}, total {sum(status.stage_ms.values()):.1f}, '
        f'refresh {status.refresh_hz:.1f} Hz, commands {status.command_hz:.1f} Hz, '
        f'success {_outcomes(status.outcomes)}'
    )


def _bar(count: tuple[int, int] | None) -> str:
    if count is None:
        return '-'
    done, total = count
    filled = round(10 * done / total) if total else 0
    return f'{"█" * filled}{"░" * (10 - filled)} {done}/{total}'


def _outcomes(outcomes: Sequence[str]) -> str:
    if not outcomes:
        return '-'
    judged = [outcome for outcome in outcomes if outcome != 'simulator_error']
    return f'{sum(outcome == "success" for outcome in judged)}/{len(judged)}'


def _or_dash(value: object) -> str:
    return '-' if value is None else str(value)


def _ms(value: float | None) -> str:
    return '-' if value is None else f'{value:.1f}'
