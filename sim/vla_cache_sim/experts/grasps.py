"""Where to grasp an object from above, from the corners of its collision geometry."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

MAX_OPENING_M = 0.079
"""Gap between the pads of the open Panda gripper."""

MIN_STRETCH_M, MAX_STRETCH_M = 0.32, 0.70
"""Limits of the distance from shoulder to wrist, see `wrist_stretch_m`."""

HOME_ANGLE_RAD = np.pi / 2
"""Direction of the closing axis in the arm's home position."""

_ANGLES_RAD = np.deg2rad(np.arange(0, 180, 5))
_AXES = np.stack([np.cos(_ANGLES_RAD), np.sin(_ANGLES_RAD)])
_NORMALS = np.stack([-_AXES[1], _AXES[0]])
_SHIFTS_M = np.array([0.0, -0.01, 0.01, -0.02, 0.02, -0.03, 0.03])
_WRIST_ABOVE_GRIP_M = 0.21
_WRIST_OFFSET_M = 0.088
_STRETCH_COST = 3.0
_TURN_COST_M_PER_RAD = 0.012
_SHIFT_COST = 0.3
_BLOCKED_COST_M = 0.04
_BLOCKED_WIDTH_RAD = 0.3
_FINGER_REACH_M = 0.034
_TIP_M = 0.007
_PAD_HALF_HEIGHT_M = 0.008
_PALM_ABOVE_GRIP_M = 0.030
_PALM_HALF_LENGTH_M = 0.11
_PALM_HALF_WIDTH_M = 0.04
_FINGER_OFFSET_M = 0.048
_FINGER_HALF_THICKNESS_M = 0.014
_FINGER_HALF_WIDTH_M = 0.014

_RIM_ANGLES_RAD = np.deg2rad(np.arange(0, 360, 10))
_RIM_AXES = np.stack([np.cos(_RIM_ANGLES_RAD), np.sin(_RIM_ANGLES_RAD)])
_RIM_DEPTH_M = 0.03
_RIM_SIDE_COST_M = 0.02
_RIM_SIDE_RAD = np.pi / 2
_WALL_LEAN = 0.3
"""Slope of a bowl's wall, horizontal over vertical."""
_RIM_INSET_M = 0.006


@dataclass(frozen=True)
class Grasp:
    """A vertical grasp: fingers point down and close along one horizontal axis."""

    position_m: np.ndarray
    """Where the grip site has to be, float64 [3]."""
    angle_rad: float
    """Direction of the closing axis in the world's xy plane, modulo pi."""
    width_m: float
    """Extent of what ends up between the pads."""
    depth_m: float
    """How far the fingertips reach below the top of the object at the grasp."""
    shift_m: float = 0.0
    """Displacement from the object's centre, across the closing axis."""

    @property
    def axis(self) -> np.ndarray:
        """Unit vector of the closing axis, float64 [2]."""
        return np.array([np.cos(self.angle_rad), np.sin(self.angle_rad)])


def angle_difference(a: Any, b: Any) -> Any:
    """A - b for axes (modulo pi), in [-pi/2, pi/2); numbers or arrays."""
    return (a - b + np.pi / 2) % np.pi - np.pi / 2


def wrist_stretch_m(grip_m: np.ndarray, shoulder_m: np.ndarray) -> np.ndarray:
    """Distance from the shoulder to the wrist's centre when the hand points straight down.

    The Panda's elbow is straight at 0.72 m; beyond that pose it folds over, and the
    operational-space controller cannot bring it back.

    Args:
        grip_m: float64 [..., 3], positions of the grip site.
        shoulder_m: float64 [3].

    Returns:
        float64 [...].
    """
    offset = grip_m - shoulder_m
    radius = np.hypot(offset[..., 0], offset[..., 1]) - _WRIST_OFFSET_M
    return np.hypot(radius, offset[..., 2] + _WRIST_ABOVE_GRIP_M)


def within_reach(grip_m: np.ndarray, shoulder_m: np.ndarray) -> np.ndarray:
    """Move a goal for the grip site to where the elbow is neither straight nor fully folded."""
    offset = grip_m - shoulder_m
    radius = float(np.hypot(*offset[:2]))
    wrist = np.array([radius - _WRIST_OFFSET_M, offset[2] + _WRIST_ABOVE_GRIP_M])
    stretch = float(np.hypot(*wrist))
    wrist *= np.clip(stretch, MIN_STRETCH_M, MAX_STRETCH_M) / max(stretch, 1e-6)
    share = (wrist[0] + _WRIST_OFFSET_M) / max(radius, 1e-6)
    height = wrist[1] - _WRIST_ABOVE_GRIP_M
    return shoulder_m + np.array([*(share * offset[:2]), height])


