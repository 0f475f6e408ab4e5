"""The pick-and-place expert for ManiSkill's tasks: the two cubes, and SIMPLER's table.

It grasps from above, across the object's narrowest horizontal extent, and goes through phases:

    approach -> descend -> close -> lift -> carry -> lower -> release -> retreat

Each phase has a goal pose for the gripper, from ground truth, and a condition that ends it. An
object lost on the way sends it back to the first. With the pose (x, R) that an action is relative
to, both in the base's frame, and the units of the robot's actions:

    action[:3]  = limit(g (x_goal - x) / metres per unit)
    action[3:6] = limit(g log(R_goal R^T) / radians per unit)
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.spatial.transform import Rotation

from vla_cache_ros.core.errors import ConfigError
from vla_cache_sim.maniskill import ManiSkillEnv
from vla_cache_sim.maniskill_robots import position_and_quaternion

OPEN, CLOSE = -1.0, 1.0

_ANGLES_RAD = np.deg2rad(np.arange(0, 180, 5))
_TURN_COST_M_PER_RAD = 0.012
_LOST_M = 0.05
"""Distance between gripper and object at which nothing can be held any more."""


@dataclass(frozen=True)
class Hand:
    """How a robot's hand is used.

    Attributes:
        approach_axis: Axis of the hand's frame that points out of the hand.
        closing_axis: Axis along which the fingers close.
        grasp_above_bottom_m: Height of the hand's frame over the object's bottom while grasping.
        gain: Share of the way that is commanded in a step; above 1 where a step covers a part.
        max_step_m, max_turn_rad: Limits of a step.
        close_steps, open_steps: Steps that the fingers take.
        slack_m: Distance from a goal that counts as there.
    """

    approach_axis: int
    closing_axis: int
    grasp_above_bottom_m: float
    gain: float
    max_step_m: float
    max_turn_rad: float
    close_steps: int
    open_steps: int
    slack_m: float


HANDS = {
    'maniskill': Hand(2, 1, 0.018, 2.0, 0.05, 0.25, 8, 6, 0.006),
    'simpler_bridge': Hand(0, 1, 0.0175, 1.0, 0.04, 0.4, 4, 2, 0.004),
}


@dataclass(frozen=True)
class Job:
    """What is to be brought where.

    Attributes:
        source: The object, ManiSkill's actor.
        goal_m: Where the middle of its bottom is to go, [3], in the world.
        clearance_m: Height over the goal at which it is carried, and from which it is let go.
        release: Whether it is let go there; else it is held.
    """

    source: Any
    goal_m: Callable[[], np.ndarray]
    carry_above_m: float = 0.06
    release_above_m: float = 0.008
    release: bool = True


class TabletopExpert:
    """Scripted pick and place from ground truth."""

    def __init__(self, env: ManiSkillEnv) -> None:
        """Begin the present episode; a new episode needs a new expert.

        Raises:
            ConfigError: There is no such expert for the task, or no reset yet.
        """
        self.phase = 'approach'
        self._robot = env.robot
        self._hand = HANDS[env.suite.name]
        self._job = _job(env)
        self._base = env.robot.agent.robot.pose.inv()
        self._steps_in_phase = 0
        self._angle_rad = self._choose_angle()
        self._lift_m = 0.0

    def act(self) -> np.ndarray:
        """The action in the simulator's present state, float32 [7], see `ManiSkillEnv`."""
        self._steps_in_phase += 1
        for _ in range(8):  # phases whose goal is reached already take no step
            goal, gripper, done, following = getattr(self, f'_{self.phase}')()
            if not done:
                break
            self._enter(following)
        return self._move(goal, gripper)

    # One method a phase: (goal of the hand [3], gripper, done, next phase), in the base's frame.

    def _approach(self) -> tuple[np.ndarray, float, bool, str]:
        goal = self._grasp_m() + (0.0, 0.0, 0.07)
        turned = self._turn_left_rad() < 0.1
        return goal, OPEN, self._at(goal, xy_only=True) and turned, 'descend'

    def _descend(self) -> tuple[np.ndarray, float, bool, str]:
        goal = self._grasp_m()
        return goal, OPEN, self._at(goal) or self._steps_in_phase > 25, 'close'

    def _close(self) -> tuple[np.ndarray, float, bool, str]:
        goal = self._hand_m()
        self._lift_m = goal[2] + 0.08
        return goal, CLOSE, self._steps_in_phase > self._hand.close_steps, 'lift'

    def _lift(self) -> tuple[np.ndarray, float, bool, str]:
        if self._lost():
            return self._hand_m(), OPEN, True, 'approach'
        goal = np.array([*self._hand_m()[:2], self._lift_m])
        return goal, CLOSE, self._hand_m()[2] > self._lift_m - 0.03, 'carry'

    def _carry(self) -> tuple[np.ndarray, float, bool, str]:
        if self._lost():
            return self._hand_m(), OPEN, True, 'approach'
        goal = self._hand_for(self._job.carry_above_m if self._job.release else 0.0)
        return goal, CLOSE, self._at(goal, xy_only=True) and self._job.release, 'lower'

    def _lower(self) -> tuple[np.ndarray, float, bool, str]:
        if self._lost():
            return self._hand_m(), OPEN, True, 'approach'
        goal = self._hand_for(self._job.release_above_m)
        return goal, CLOSE, self._at(goal) or self._steps_in_phase > 25, 'release'

    def _release(self) -> tuple[np.ndarray, float, bool, str]:
        done = self._steps_in_phase > self._hand.open_steps
        return self._hand_m(), OPEN, done, 'retreat'

    def _retreat(self) -> tuple[np.ndarray, float, bool, str]:
        height = self._bottom_m()[2] + 0.12
        return np.array([*self._hand_m()[:2], height]), OPEN, False, 'retreat'

    def _enter(self, phase: str) -> None:
        if phase == 'approach':
            self._angle_rad = self._choose_angle()
        self.phase = phase
        self._steps_in_phase = 0

    def _move(self, goal_m: np.ndarray, gripper: float) -> np.ndarray:
        hand, robot = self._hand, self._robot
        position, quaternion = position_and_quaternion(robot.reference_pose())
        step = hand.gain * (goal_m - position)
        step *= min(1.0, hand.max_step_m / max(1e-9, float(np.linalg.norm(step))))
        turn = (
            hand.gain * (self._goal_rotation() * Rotation.from_quat(quaternion).inv()).as_rotvec()
        )
        turn *= min(1.0, hand.max_turn_rad / max(1e-9, float(np.linalg.norm(turn))))
        parts = (step / robot.METRES_PER_UNIT, turn / robot.RADIANS_PER_UNIT, [gripper])
        return np.concatenate(parts, dtype=np.float32)

    # Where things are, in the base's frame.

    def _hand_m(self) -> np.ndarray:
        return position_and_quaternion(self._robot.base_pose())[0]

    def _points_m(self) -> np.ndarray:
        """Corners of the object, [n, 3]."""
        mesh = self._job.source.get_first_collision_mesh(to_world_frame=True)
        return self._in_base(np.asarray(mesh.vertices))

    def _bottom_m(self) -> np.ndarray:
        """Middle of the object's bottom."""
        points = self._points_m()
        low, high = points.min(axis=0), points.max(axis=0)
        return np.array([*(low + high)[:2] / 2, low[2]])

    def _grasp_m(self) -> np.ndarray:
        return self._bottom_m() + (0.0, 0.0, self._hand.grasp_above_bottom_m)

    def _hand_for(self, above_m: float) -> np.ndarray:
        """Where the hand has to be so that the object hangs so far above its goal."""
        goal = self._in_base(self._job.goal_m()[None])[0] + (0.0, 0.0, above_m)
        return self._hand_m() + goal - self._bottom_m()

    def _in_base(self, points_m: np.ndarray) -> np.ndarray:
        position, quaternion = position_and_quaternion(self._base)
        return Rotation.from_quat(quaternion).apply(points_m) + position

    def _at(self, goal_m: np.ndarray, xy_only: bool = False) -> bool:
        error = (goal_m - self._hand_m())[: 2 if xy_only else 3]
        return float(np.linalg.norm(error)) < self._hand.slack_m

    def _lost(self) -> bool:
        return float(np.linalg.norm(self._grasp_m() - self._hand_m())) > _LOST_M

    def _goal_rotation(self) -> Rotation:
        """The hand pointing down, its fingers closing along the chosen angle."""
        axes = np.zeros((3, 3))
        axes[:, self._hand.approach_axis] = (0.0, 0.0, -1.0)
        closing = np.array([np.cos(self._angle_rad), np.sin(self._angle_rad), 0.0])
        axes[:, self._hand.closing_axis] = closing
        third = 3 - self._hand.approach_axis - self._hand.closing_axis
        axes[:, third] = np.cross(axes[:, (third + 1) % 3], axes[:, (third + 2) % 3])
        return Rotation.from_matrix(axes)

    def _turn_left_rad(self) -> float:
        quaternion = position_and_quaternion(self._robot.base_pose())[1]
        return float((self._goal_rotation() * Rotation.from_quat(quaternion).inv()).magnitude())

    def _choose_angle(self) -> float:
        """Angle of the closing axis: where the object is narrow, and the hand has little to turn.

        cost_m = width + 0.012 |turn|
        """
        quaternion = position_and_quaternion(self._robot.base_pose())[1]
        closing = Rotation.from_quat(quaternion).as_matrix()[:, self._hand.closing_axis]
        present = np.arctan2(closing[1], closing[0])
        turn = (_ANGLES_RAD - present + np.pi / 2) % np.pi - np.pi / 2
        axes = np.stack([np.cos(_ANGLES_RAD), np.sin(_ANGLES_RAD)])
        width = np.ptp(self._points_m()[:, :2] @ axes, axis=0)
        return float(present + turn[np.argmin(width + _TURN_COST_M_PER_RAD * np.abs(turn))])


