"""The command guard: what reaches the robot is finite, in limits, fresh, and never repeated.

Whatever fails a check is replaced by the null action: no motion, gripper held at its last
commanded value. An action is a delta, so sending one twice moves the robot twice; to a sink with
absolute targets, the null action means to hold the last one.

Checks, in their order: the clock; whether an action is there, a finite one of the right shape; its
age; its number; what forbids motion (an old or forbidden state of the robot); jump; axis limits;
speed; acceleration; workspace; gripper. A stop, by the null action or at the workspace's border,
is not limited by acceleration: nothing may delay it.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vla_cache_ros.core.guard_config import AXES, GuardConfig
from vla_cache_ros.core.guard_limits import limit_change, limit_length, limit_workspace
from vla_cache_ros.core.robot_watch import RobotWatch

NULL_REASONS = (
    'no_action',
    'bad_shape',
    'non_finite',
    'stale',
    'future_stamp',
    'repeated',
    'clock_backwards',
    'jump',
    'no_pose',
    'no_joint_states',
    'joint_position',
    'joint_velocity',
)
"""Reasons of the guard's own that give the null action; limits do so under 'null' alone."""

_KINDS = (('linear', slice(0, 3)), ('angular', slice(3, 6)))


@dataclass(frozen=True)
class GuardedCommand:
    """What may be sent.

    Attributes:
        action: [7] float32, finite and within the limits.
        reasons: Why it differs from what was asked, from NULL_REASONS, limit_<axis>,
            <linear or angular>_<velocity or acceleration>, workspace_<axis>,
            workspace_outside, gripper_interval, or the caller's; empty when it is what was asked.
        is_null: Whether it is the null action.
    """

    action: NDArray[np.float32]
    reasons: tuple[str, ...]
    is_null: bool