def across_narrowest(
    points_m: np.ndarray,
    obstacles_m: np.ndarray,
    previous: Grasp | None = None,
    blocked: Sequence[float] = (),
) -> Grasp:
    """Grasp a convex object across its narrowest horizontal extent, where the hand has room.

    Candidates are all angles, centred or shifted along the object; the cheapest is taken:

        cost_m = width + 0.012 |turn from home| + 0.3 |shift| + (0.05 + penetration of the hand)

    so round and nearly square objects are taken without turning, and the last term is what turns
    or shifts the hand where a taller neighbour stands under the palm.

    Args:
        points_m: float64 [n, 3], the object's corners in the world.
        obstacles_m: float64 [m, 3], points of everything else that is not the ground.
        previous: The grasp chosen in the previous control step; it is kept unless another is
            better by 4 mm, so that equals do not flicker.
        blocked: Angles at which the hand has met something, rad; taken last.
    """
    low, high = points_m[:, 2].min(), points_m[:, 2].max()
    height = max((low + high) / 2 - 0.002, high - _FINGER_REACH_M, low + _TIP_M)
    # Only what the pads can meet counts: a bottle is gripped at its neck.
    near = points_m[np.abs(points_m[:, 2] - height) < 3 * _PAD_HALF_HEIGHT_M][:, :2]
    near = points_m[:, :2] if len(near) < 8 else near

    along = near @ _AXES  # [n, angles]
    across = near @ _NORMALS
    width = np.ptp(along, axis=0)
    length = np.ptp(across, axis=0)
    turn = np.abs(angle_difference(_ANGLES_RAD, HOME_ANGLE_RAD))
    middle_along = (along.max(axis=0) + along.min(axis=0)) / 2
    middle_across = (across.max(axis=0) + across.min(axis=0)) / 2
    centre = middle_along * _AXES + middle_across * _NORMALS  # [2, angles]

    # [angles, shifts]
    shift = np.broadcast_to(_SHIFTS_M, (len(_ANGLES_RAD), len(_SHIFTS_M)))
    cost = (width + _TURN_COST_M_PER_RAD * turn)[:, None] + _SHIFT_COST * np.abs(shift)
    cost = cost + _hand_cost(centre, _AXES, height, _SHIFTS_M, obstacles_m)
    cost = np.where(width[:, None] > MAX_OPENING_M - 0.004, cost + 1.0, cost)
    cost = np.where(np.abs(shift) > np.maximum(length / 2 - 0.012, 0.0)[:, None], np.inf, cost)
    if len(blocked):
        turned = np.abs(angle_difference(_ANGLES_RAD[:, None], np.asarray(blocked)))
        cost = cost + _BLOCKED_COST_M * (turned < _BLOCKED_WIDTH_RAD).any(axis=1)[:, None]
    angle_index, shift_index = np.unravel_index(cost.argmin(), cost.shape)
    if previous is not None:
        kept_angle = int(np.abs(angle_difference(_ANGLES_RAD, previous.angle_rad)).argmin())
        kept_shift = int(np.abs(_SHIFTS_M - previous.shift_m).argmin())
        if cost[kept_angle, kept_shift] < cost[angle_index, shift_index] + 0.004:
            angle_index, shift_index = kept_angle, kept_shift
    chosen_shift = float(_SHIFTS_M[shift_index])
    position = centre[:, angle_index] + chosen_shift * _NORMALS[:, angle_index]
    return Grasp(
        position_m=np.array([*position, height]),
        angle_rad=float(_ANGLES_RAD[angle_index]),
        width_m=float(width[angle_index]),
        depth_m=float(high - height + _TIP_M),
        shift_m=chosen_shift,
    )


