"""The command guard: what reaches the robot is finite, in limits, fresh, and never repeated.

Whatever fails a check is replaced by the null action: no motion, gripper held at its last
commanded value. An action is a delta, so sending one twice moves the robot twice.
"""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vla_cache_ros.core.errors import ConfigError, UnknownNameError

AXES = ('x', 'y', 'z', 'rx', 'ry', 'rz', 'gripper')
LIMIT_POLICIES = ('clip', 'null')
NULL_REASONS = (
    'no_action',
    'bad_shape',
    'non_finite',
    'stale',
    'future_stamp',
    'repeated',
    'clock_backwards',
)
"""Reasons that give the null action; limit_<axis> does so under the policy 'null' alone."""


@dataclass(frozen=True)
class GuardConfig:
    """Limits of what may pass.

    Attributes:
        lower: Least value per axis (AXES), the action's own units; <= 0 but for the gripper.
        upper: Greatest value per axis; >= 0 but for the gripper.
        on_limit: 'clip' a value out of limits to the limit, or send the 'null' action.
        max_age_ms: Greatest age of an action's observation, milliseconds. The last action of a
            chunk is as old as the chunk's execution plus the inference.
        max_future_ms: How far a stamp may lie ahead of the clock, milliseconds.
        initial_gripper: Gripper value of null actions before the first command (-1: open).
    """

    lower: tuple[float, ...] = (-1.0,) * 7
    upper: tuple[float, ...] = (1.0,) * 7
    on_limit: str = 'clip'
    max_age_ms: float = 1000.0
    max_future_ms: float = 5.0
    initial_gripper: float = -1.0

    def __post_init__(self) -> None:
        """Check that the null action itself is within the limits.

        Raises:
            ConfigError: A limit contradicts another one or is not finite.
        """
        if self.on_limit not in LIMIT_POLICIES:
            raise UnknownNameError('limit policy', self.on_limit, LIMIT_POLICIES)
        null = (0.0,) * 6 + (self.initial_gripper,)
        if len(self.lower) != 7 or len(self.upper) != 7:
            raise ConfigError(f'limits need one value for each of {AXES}.')
        for axis, low, value, high in zip(AXES, self.lower, null, self.upper, strict=True):
            if not (math.isfinite(low) and math.isfinite(high) and low <= value <= high):
                raise ConfigError(
                    f'limits of {axis} are [{low}, {high}]; valid: finite, around {value}, '
                    'the value of the null action.'
                )
        if not self.max_age_ms > 0 or not self.max_future_ms >= 0:
            raise ConfigError(
                f'max_age_ms must be > 0 and max_future_ms >= 0; got {self.max_age_ms} and '
                f'{self.max_future_ms}.'
            )


@dataclass(frozen=True)
class GuardedCommand:
    """What may be sent.

    Attributes:
        action: [7] float32, finite and within the limits.
        reasons: Why it differs from what was asked, from NULL_REASONS or limit_<axis>; empty when
            it is what was asked.
        is_null: Whether it is the null action.
    """

    action: NDArray[np.float32]
    reasons: tuple[str, ...]
    is_null: bool


class CommandGuard:
    """Checks one action per control step; keeps the last command and counts of every reason."""

    def __init__(self, config: GuardConfig) -> None:
        """Start with nothing commanded.

        Args:
            config: The limits.
        """
        self.config = config
        self._lower = np.array(config.lower, dtype=np.float32)
        self._upper = np.array(config.upper, dtype=np.float32)
        self._gripper = config.initial_gripper
        self._counts: Counter[str] = Counter()
        self._last_now_ns: int | None = None
        self._last_id: int | None = None

    @property
    def counts(self) -> Mapping[str, int]:
        """Reason -> commands it applied to; 'passed' -> commands that were not null."""
        return dict(self._counts)

    def check(
        self,
        action: NDArray[np.floating] | None,
        action_stamp_ns: int,
        now_ns: int,
        sequence: int | None = None,
    ) -> GuardedCommand:
        """Decide what is sent in this control step.

        Args:
            action: [7], or None where there is none (an exhausted queue).
            action_stamp_ns: Stamp of the observation that the action was computed from.
            now_ns: The time, nanoseconds of the clock that stamped the observation.
            sequence: Ascending number of the action; None: its stamp is its number, for sources
                that stamp every action on its own.

        Returns:
            The action, clipped where the policy says so, or the null action.
        """
        number = action_stamp_ns if sequence is None else sequence
        reasons = self._clock_reasons(now_ns, numbered=sequence is not None)
        if action is None:
            return self._null([*reasons, 'no_action'])
        if action.shape != (len(AXES),):
            return self._null([*reasons, 'bad_shape'])
        with np.errstate(over='ignore'):  # becomes infinite, which is refused below
            command = action.astype(np.float32)
        if not np.isfinite(command).all():
            reasons.append('non_finite')
        age_ms = (now_ns - action_stamp_ns) / 1e6
        if age_ms > self.config.max_age_ms:
            reasons.append('stale')
        if age_ms < -self.config.max_future_ms:
            reasons.append('future_stamp')
        if self._last_id is not None and number <= self._last_id:
            reasons.append('repeated')
        if reasons:
            return self._null(reasons)

        outside = (command < self._lower) | (command > self._upper)
        limits = [f'limit_{AXES[axis]}' for axis in np.flatnonzero(outside)]
        if limits and self.config.on_limit == 'null':
            return self._null(limits)
        command = np.minimum(np.maximum(command, self._lower), self._upper)
        self._last_id = number
        self._gripper = float(command[-1])
        self._counts.update([*limits, 'passed'])
        return GuardedCommand(command, tuple(limits), is_null=False)

    def reset(self) -> None:
        """Forget clock and numbers, for a new source of actions; gripper and counts stay."""
        self._last_now_ns = None
        self._last_id = None

    def _clock_reasons(self, now_ns: int, numbered: bool) -> list[str]:
        backwards = self._last_now_ns is not None and now_ns < self._last_now_ns
        self._last_now_ns = now_ns
        if not backwards:
            return []
        newest_ns = now_ns + int(self.config.max_future_ms * 1e6)
        if not numbered and self._last_id is not None and self._last_id > newest_ns:
            self._last_id = None  # the clock restarted: stamps begin anew
        return ['clock_backwards']

    def _null(self, reasons: list[str]) -> GuardedCommand:
        self._counts.update(reasons)
        command = np.zeros(len(AXES), dtype=np.float32)
        command[-1] = self._gripper
        return GuardedCommand(command, tuple(reasons), is_null=True)
