"""The pick-and-place expert for libero_object and libero_spatial.

The expert is a function of the simulator's present state: each step it measures where the gripper
is relative to a grasp of the target, what it holds, and where that is relative to the destination,
and infers the phase from these alone. Whoever drove the robot there, a missed grasp, a drop or a
pushed object simply is another state. Its only memory is the chosen grasp angle (against
flicker) and how long it has tried to close (against waiting for ever).

    action[:3] = clip(2 (x_goal - x) / 0.05, -1, 1)           translation, 0.05 m per unit
    action[3:6] = clip(2 log(R_goal R^T) / 0.5, -0.5, 0.5)     rotation vector, 0.5 rad per unit
"""

from typing import Any

import gymnasium
import numpy as np

from vla_cache_ros.core.errors import ConfigError
from vla_cache_sim.experts.grasps import (
    MAX_OPENING_M,
    Grasp,
    across_narrowest,
    angle_difference,
    on_rim,
    within_reach,
)
from vla_cache_sim.libero import LiberoEnv
from vla_cache_sim.scene import Scene

OPEN, CLOSE = -1.0, 1.0

_GAIN = 2.0
_METRES_PER_UNIT = 0.05
_RADIANS_PER_UNIT = 0.5
_MAX_ROTATION = 0.5
_SLACK_STEPS = 3
_STILL_STEPS = 12
_RIM_LIFT_M = 0.012
"""Limit of one upward step while a wall is held: quick jerks pull it out of the fingers."""
_EMPTY_M = 0.003
"""Opening below which the closed fingers hold nothing."""
_OPENING_SPEED_M_S = 0.05
_HOVER_M = 0.05
"""Height of the fingertips above the object's top before they straddle it."""
_CLEARANCE_M = 0.025
"""Height kept above anything that is passed over."""


