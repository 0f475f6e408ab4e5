"""Where to grasp an object from above, from the corners of its collision geometry."""

from dataclasses import dataclass

import numpy as np

MAX_OPENING_M = 0.079
"""Gap between the pads of the open Panda gripper."""

_ANGLES_RAD = np.deg2rad(np.arange(0, 180, 5))
_HOME_ANGLE_RAD = np.pi / 2
_TURN_COST_M_PER_RAD = 0.012
_FINGER_REACH_M = 0.034
_TIP_M = 0.007
_PAD_HALF_HEIGHT_M = 0.008


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

    @property
    def axis(self) -> np.ndarray:
        """Unit vector of the closing axis, float64 [2]."""
        return np.array([np.cos(self.angle_rad), np.sin(self.angle_rad)])


def angle_difference(a: float, b: float) -> float:
    """a - b for axes (modulo pi), in (-pi/2, pi/2]."""
    return float((a - b + np.pi / 2) % np.pi - np.pi / 2)


def across_narrowest(points_m: np.ndarray, previous: Grasp | None = None) -> Grasp:
    """Grasp a convex object centrally, across its narrowest horizontal extent.

    Turning the hand away from its home direction is charged 12 mm of width per radian, so round
    and nearly square objects are taken without turning. The angle of the previous step is kept
    unless another is better by 4 mm: no flicker between equals.

    Args:
        points_m: float64 [n, 3], the object's corners in the world.
        previous: The grasp chosen in the previous control step.
    """
    low, high = points_m[:, 2].min(), points_m[:, 2].max()
    height = max((low + high) / 2 - 0.002, high - _FINGER_REACH_M, low + _TIP_M)
    # Only what the pads can meet counts: a bottle is gripped at its neck.
    near = points_m[np.abs(points_m[:, 2] - height) < 3 * _PAD_HALF_HEIGHT_M][:, :2]
    near = points_m[:, :2] if len(near) < 8 else near
    directions = np.stack([np.cos(_ANGLES_RAD), np.sin(_ANGLES_RAD)])
    along = near @ directions
    widths = along.max(axis=0) - along.min(axis=0)
    turns = np.array([abs(angle_difference(angle, _HOME_ANGLE_RAD)) for angle in _ANGLES_RAD])
    costs = widths + _TURN_COST_M_PER_RAD * turns
    best = int(costs.argmin())
    if previous is not None:
        kept = int(
            np.argmin([abs(angle_difference(a, previous.angle_rad)) for a in _ANGLES_RAD])
        )
        best = kept if costs[kept] < costs[best] + 0.004 else best
    angle = _ANGLES_RAD[best]
    axis = directions[:, best]
    normal = np.array([-axis[1], axis[0]])
    across = near @ normal
    centre = (along[:, best].max() + along[:, best].min()) / 2 * axis
    centre = centre + (across.max() + across.min()) / 2 * normal
    return Grasp(
        position_m=np.array([*centre, height]),
        angle_rad=float(angle),
        width_m=float(widths[best]),
        depth_m=float(high - height + _TIP_M),
    )
