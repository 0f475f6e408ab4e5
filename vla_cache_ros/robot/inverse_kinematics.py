"""Differential inverse kinematics: joints that take the tool to a target nearby.

One step, repeated until the tool is there:

    e  = W (p* - p, log(R* R^T))            error; W = diag(1, 1, 1, w, w, w), w metres per radian
    J  = W J(q) = U diag(s) V^T             Jacobian, weighted alike
    dq = V diag(s_i / (s_i^2 + l_i^2)) U^T e    damped least squares
    l_i^2 = l_max^2 (1 - (s_i / s_0)^2) where s_i < s_0, else 0
    q  = clip(q + dq, lower, upper)

Damping acts on the directions that the arm is about to lose (small singular values s_i), and on no
other: away from singularities the tool goes where it is told. A joint that a step would take
beyond its bound is put on the bound and the step repeated with the other joints for what is left
of the error. The bounds are the joint's limits and what its speed allows within one control step.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vla_cache_ros.core.errors import ConfigError, RobotError
from vla_cache_ros.robot.kinematics import Kinematics, Pose

_DAMPED_BELOW = 0.02  # s_0: metres per radian of joint
_DAMPING = 0.02  # l_max, the same unit
_MAX_STEPS = 30
_CLOSE_M = 1e-7  # a weighted error, or a step of the joints, below which nothing is left to do


@dataclass(frozen=True)
class IkConfig:
    """When the tool has arrived.

    Attributes:
        position_tolerance_m: Greatest distance from the target's point, metres.
        rotation_tolerance_rad: Greatest angle from the target's orientation; pi or more: the
            orientation is approached and need not be reached, as with five joints.
        rotation_weight_m: Metres that a radian is worth where not both can be reached.
    """

    position_tolerance_m: float = 1e-3
    rotation_tolerance_rad: float = 0.01
    rotation_weight_m: float = 0.2

    def __post_init__(self) -> None:
        """Check that all are positive.

        Raises:
            ConfigError: One is not.
        """
        values = (self.position_tolerance_m, self.rotation_tolerance_rad, self.rotation_weight_m)
        if not all(value > 0 for value in values):
            raise ConfigError(
                'position_tolerance_m, rotation_tolerance_rad and rotation_weight_m are '
                f'{values}; valid: above 0.'
            )


def solve(
    kinematics: Kinematics,
    start: NDArray[np.float64],
    target: Pose,
    lower: NDArray[np.float64],
    upper: NDArray[np.float64],
    config: IkConfig,
) -> NDArray[np.float64]:
    """Find joints within bounds that take the tool to a target.

    Args:
        kinematics: The arm.
        start: Joints to begin from, [N], within the bounds.
        target: Where the tool is wanted.
        lower: Least position, [N].
        upper: Greatest position, [N].
        config: When it has arrived.

    Returns:
        Joints, [N].

    Raises:
        RobotError: They do not take it there; which bounds or singularity stand against it.
    """
    weight = np.repeat((1.0, config.rotation_weight_m), 3)
    joints = start
    for _ in range(_MAX_STEPS):
        error = _error(kinematics, joints, target)
        if np.linalg.norm(weight * error) < _CLOSE_M:
            break
        jacobian = weight[:, None] * kinematics.jacobian(joints)
        following = _bounded_step(jacobian, weight * error, joints, lower, upper)
        is_stuck = np.abs(following - joints).max() < _CLOSE_M
        joints = following
        if is_stuck:
            break
    error = _error(kinematics, joints, target)
    _check(kinematics, joints, error, lower, upper, config)
    return joints


def _error(
    kinematics: Kinematics, joints: NDArray[np.float64], target: Pose
) -> NDArray[np.float64]:
    """What is left, [6]: metres, then radians, along the base's axes."""
    pose = kinematics.pose(joints)
    turn = kinematics.log(target.rotation @ pose.rotation.T)
    return np.concatenate([target.position_m - pose.position_m, turn])


def _bounded_step(
    jacobian: NDArray[np.float64],
    error: NDArray[np.float64],
    joints: NDArray[np.float64],
    lower: NDArray[np.float64],
    upper: NDArray[np.float64],
) -> NDArray[np.float64]:
    """One damped step, with the joints that reach a bound held there."""
    is_free = np.ones(len(joints), bool)
    following = joints.copy()
    left = error
    while is_free.any():
        proposed = following.copy()
        proposed[is_free] = joints[is_free] + _damped(jacobian[:, is_free], left)
        beyond = is_free & ((proposed < lower) | (proposed > upper))
        if not beyond.any():
            return proposed
        following[beyond] = np.clip(proposed, lower, upper)[beyond]
        is_free &= ~beyond
        held = ~is_free
        left = error - jacobian[:, held] @ (following - joints)[held]
    return following


def _damped(jacobian: NDArray[np.float64], error: NDArray[np.float64]) -> NDArray[np.float64]:
    """Damped least squares by the singular value decomposition, [free joints]."""
    left, values, right = np.linalg.svd(jacobian, full_matrices=False)
    share = np.clip(1 - (values / _DAMPED_BELOW) ** 2, 0, 1)
    gain = values / (values**2 + _DAMPING**2 * share)
    return right.T @ (gain * (left.T @ error))


def _check(
    kinematics: Kinematics,
    joints: NDArray[np.float64],
    error: NDArray[np.float64],
    lower: NDArray[np.float64],
    upper: NDArray[np.float64],
    config: IkConfig,
) -> None:
    distance_m, angle_rad = np.linalg.norm(error[:3]), np.linalg.norm(error[3:])
    if distance_m <= config.position_tolerance_m and angle_rad <= config.rotation_tolerance_rad:
        return
    at_bound = (joints <= lower) | (joints >= upper)
    stopped = [
        name
        for name, is_stopped in zip(kinematics.joint_names, at_bound, strict=True)
        if is_stopped
    ]
    smallest = np.linalg.svd(kinematics.jacobian(joints), compute_uv=False)[-1]
    raise RobotError(
        f'the target is {1e3 * distance_m:.1f} mm and {angle_rad:.3f} rad out of reach; valid: '
        f'{1e3 * config.position_tolerance_m:g} mm and {config.rotation_tolerance_rad:g} rad. '
        f'Joints at a limit of position or speed: {", ".join(stopped) or "none"}; smallest '
        f'singular value {smallest:.3f}. Command smaller steps, or lead the arm away from there.'
    )