class Expert:
    """Scripted pick and place from ground truth."""

    def __init__(self, scene: Scene) -> None:
        """Work on one scene; `reset` forgets the episode."""
        self.scene = scene
        self.phase = 'approach'
        self._grasp: Grasp | None = None
        self._closing_steps = 0
        self._slack_steps = _SLACK_STEPS
        self._blocked_angles: list[float] = []
        self._still_steps = 0
        self._last_position_m = np.zeros(3)
        pose = scene.pose(scene.target)
        extent = np.ptp((scene.points_m(scene.target) - pose.position_m) @ pose.rotation, axis=0)
        self._has_rim = bool(extent[:2].min() > MAX_OPENING_M)
        self._goal_contains = scene.goal != scene.goal_object

    def reset(self) -> None:
        """Forget the episode."""
        self.phase = 'approach'
        self._grasp = None
        self._closing_steps = 0
        self._slack_steps = _SLACK_STEPS
        self._blocked_angles.clear()
        self._still_steps = 0

    def act(self) -> np.ndarray:
        """The expert's action in the simulator's present state.

        Returns:
            float32 [7], see `LiberoEnv`.
        """
        if self._holds():
            self._closing_steps = 0
            return self._carry()
        if self._delivered():
            self.phase = 'retreat'
            gripper = self.scene.gripper_pose().position_m
            return self._move(gripper + (0.0, 0.0, 0.03), self._finger_angle(), OPEN)
        return self._pick()

    def _holds(self) -> bool:
        """Whether the target is between the fingers, closed around it.

        Either both fingers touch it, or one does and the fingers stand still part of the way:
        contacts flicker on thin walls. Two steps without any contact are forgiven.
        """
        touches = self.scene.touches_fingers(self.scene.target)
        opening, speed = self.scene.gripper_opening_m(), self.scene.gripper_speed_m_s()
        if speed > _OPENING_SPEED_M_S:
            return False
        blocked = _EMPTY_M < opening < MAX_OPENING_M - 0.006 and abs(speed) < 0.03
        if all(touches) or (any(touches) and blocked):
            self._slack_steps = 0
            return True
        self._slack_steps += 1
        return self._slack_steps < _SLACK_STEPS and opening > _EMPTY_M

    def _delivered(self) -> bool:
        """Whether the object left the hand over its destination, and falls or lies there."""
        offset = self.scene.target_position_m() - self.scene.goal_position_m()
        limit = 0.05 if self._goal_contains else 0.025
        bottom = self.scene.points_m(self.scene.target)[:, 2].min()
        return bool(np.hypot(*offset[:2]) < limit and bottom < self._release_height_m() + 0.015)

    # Pick: above the object, down around it, close.

    def _pick(self) -> np.ndarray:
        scene = self.scene
        grasp = self._grasp = self._plan_grasp()
        gripper = scene.gripper_pose().position_m
        opening = scene.gripper_opening_m()
        offset = grasp.position_m - gripper
        along = abs(offset[:2] @ grasp.axis)
        across = float(np.hypot(*(offset[:2] - (offset[:2] @ grasp.axis) * grasp.axis)))
        turn = abs(angle_difference(grasp.angle_rad, self._finger_angle()))
        slack = (MAX_OPENING_M - grasp.width_m) / 2

        # 0 where the open fingers straddle the object, 1 where they have to be above it.
        misaligned = max(
            (along - max(0.5 * slack, 0.004)) / 0.015,
            (across - 0.008) / 0.02,
            (turn - 0.08) / 0.2,
        )
        ready = opening > min(grasp.width_m + 0.012, MAX_OPENING_M - 0.006)
        reached = misaligned <= 0.3 and abs(offset[2]) < 0.012
        if (reached and ready) or (
            self._closing_steps > 0 and misaligned < 0.8 and abs(offset[2]) < 0.02
        ):
            self._closing_steps += 1
            if self._closing_steps <= 14:
                self.phase = 'close'
                return self._move(grasp.position_m, grasp.angle_rad, CLOSE)
        elif opening > MAX_OPENING_M - 0.01:
            self._closing_steps = 0
        # Above first, then down.
        blocked = float(np.clip(max(misaligned, 0.0 if ready else 1.0), 0.0, 1.0))
        above = grasp.depth_m + _HOVER_M
        height = grasp.position_m[2] + blocked * above
        if misaligned > 1:
            top = self._obstacle_top_m(gripper[:2], grasp.position_m[:2], 0.15, radius_m=0.055)
            height = max(height, top + _CLEARANCE_M)
        goal = np.array([*grasp.position_m[:2], height])
        # Too low to move sideways: rise before anything else.
        lack = height - gripper[2]
        sideways = np.clip(1.5 - lack / 0.03, 0.0, 1.0) if blocked > 0 else 1.0
        if turn > 0.2 and misaligned > 1:
            # The hand is as wide as 22 cm: beside something tall it turns before it goes on.
            top = self._obstacle_top_m(gripper[:2], grasp.position_m[:2], 0.1, radius_m=0.12)
            sideways *= 0.2 if top > gripper[2] else 1.0
        goal[:2] = gripper[:2] + sideways * (goal[:2] - gripper[:2])
        self.phase = 'descend' if blocked < 0.5 else 'approach'
        self._notice_blocked(gripper, grasp)
        return self._move(goal, grasp.angle_rad, OPEN)

    def _notice_blocked(self, gripper_m: np.ndarray, grasp: Grasp) -> None:
        """After standing still for most of a second, hold the grasp's angle for blocked."""
        moved = float(np.linalg.norm(gripper_m - self._last_position_m))
        self._still_steps = self._still_steps + 1 if moved < 0.001 else 0
        self._last_position_m = gripper_m
        if self._still_steps > _STILL_STEPS:
            self._blocked_angles.append(grasp.angle_rad)
            self._still_steps = 0

    def _plan_grasp(self) -> Grasp:
        scene = self.scene
        points = scene.points_m(scene.target)
        if not self._has_rim:
            return across_narrowest(points, self._obstacles_m(), self._grasp, self._blocked_angles)
        pose = scene.pose(scene.target)
        return on_rim(
            pose.position_m,
            pose.rotation,
            points,
            self._obstacles_m(),
            scene.shoulder_position_m(),
            scene.goal_position_m() + (0.0, 0.0, 0.03),
            self._grasp,
            self._blocked_angles,
        )

    def _obstacles_m(self) -> np.ndarray:
        scene = self.scene
        names = [name for name in scene.objects + scene.fixtures if name != scene.target]
        return np.concatenate([scene.points_m(name) for name in names])

    # Carry: lift, over the destination, lower, open.

    def _carry(self) -> np.ndarray:
        scene = self.scene
        gripper = scene.gripper_pose().position_m
        points = scene.points_m(scene.target)
        bottom = points[:, 2].min()
        target = scene.target_position_m()
        goal = scene.goal_position_m()
        offset = goal[:2] - target[:2]
        distance = float(np.hypot(*offset))
        angle = self._grasp.angle_rad if self._grasp else self._finger_angle()
        release_height = self._release_height_m()
        if distance < 0.02 and bottom < release_height + 0.008:
            self.phase = 'release'
            return self._move(gripper, angle, OPEN)
        if scene.gripper_speed_m_s() < -0.02:  # the fingers still close
            self.phase = 'close'
            return self._move(gripper, angle, CLOSE)
        # 0 over the destination, 1 where the object has to be above every obstacle.
        away = float(np.clip((distance - 0.015) / 0.03, 0.0, 1.0))
        safe = self._carry_height_m(target[:2], goal[:2])
        height = release_height + away * max(safe - release_height, 0.0)
        lack = height - bottom
        sideways = float(np.clip(1.3 - lack / 0.03, 0.0, 1.0))
        self.phase = 'lift' if sideways < 0.5 else 'lower' if away < 0.5 else 'transport'
        if self._has_rim:
            lack = min(lack, _RIM_LIFT_M)
        move = np.array([*(sideways * offset), lack])
        return self._move(gripper + move, angle, CLOSE)

    def _release_height_m(self) -> float:
        """Height of the object's lowest point at which the gripper opens."""
        top = float(self.scene.points_m(self.scene.goal_object)[:, 2].max())
        return top - 0.02 if self._goal_contains else top - 0.005

    def _carry_height_m(self, start: np.ndarray, goal: np.ndarray) -> float:
        """Height that the object's lowest point needs on its next centimetres."""
        rim = float(self.scene.points_m(self.scene.goal_object)[:, 2].max())
        return max(rim, self._obstacle_top_m(start, goal, 0.15, radius_m=0.07)) + _CLEARANCE_M

    # What is in the way

    def _obstacle_top_m(
        self, start: np.ndarray, goal: np.ndarray, lookahead_m: float, radius_m: float
    ) -> float:
        """Top of the highest other thing within a radius of the next centimetres of the way."""
        way = goal - start
        length = float(np.hypot(*way))
        end = start + way * min(1.0, lookahead_m / max(length, 1e-6))
        top = -np.inf
        for name in self.scene.objects + self.scene.fixtures:
            if name == self.scene.target:
                continue
            points = self.scene.points_m(name)
            if _distance_to_segment(points[:, :2], start, end).min() < radius_m:
                top = max(top, points[:, 2].max())
        return float(top)

    # Motion

    def _finger_angle(self) -> float:
        left, right = self.scene.finger_positions_m()
        return float(np.arctan2(left[1] - right[1], left[0] - right[0]))

    def _move(self, goal_m: np.ndarray, angle_rad: float, gripper: float) -> np.ndarray:
        """Proportional step of the grip site towards a position, fingers down and turned."""
        pose = self.scene.gripper_pose()
        goal_m = within_reach(goal_m, self.scene.shoulder_position_m())
        action = np.empty(7, dtype=np.float32)
        action[:3] = np.clip(_GAIN * (goal_m - pose.position_m) / _METRES_PER_UNIT, -1, 1)
        turn = angle_difference(angle_rad, self._finger_angle())
        # Bring the approach axis to straight down (cross product), then turn about it.
        tilt = np.cross(pose.rotation[:, 2], (0.0, 0.0, -1.0))
        rotation = tilt + np.array([0.0, 0.0, turn])
        action[3:6] = np.clip(_GAIN * rotation / _RADIANS_PER_UNIT, -_MAX_ROTATION, _MAX_ROTATION)
        action[6] = gripper
        return action


def _distance_to_segment(points: np.ndarray, start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """Distances of points [n, 2] to a segment, [n]."""
    way = end - start
    share = np.clip((points - start) @ way / max(float(way @ way), 1e-12), 0.0, 1.0)
    return np.linalg.norm(points - (start + share[:, None] * way), axis=1)


def make_expert(env: gymnasium.Env[Any, Any]) -> Expert:
    """Build the expert for an environment's present task.

    Build a new one after a reset to another task; `Expert.reset` is enough for the same task.

    Raises:
        ConfigError: There is no expert for the environment or its suite.
    """
    libero = env.unwrapped
    if not isinstance(libero, LiberoEnv):
        raise ConfigError(f'the scripted experts drive LiberoEnv, not {type(libero).__name__}')
    suite = libero.suite.name
    if suite not in ('libero_object', 'libero_spatial'):
        raise ConfigError(
            f'no scripted expert for {suite}; there is one for libero_object, libero_spatial'
        )
    return Expert(libero.scene)
