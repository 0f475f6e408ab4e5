r"""How late refreshes raise the reuse: a pressure in [0, 1], up fast, down slowly.

With t the time of a refresh and D its deadline:

    t > D            p <- min(1, p + rise)
    t <= comfort D   p <- max(0, p - fall)
    in between       p stays

fall < rise, and the band between comfort and deadline changes nothing, so that the pressure does
not swing with every step. It is the first rung of three: reuse up to its safe limit here, then
the guard runs on the chunk, then it holds.
"""

import math
from collections import deque
from dataclasses import dataclass

from vla_cache_ros.core.errors import ConfigError


@dataclass(frozen=True)
class DeadlineConfig:
    """What is late, and how fast that tells.

    Attributes:
        deadline_ms: Greatest time of a refresh, milliseconds; 0: there is no deadline.
        rise: What a late refresh adds to the pressure, (0, 1].
        fall: What one well in time takes from it, (0, rise].
        comfort: Share of the deadline up to which a refresh is well in time, (0, 1].
    """

    deadline_ms: float = 0.0
    rise: float = 0.5
    fall: float = 0.05
    comfort: float = 0.8

    def __post_init__(self) -> None:
        """Check ranges.

        Raises:
            ConfigError: A value is out of its range.
        """
        if not (math.isfinite(self.deadline_ms) and self.deadline_ms >= 0):
            raise ConfigError(f'deadline_ms is {self.deadline_ms}; valid: finite, 0 or more.')
        if not 0 < self.fall <= self.rise <= 1:
            raise ConfigError(
                f'fall is {self.fall} and rise {self.rise}; valid: 0 < fall <= rise <= 1.'
            )
        if not 0 < self.comfort <= 1:
            raise ConfigError(f'comfort is {self.comfort}; valid: in (0, 1].')


class ReusePressure:
    """The pressure that late refreshes build up.

    Attributes:
        value: p, in [0, 1].
    """

    def __init__(self, config: DeadlineConfig) -> None:
        """Start without pressure."""
        self.value = 0.0
        self._config = config

    def record(self, refresh_ms: float) -> bool:
        """Take one refresh's time into account.

        Returns:
            Whether it missed its deadline.
        """
        config = self._config
        if not config.deadline_ms:
            return False
        is_late = not refresh_ms <= config.deadline_ms  # a time that is NaN is late, too
        if is_late:
            self.value = min(1.0, self.value + config.rise)
        elif refresh_ms <= config.comfort * config.deadline_ms:
            self.value = max(0.0, self.value - config.fall)
        return is_late

    def reset(self) -> None:
        """Forget the pressure."""
        self.value = 0.0


class ExpectedRefresh:
    """How long the next refresh will take: as long as the longest of the last few.

    Actions that run meanwhile are committed before it begins; too few of them would leave a gap,
    too many only shorten what the new chunk decides.
    """

    def __init__(self, window: int = 8) -> None:
        """Start without experience: nothing is expected until a refresh was timed.

        Args:
            window: Refreshes that are remembered.
        """
        self._recent_ms: deque[float] = deque(maxlen=window)

    @property
    def ms(self) -> float:
        """The expectation, milliseconds; 0 before the first refresh."""
        return max(self._recent_ms, default=0.0)

    def record(self, refresh_ms: float) -> None:
        """Take one refresh's time into account."""
        self._recent_ms.append(refresh_ms)