def _job(env: ManiSkillEnv) -> Job:
    """What the present task asks for.

    Raises:
        ConfigError: No expert knows it, or there was no reset yet.
    """
    domain = env.domain
    if env.suite.name == 'simpler_bridge' and env.task != 3:
        source, target = domain.objs[domain.source_obj_name], domain.objs[domain.target_obj_name]
        return Job(source, lambda: _top_m(target))
    if env.suite.name == 'maniskill' and env.task == 0:
        # The goal is one of the cube's middle.
        half = np.array([0.0, 0.0, domain.cube_half_size])
        return Job(domain.cube, lambda: _position_m(domain.goal_site) - half, release=False)
    if env.suite.name == 'maniskill' and env.task == 1:
        return Job(domain.cubeA, lambda: _top_m(domain.cubeB), release_above_m=0.002)
    raise ConfigError(
        f'there is no expert for {env.suite.name}/{env.task}; there is one for '
        'simpler_bridge/0 to 2 and maniskill/0 and 1.'
    )


def _position_m(actor: Any) -> np.ndarray:
    return position_and_quaternion(actor.pose)[0]


def _top_m(actor: Any) -> np.ndarray:
    """Middle of an object's top, in the world."""
    low, high = actor.get_first_collision_mesh(to_world_frame=True).bounds
    return np.array([*(low + high)[:2] / 2, high[2]])
