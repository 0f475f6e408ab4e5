"""What the guard knows of the robot: where the end effector and the joints were measured, when.

A state that is missing, too old, frozen (its stamp does not change) or not finite is no state: the
limits that need it cannot be watched, so nothing but the null action may be sent.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from vla_cache_ros.core.guard_config import GuardConfig


class _Fresh:
    """When a state last brought news; a clock that went back makes it old."""

    def __init__(self) -> None:
        self._stamp_ns: int | None = None
        self._received_ns: int | None = None

    def receive(self, stamp_ns: int, now_ns: int) -> None:
        """Take notice; a stamp that was there before is no news, unless it is 0: unstamped."""
        if stamp_ns and stamp_ns == self._stamp_ns:
            return
        self._stamp_ns, self._received_ns = stamp_ns, now_ns

    def is_old(self, now_ns: int, timeout_s: float) -> bool:
        """Whether the last news is older than that, or from another time."""
        return self._received_ns is None or abs(now_ns - self._received_ns) > timeout_s * 1e9


class RobotWatch:
    """Keeps the newest measured state and says what forbids motion."""

    def __init__(self, config: GuardConfig) -> None:
        """Start without any state.

        Args:
            config: Which joints are limited, and how old a state may be.
        """
        self._config = config
        self._pose_fresh, self._joints_fresh = _Fresh(), _Fresh()
        self._position_m: NDArray[np.float64] | None = None
        self._joints: dict[str, float] = {}
        self._speeds: dict[str, float] = {}
        self._joints_ns = 0

    @property
    def position_m(self) -> NDArray[np.float64] | None:
        """Where the end effector was measured, [3]; None: nowhere yet, or no finite numbers."""
        return self._position_m

    def see_pose(self, position_m: Sequence[float], stamp_ns: int, now_ns: int) -> None:
        """Take in a measured position of the end effector, [3], in the base frame."""
        position = np.array(position_m, dtype=np.float64)
        self._position_m = position if np.isfinite(position).all() else None
        self._pose_fresh.receive(stamp_ns, now_ns)

    def see_joints(
        self,
        positions: Mapping[str, float],
        speeds: Mapping[str, float],
        stamp_ns: int,
        now_ns: int,
    ) -> None:
        """Take in measured joints; speeds that are not measured follow from the positions.

        Joints that are not limited, a gripper's for instance, may come in messages of their own.
        """
        if not any(name in positions for name in self._config.joints.names):
            return
        measured_ns = stamp_ns or now_ns
        passed_s = (measured_ns - self._joints_ns) / 1e9
        derived: dict[str, float] = {}
        if passed_s == 0:  # a message that is repeated is no arm that stands
            derived = self._speeds
        elif passed_s > 0:
            derived = {
                name: (value - self._joints[name]) / passed_s
                for name, value in positions.items()
                if name in self._joints
            }
        self._speeds = derived | dict(speeds)
        self._joints = dict(positions)
        self._joints_ns = measured_ns
        self._joints_fresh.receive(stamp_ns, now_ns)

    def forbids(self, now_ns: int) -> list[str]:
        """Why nothing may move now: no_pose, no_joint_states, joint_position, joint_velocity."""
        reasons: list[str] = []
        timeout_s = self._config.state_timeout_s
        if self._config.has_workspace and (
            self._position_m is None or self._pose_fresh.is_old(now_ns, timeout_s)
        ):
            reasons.append('no_pose')
        limits = self._config.joints
        if not limits.names:
            return reasons
        positions = [self._joints.get(name, math.nan) for name in limits.names]
        if self._joints_fresh.is_old(now_ns, timeout_s) or not np.isfinite(positions).all():
            return [*reasons, 'no_joint_states']
        ranges = zip(positions, limits.lower_rad, limits.upper_rad, strict=True)
        margin = limits.margin_rad
        if any(not low + margin <= q <= high - margin for q, low, high in ranges):
            reasons.append('joint_position')
        if limits.velocity_rad_s:
            speeds = [self._speeds.get(name, 0.0) for name in limits.names]
            # "not <=" also holds an arm whose speed is NaN.
            if any(
                not abs(speed) <= limit
                for speed, limit in zip(speeds, limits.velocity_rad_s, strict=True)
            ):
                reasons.append('joint_velocity')
        return reasons
