"""The limits of what may reach the robot, and the refusal of limits that contradict each other."""

import math
from dataclasses import dataclass

from vla_cache_ros.core.errors import ConfigError, UnknownNameError

AXES = ('x', 'y', 'z', 'rx', 'ry', 'rz', 'gripper')
LIMIT_POLICIES = ('clip', 'null')


@dataclass(frozen=True)
class JointLimits:
    """Limits of the arm's joints.

    Attributes:
        names: Joints as in the joint states; empty: joints are not checked.
        lower_rad: Least position of each.
        upper_rad: Greatest position of each.
        velocity_rad_s: Greatest speed of each; empty: not checked.
        margin_rad: Distance from a limit at which the arm is held.
    """

    names: tuple[str, ...] = ()
    lower_rad: tuple[float, ...] = ()
    upper_rad: tuple[float, ...] = ()
    velocity_rad_s: tuple[float, ...] = ()
    margin_rad: float = 0.0

    def __post_init__(self) -> None:
        """Check that each joint has its limits and room between them.

        Raises:
            ConfigError: It has not.
        """
        count = len(self.names)
        if len(set(self.names)) != count:
            raise ConfigError(f'joint_names are {self.names}; valid: each joint once.')
        sizes = (len(self.lower_rad), len(self.upper_rad))
        if sizes != (count, count) or len(self.velocity_rad_s) not in (0, count):
            raise ConfigError(
                f'{count} joint_names, but {sizes[0]} joint_lower_limits_rad, {sizes[1]} '
                f'joint_upper_limits_rad and {len(self.velocity_rad_s)} '
                'joint_velocity_limits_rad_s; valid: one of each per joint (no velocities: not '
                'checked).'
            )
        if not (math.isfinite(self.margin_rad) and self.margin_rad >= 0):
            raise ConfigError(f'joint_margin_rad is {self.margin_rad}; valid: at least 0.')
        for name, low, high in zip(self.names, self.lower_rad, self.upper_rad, strict=True):
            # Infinite limits are for joints without any; the comparison refuses NaN.
            if not low + self.margin_rad < high - self.margin_rad:
                raise ConfigError(
                    f'joint {name} may move from {low} to {high} rad, which leaves no room '
                    f'within a joint_margin_rad of {self.margin_rad}.'
                )
        if not all(speed > 0 for speed in self.velocity_rad_s):
            raise ConfigError(
                f'joint_velocity_limits_rad_s are {self.velocity_rad_s}; valid: above 0.'
            )


@dataclass(frozen=True)
class GuardConfig:
    """Limits of what may pass.

    Of the limits in SI units, 0 (or an empty box) means: not checked.

    Attributes:
        lower: Least value per axis (AXES), the action's own units; <= 0 but for the gripper.
        upper: Greatest value per axis; >= 0 but for the gripper.
        on_limit: 'clip' a value out of limits to the limit (a vector: scale it down, keeping its
            direction), or send the 'null' action.
        max_age_ms: Greatest age of an action's observation, milliseconds. The last action of a
            chunk is as old as the chunk's execution plus the inference.
        max_future_ms: How far a stamp may lie ahead of the clock, milliseconds.
        initial_gripper: Gripper value of null actions before the first command (-1: open).
        period_s: Time from one command to the next.
        position_scale_m: Metres per unit of the action's first three axes.
        rotation_scale_rad: Radians per unit of the next three.
        max_linear_velocity_m_s: Greatest speed of the end effector.
        max_angular_velocity_rad_s: Greatest speed of rotation.
        max_linear_acceleration_m_s2: Greatest change of velocity per time; always clipped.
        max_angular_acceleration_rad_s2: The same of rotation.
        max_linear_jump_m: Greatest difference of an action's displacement from the one before.
        max_angular_jump_rad: The same of rotation.
        gripper_interval_s: Least time between two switches of the gripper.
        workspace_lower_m: Corner of the box that the end effector stays in, [3], base frame.
        workspace_upper_m: The opposite corner.
        joints: Limits of the joints.
        state_timeout_s: Age of the measured state beyond which workspace and joint limits cannot
            be watched, so that nothing but the null action is sent.
    """

    lower: tuple[float, ...] = (-1.0,) * 7
    upper: tuple[float, ...] = (1.0,) * 7
    on_limit: str = 'clip'
    max_age_ms: float = 1000.0
    max_future_ms: float = 5.0
    initial_gripper: float = -1.0
    period_s: float = 0.05
    position_scale_m: float = 1.0
    rotation_scale_rad: float = 1.0
    max_linear_velocity_m_s: float = 0.0
    max_angular_velocity_rad_s: float = 0.0
    max_linear_acceleration_m_s2: float = 0.0
    max_angular_acceleration_rad_s2: float = 0.0
    max_linear_jump_m: float = 0.0
    max_angular_jump_rad: float = 0.0
    gripper_interval_s: float = 0.0
    workspace_lower_m: tuple[float, ...] = ()
    workspace_upper_m: tuple[float, ...] = ()
    joints: JointLimits = JointLimits()
    state_timeout_s: float = 0.2

    def __post_init__(self) -> None:
        """Check that the null action is within the limits, and that each limit leaves room.

        Raises:
            ConfigError: A limit contradicts another one or is not finite.
        """
        if self.on_limit not in LIMIT_POLICIES:
            raise UnknownNameError('limit policy', self.on_limit, LIMIT_POLICIES)
        self._check_axes()
        self._check_workspace()
        if not self.max_age_ms > 0 or not self.max_future_ms >= 0:
            raise ConfigError(
                f'max_age_ms must be > 0 and max_future_ms >= 0; got {self.max_age_ms} and '
                f'{self.max_future_ms}.'
            )
        for name in ('period_s', 'position_scale_m', 'rotation_scale_rad', 'state_timeout_s'):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise ConfigError(f'{name} is {value}; valid: above 0, and finite.')
        for name in _NOT_NEGATIVE:
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ConfigError(f'{name} is {value}; valid: above 0, or 0: not checked.')

    @property
    def has_workspace(self) -> bool:
        """Whether the end effector's place is limited."""
        return bool(self.workspace_lower_m)

    def _check_axes(self) -> None:
        null = (0.0,) * 6 + (self.initial_gripper,)
        if len(self.lower) != 7 or len(self.upper) != 7:
            raise ConfigError(f'limits need one value for each of {AXES}.')
        for axis, low, value, high in zip(AXES, self.lower, null, self.upper, strict=True):
            if not (math.isfinite(low) and math.isfinite(high) and low <= value <= high):
                raise ConfigError(
                    f'limits of {axis} are [{low}, {high}]; valid: finite, around {value}, '
                    'the value of the null action.'
                )

    def _check_workspace(self) -> None:
        corners = (self.workspace_lower_m, self.workspace_upper_m)
        if corners == ((), ()):
            return
        if [len(corner) for corner in corners] != [3, 3] or not all(
            math.isfinite(low) and math.isfinite(high) and low < high
            for low, high in zip(*corners, strict=True)
        ):
            raise ConfigError(
                f'workspace_lower_m is {corners[0]} and workspace_upper_m {corners[1]}; valid: '
                'three finite numbers each, every lower one below its upper one, or both empty.'
            )


_NOT_NEGATIVE = (
    'max_linear_velocity_m_s',
    'max_angular_velocity_rad_s',
    'max_linear_acceleration_m_s2',
    'max_angular_acceleration_rad_s2',
    'max_linear_jump_m',
    'max_angular_jump_rad',
    'gripper_interval_s',
)
