"""The last gate before a robot: a command is taken once, in time, from a guard that lives.

The guard has checked what the command says. Here it is only asked when it was sent and by whom:
between the two lie a network and perhaps another machine.
"""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from vla_cache_ros.core.errors import ConfigError


@dataclass(frozen=True)
class GateConfig:
    """Limits of what is taken.

    Attributes:
        max_age_s: Greatest age of a command's stamp, seconds.
        guard_timeout_s: Silence of the guard after which it counts as lost, seconds.
        max_future_s: How far a stamp may lie ahead of the clock, seconds: what the clocks of two
            machines may differ by.
    """

    max_age_s: float
    guard_timeout_s: float
    max_future_s: float = 0.02

    def __post_init__(self) -> None:
        """Check that limits are positive.

        Raises:
            ConfigError: One is not.
        """
        if not (self.max_age_s > 0 and self.guard_timeout_s > 0 and self.max_future_s >= 0):
            raise ConfigError(
                f'command_timeout_s is {self.max_age_s} and the guard may be silent for '
                f'{self.guard_timeout_s} s; valid: above 0.'
            )


class CommandGate:
    """Decides of each command whether it is taken, and keeps counts of every reason."""

    def __init__(self, config: GateConfig) -> None:
        """Start with a guard that has not been heard.

        Args:
            config: The limits.
        """
        self.config = config
        self._counts: Counter[str] = Counter()
        self._last_beat_s = -math.inf
        self._last_now_ns: int | None = None
        self._last_stamp_ns: int | None = None

    @property
    def counts(self) -> Mapping[str, int]:
        """Reason -> commands refused for it; 'taken' -> commands taken."""
        return dict(self._counts)

    def beat(self, is_active: bool, now_s: float) -> None:
        """Take notice of the guard's sign of life; one that is not active does not count.

        Args:
            is_active: Whether the guard says that it is active.
            now_s: Time of arrival, seconds of a monotonic clock.
        """
        self._last_beat_s = now_s if is_active else -math.inf

    def has_guard(self, now_s: float) -> bool:
        """Whether the guard was heard in time."""
        return now_s - self._last_beat_s <= self.config.guard_timeout_s

    def count(self, reason: str) -> None:
        """Count a command that came through here: 'taken', or why the caller refused it."""
        self._counts[reason] += 1

    def check(self, stamp_ns: int, now_ns: int, now_s: float) -> str:
        """Decide whether a command is taken.

        Args:
            stamp_ns: The control step that it is meant for.
            now_ns: The time, nanoseconds of the clock that stamps.
            now_s: The time, seconds of the monotonic clock of `beat`.

        Returns:
            Why it is refused, counted: guard_lost, clock_backwards, stale, future_stamp or
            repeated; empty when it is taken, not counted as long as the arm may refuse it.
        """
        reason = self._reason(stamp_ns, now_ns, now_s)
        if reason:
            self._counts[reason] += 1
        else:
            self._last_stamp_ns = stamp_ns
        return reason

    def _reason(self, stamp_ns: int, now_ns: int, now_s: float) -> str:
        backwards = self._last_now_ns is not None and now_ns < self._last_now_ns
        self._last_now_ns = now_ns
        newest_ns = now_ns + round(self.config.max_future_s * 1e9)
        if backwards:
            if self._last_stamp_ns is not None and self._last_stamp_ns > newest_ns:
                self._last_stamp_ns = None  # the clock restarted: stamps begin anew
            return 'clock_backwards'
        if not self.has_guard(now_s):
            return 'guard_lost'
        if now_ns - stamp_ns > self.config.max_age_s * 1e9:
            return 'stale'
        if stamp_ns > newest_ns:
            return 'future_stamp'
        if self._last_stamp_ns is not None and stamp_ns <= self._last_stamp_ns:
            return 'repeated'
        return ''
