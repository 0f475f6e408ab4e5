"""When a gripper that knows two positions is told to change.

    closed' = True    where g > +threshold
              False   where g < -threshold
              closed  between: a value near 0 holds

The guard's null action says "open" before the policy has spoken. So the gripper is left as it is
until the first command that moves the arm, and an object in it is not dropped at start-up, nor by
a guard that was started again.
"""

import math

from vla_cache_ros.core.errors import ConfigError


class GripperSwitch:
    """Keeps what the gripper was told, and says when it is to be told something else."""

    def __init__(self, threshold: float) -> None:
        """Start with nothing told.

        Args:
            threshold: Half width of the band around 0 within which nothing changes.

        Raises:
            ConfigError: It is not within [0, 1).
        """
        if not 0 <= threshold < 1:
            raise ConfigError(f'gripper_threshold is {threshold}; valid: 0 to below 1.')
        self.threshold = threshold
        self._is_awake = False
        self._closed: bool | None = None
        self._told: bool | None = None

    def update(self, value: float, moves: bool) -> bool | None:
        """Take notice of a command.

        Args:
            value: Its gripper value, -1 open, +1 close.
            moves: Whether any of its six other numbers is not 0.

        Returns:
            Whether to close (True) or open (False); None where the gripper has been told.
        """
        self._is_awake = self._is_awake or moves
        if not self._is_awake or not math.isfinite(value):
            return None
        if abs(value) > self.threshold:
            self._closed = value > 0
        return None if self._closed == self._told else self._closed

    def told(self) -> None:
        """The gripper has taken over what `update` said; until then it is said again."""
        self._told = self._closed

    def sleep(self) -> None:
        """Leave the gripper as it is until a command moves the arm again."""
        self._is_awake = False

    def forget(self) -> None:
        """The gripper did not take it over after all: say it again at the next command."""
        self._told = None