def on_rim(
    position_m: np.ndarray,
    rotation: np.ndarray,
    points_m: np.ndarray,
    obstacles_m: np.ndarray,
    shoulder_m: np.ndarray,
    goal_m: np.ndarray,
    previous: Grasp | None = None,
    blocked: Sequence[float] = (),
) -> Grasp:
    """Grasp the wall of an open round vessel: one finger inside, one outside.

    Candidates are directions around the rim; the cheapest is taken, in metres:

        cost = 0.012 |turn from home| + 0.3 (1 - verticality of the wall)
               + 0.01 (1 - cos(angle from the +y side)) + (0.05 + penetration of the hand)
               + 3 max(0, stretch - 0.66, 0.36 - stretch, stretch at the destination - 0.69)

    The third term breaks the symmetry of the rim: a learner that saw both sides equally often
    would average them and close the gripper in the middle of the bowl.

    Args:
        position_m: float64 [3], the vessel's centre.
        rotation: float64 [3, 3], the vessel's axes; the third is that of its symmetry.
        points_m: float64 [n, 3], points on the vessel.
        obstacles_m: float64 [m, 3], points of everything else that is not the ground.
        shoulder_m: float64 [3], see `wrist_stretch_m`.
        goal_m: float64 [3], where the vessel's centre is to go.
        previous: The grasp chosen in the previous control step, see `across_narrowest`.
        blocked: Angles at which the hand has met something, rad; taken last.
    """
    local = (points_m - position_m) @ rotation
    height = local[:, 2].max()
    radius = np.linalg.norm(local[local[:, 2] > height - 0.004, :2], axis=1).mean()
    outward = np.concatenate([_RIM_AXES, np.zeros((1, _RIM_AXES.shape[1]))])  # [3, directions]
    in_vessel = rotation.T @ outward
    in_vessel[:2] *= radius / np.linalg.norm(in_vessel[:2], axis=0)
    in_vessel[2] = height
    rim = position_m[:, None] + rotation @ in_vessel
    grip = rim - _RIM_INSET_M * outward - np.array([[0.0], [0.0], [_RIM_DEPTH_M]])

    turn = np.abs(angle_difference(_RIM_ANGLES_RAD, HOME_ANGLE_RAD))
    # The wall runs down from the rim along the vessel's axis, leaning inwards.
    wall = _WALL_LEAN * in_vessel[:2] / radius
    verticality = rotation[2] @ np.concatenate([wall, np.ones((1, wall.shape[1]))])
    verticality = verticality / np.hypot(1.0, _WALL_LEAN)
    cost = _TURN_COST_M_PER_RAD * turn - 0.3 * verticality
    cost = cost + _RIM_SIDE_COST_M / 2 * (1 - np.cos(_RIM_ANGLES_RAD - _RIM_SIDE_RAD))
    hand = _hand_cost(grip[:2], _RIM_AXES, float(grip[2].min()), np.zeros(1), obstacles_m)
    stretch = wrist_stretch_m(grip.T + (0.0, 0.0, 0.1), shoulder_m)
    excess = np.maximum(stretch - MAX_STRETCH_M + 0.04, MIN_STRETCH_M + 0.04 - stretch)
    # The hand is to reach the destination with the vessel hanging on the same side.
    at_goal = wrist_stretch_m(goal_m + grip.T - position_m, shoulder_m)
    excess = np.maximum(excess, at_goal - MAX_STRETCH_M + 0.01)
    cost = cost + hand[:, 0] + _STRETCH_COST * np.maximum(excess, 0.0)
    if len(blocked):
        turned = (_RIM_ANGLES_RAD[:, None] - np.asarray(blocked) + np.pi) % (2 * np.pi) - np.pi
        cost = cost + _BLOCKED_COST_M * (np.abs(turned) < _BLOCKED_WIDTH_RAD).any(axis=1)
    best = int(cost.argmin())
    if previous is not None:
        turned = (_RIM_ANGLES_RAD - previous.angle_rad + np.pi) % (2 * np.pi) - np.pi
        kept = int(np.abs(turned).argmin())
        best = kept if cost[kept] < cost[best] + 0.004 else best
    return Grasp(
        position_m=grip[:, best],
        angle_rad=float(_RIM_ANGLES_RAD[best]),
        width_m=0.02,
        depth_m=_RIM_DEPTH_M + _TIP_M,
    )


def _hand_cost(
    centre_m: np.ndarray,
    axes: np.ndarray,
    height_m: float,
    shifts_m: np.ndarray,
    obstacles_m: np.ndarray,
) -> np.ndarray:
    """Cost of what would be in the way of the open hand at a grasp.

    Args:
        centre_m: float64 [2, angles], grasp position for each candidate angle.
        axes: float64 [2, angles], closing axes.
        height_m: Height of the grip site.
        shifts_m: float64 [shifts], displacements across the closing axis.
        obstacles_m: float64 [m, 3].

    Returns:
        float64 [angles, shifts]: 0 where palm and fingers are free, else 0.05 + the depth of
        penetration for the palm, 0.03 + the depth for a finger.
    """
    reach = np.hypot(_PALM_HALF_LENGTH_M, _PALM_HALF_WIDTH_M) + 0.08
    near = np.linalg.norm(obstacles_m[:, :2] - centre_m.mean(axis=1), axis=1) < reach
    near &= obstacles_m[:, 2] > height_m - _TIP_M - 0.004
    points = obstacles_m[near]
    cost = np.zeros((centre_m.shape[1], len(shifts_m)))
    if not len(points):
        return cost
    normals = np.stack([-axes[1], axes[0]])
    offset = points[:, :2, None] - centre_m  # [m, 2, angles]
    along = np.abs((offset * axes).sum(axis=1))[:, :, None]  # [m, angles, 1]
    across = np.abs((offset * normals).sum(axis=1)[:, :, None] - shifts_m)
    palm = np.minimum(_PALM_HALF_LENGTH_M - along, _PALM_HALF_WIDTH_M - across)
    palm = palm[points[:, 2] > height_m + _PALM_ABOVE_GRIP_M].max(axis=0, initial=0.0)
    finger = np.minimum(
        _FINGER_HALF_THICKNESS_M - np.abs(along - _FINGER_OFFSET_M), _FINGER_HALF_WIDTH_M - across
    ).max(axis=0, initial=0.0)
    return cost + np.where(palm > 0, 0.05 + palm, 0) + np.where(finger > 0, 0.03 + finger, 0)