class CommandGuard:
    """Checks one action per control step; keeps the last command and counts of every reason.

    Attributes:
        config: The limits.
        robot: What is known of the robot; the caller feeds it.
    """

    def __init__(self, config: GuardConfig) -> None:
        """Start with nothing commanded.

        Args:
            config: The limits.
        """
        self.config = config
        self.robot = RobotWatch(config)
        self._lower = np.array(config.lower, dtype=np.float32)
        self._upper = np.array(config.upper, dtype=np.float32)
        self._scale = np.repeat(
            np.array([config.position_scale_m, config.rotation_scale_rad], np.float64), 3
        )
        dt = config.period_s
        self._speed = {
            'linear': config.max_linear_velocity_m_s * dt,
            'angular': config.max_angular_velocity_rad_s * dt,
        }
        self._acceleration = {
            'linear': config.max_linear_acceleration_m_s2 * dt**2,
            'angular': config.max_angular_acceleration_rad_s2 * dt**2,
        }
        self._jump = {'linear': config.max_linear_jump_m, 'angular': config.max_angular_jump_rad}
        self._workspace = (
            np.array(config.workspace_lower_m, dtype=np.float64),
            np.array(config.workspace_upper_m, dtype=np.float64),
        )
        self._gripper = self._gripper_side = config.initial_gripper
        self._gripper_switched_ns: int | None = None
        self._counts: Counter[str] = Counter()
        self.reset()

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
        forbidden: Sequence[str] = (),
    ) -> GuardedCommand:
        """Decide what is sent in this control step.

        Args:
            action: [7], or None where there is none (an exhausted chunk).
            action_stamp_ns: Stamp of the oldest observation that the action was computed from.
            now_ns: The time, nanoseconds of the clock that stamped the observation.
            sequence: Ascending number of the action; None: its stamp is its number, for sources
                that stamp every action on its own.
            forbidden: Reasons of the caller's for which nothing may move now.

        Returns:
            The action, limited where the policy says so, or the null action.
        """
        number = action_stamp_ns if sequence is None else sequence
        reasons = [*forbidden, *self._clock_reasons(now_ns, numbered=sequence is not None)]
        if action is None:
            return self._null([*reasons, 'no_action'])
        if action.shape != (len(AXES),):
            return self._null([*reasons, 'bad_shape'])
        with np.errstate(over='ignore'):  # becomes infinite, which is refused below
            command = action.astype(np.float32)
        reasons += self._action_reasons(command, action_stamp_ns, now_ns, number)
        reasons += self.robot.forbids(now_ns)
        if np.isfinite(command).all() and self._jumps(command):
            reasons.append('jump')
        if reasons:
            return self._null(reasons)

        command, limits = self._limited(command)
        if limits and self.config.on_limit == 'null':
            return self._null(limits)
        command, stops = self._moved(command)
        command = np.minimum(np.maximum(command, self._lower), self._upper)  # rounding, at most
        command, held = self._gripped(command, now_ns)
        self._last_id = number
        self._last = self._displacement(command)
        self._counts.update(['passed'])
        reasons = [*limits, *stops, *held]
        self._counts.update(reasons)
        return GuardedCommand(command, tuple(reasons), is_null=False)

    def reset(self) -> None:
        """Forget clock and numbers, for a new source of actions; gripper and counts stay."""
        self._last_now_ns: int | None = None
        self._last_id: int | None = None
        self._last = np.zeros(6, np.float64)  # displacement sent last
        self._asked: NDArray[np.float64] | None = None
        self._accepted: NDArray[np.float64] | None = None

    def _displacement(self, command: NDArray[np.float32]) -> NDArray[np.float64]:
        """What a command moves the arm by, [6], metres and radians."""
        return command[:6].astype(np.float64) * self._scale

    # Whether it may pass at all

    def _clock_reasons(self, now_ns: int, numbered: bool) -> list[str]:
        backwards = self._last_now_ns is not None and now_ns < self._last_now_ns
        self._last_now_ns = now_ns
        if not backwards:
            return []
        newest_ns = now_ns + int(self.config.max_future_ms * 1e6)
        if not numbered and self._last_id is not None and self._last_id > newest_ns:
            self._last_id = None  # the clock restarted: stamps begin anew
        return ['clock_backwards']

    def _action_reasons(
        self, command: NDArray[np.float32], stamp_ns: int, now_ns: int, number: int
    ) -> list[str]:
        reasons: list[str] = []
        if not np.isfinite(command).all():
            reasons.append('non_finite')
        age_ms = (now_ns - stamp_ns) / 1e6
        if age_ms > self.config.max_age_ms:
            reasons.append('stale')
        if age_ms < -self.config.max_future_ms:
            reasons.append('future_stamp')
        if self._last_id is not None and number <= self._last_id:
            reasons.append('repeated')
        return reasons

    def _jumps(self, command: NDArray[np.float32]) -> bool:
        """Whether an action is far from the one accepted last and from the one asked before it.

        A spike is refused, the action after it is near the one before it and passes. What stays
        where it jumped to passes from its second step on.
        """
        asked = self._displacement(command)
        before = [near for near in (self._accepted, self._asked) if near is not None]
        self._asked = asked
        jumps = bool(before) and not any(self._near(asked, near) for near in before)
        if not jumps:
            self._accepted = asked
        return jumps

    def _near(self, one: NDArray[np.float64], other: NDArray[np.float64]) -> bool:
        return all(
            not self._jump[kind] or np.linalg.norm((one - other)[axes]) <= self._jump[kind]
            for kind, axes in _KINDS
        )

    # What of it may pass

    def _limited(self, command: NDArray[np.float32]) -> tuple[NDArray[np.float32], list[str]]:
        """Limits of axes and of speed: those that 'clip' and 'null' are about."""
        outside = (command < self._lower) | (command > self._upper)
        reasons = [f'limit_{AXES[axis]}' for axis in np.flatnonzero(outside)]
        command = np.minimum(np.maximum(command, self._lower), self._upper)
        displacement = self._displacement(command)
        for kind, axes in _KINDS:
            if not self._speed[kind]:
                continue
            displacement[axes], exceeded = limit_length(displacement[axes], self._speed[kind])
            if exceeded:
                reasons.append(f'{kind}_velocity')
                command[axes] = displacement[axes] / self._scale[axes]
        return command, reasons

    def _moved(self, command: NDArray[np.float32]) -> tuple[NDArray[np.float32], list[str]]:
        """Acceleration, then the workspace, which has the last word."""
        reasons: list[str] = []
        for kind, axes in _KINDS:
            limit = self._acceleration[kind]
            if not limit:
                continue
            displacement = self._displacement(command)[axes]
            displacement, exceeded = limit_change(displacement, self._last[axes], limit)
            if exceeded:
                reasons.append(f'{kind}_acceleration')
                command[axes] = displacement / self._scale[axes]
        if self.config.has_workspace:
            assert self.robot.position_m is not None  # else no_pose has forbidden this command
            _, stopped, outside = limit_workspace(
                self.robot.position_m, self._displacement(command)[:3], *self._workspace
            )
            command[:3] = np.where(stopped, 0, command[:3])
            reasons += [f'workspace_{AXES[axis]}' for axis in np.flatnonzero(stopped)]
            if outside:
                command[3:6] = 0
                reasons.append('workspace_outside')
        return command, reasons

    def _gripped(
        self, command: NDArray[np.float32], now_ns: int
    ) -> tuple[NDArray[np.float32], list[str]]:
        """Hold the gripper where it would switch again too soon; 0 switches nothing."""
        asked = float(command[-1])
        if asked * self._gripper_side < 0:
            interval_ns = self.config.gripper_interval_s * 1e9
            switched_ns = self._gripper_switched_ns
            # A clock that went back leaves a switch in the future: as if it were now.
            if switched_ns is not None and interval_ns and now_ns - switched_ns < interval_ns:
                self._gripper_switched_ns = min(switched_ns, now_ns)
                command[-1] = self._gripper
                return command, ['gripper_interval']
            self._gripper_switched_ns = now_ns
        self._gripper = asked
        self._gripper_side = asked or self._gripper_side
        return command, []

    def _null(self, reasons: Sequence[str]) -> GuardedCommand:
        self._counts.update(reasons)
        self._last = np.zeros(6, np.float64)
        command = np.zeros(len(AXES), dtype=np.float32)
        command[-1] = self._gripper
        return GuardedCommand(command, tuple(reasons), is_null=True)
