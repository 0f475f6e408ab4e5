"""The robots of ManiSkill's tasks: from our actions to their controllers, and their state.

An action is [7]: translation, rotation vector, gripper (-1 opens, +1 closes). ManiSkill's
grippers count the other way round, and its controllers take rotations as Euler angles

    R(x, y, z) = R_x(x) R_y(y) R_z(z)

so every rotation is converted. Both robots turn about axes that are parallel to those of their
base.
"""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from gymnasium import spaces


class Robot(ABC):
    """A robot in ManiSkill.

    Attributes:
        uid: ManiSkill's name of it; None: the task's own.
        control_mode: ManiSkill's name of the controller.
        cameras: Our names of the cameras -> ManiSkill's.
        image_shape: Height and width of the images as published, pixels; None: any square.
        action_space: What an action may be.
        METRES_PER_UNIT, RADIANS_PER_UNIT: Of an action's translation and rotation.
    """

    uid: ClassVar[str | None]
    control_mode: ClassVar[str]
    observation_mode: ClassVar[str]
    cameras: ClassVar[dict[str, str]]
    image_shape: ClassVar[tuple[int, int] | None]
    action_space: ClassVar[spaces.Box]
    METRES_PER_UNIT: ClassVar[float]
    RADIANS_PER_UNIT: ClassVar[float]

    def __init__(self, agent: Any) -> None:
        """Wrap ManiSkill's agent, once its simulator is built."""
        self.agent = agent

    @property
    @abstractmethod
    def ee_link(self) -> Any:
        """The link that the controller moves."""

    @abstractmethod
    def reference_pose(self) -> Any:
        """The pose that an action is relative to, in the base's frame; ManiSkill's Pose."""

    @abstractmethod
    def command(self, action: np.ndarray) -> np.ndarray:
        """Turn an action of ours, [7], into the controller's."""

    @abstractmethod
    def proprioception(self) -> dict[str, np.ndarray]:
        """The fields ee_position_m, ee_quaternion_xyzw and gripper_position_m."""

    def base_pose(self) -> Any:
        """Pose of the end effector in the base's frame, ManiSkill's Pose."""
        return self.agent.robot.pose.inv() * self.ee_link.pose

    def fingers_m(self) -> np.ndarray:
        """The two finger joints, [2]."""
        return self.agent.robot.get_qpos()[0, -2:].cpu().numpy()


class Panda(Robot):
    """Franka Panda with LIBERO's units.

    The goal of a step is relative to the present pose, with x the gripper's position and R its
    orientation in the base's frame:

        x_goal = x + 0.05 a[:3],  R_goal = exp(0.5 a[3:6]) R

    That is what ManiSkill's `pd_ee_delta_pose` does, whose units are other ones (0.1 m and, with
    the sign turned round, 0.1 rad); so the goal is computed here and given to `pd_ee_pose`.
    """

    uid = 'panda_wristcam'
    control_mode = 'pd_ee_pose'
    observation_mode = 'rgb'
    cameras: ClassVar = {'agentview': 'base_camera', 'wrist': 'hand_camera'}
    image_shape = None
    action_space = spaces.Box(-1.0, 1.0, (7,), np.float32)
    METRES_PER_UNIT = 0.05
    RADIANS_PER_UNIT = 0.5

    @property
    def ee_link(self) -> Any:
        """See `Robot`."""
        return self.agent.tcp

    def reference_pose(self) -> Any:
        """See `Robot`: the present pose."""
        return self.base_pose()

    def command(self, action: np.ndarray) -> np.ndarray:
        """See `Robot`."""
        from scipy.spatial.transform import Rotation

        position, quaternion = position_and_quaternion(self.reference_pose())
        turn = Rotation.from_rotvec(self.RADIANS_PER_UNIT * action[3:6])
        goal = turn * Rotation.from_quat(quaternion)
        position = position + self.METRES_PER_UNIT * action[:3]
        return np.array([*position, *goal.as_euler('XYZ'), -action[6]], dtype=np.float32)

    def proprioception(self) -> dict[str, np.ndarray]:
        """See `Robot`; in the world's frame, the fingers with LIBERO's signs."""
        position, quaternion = position_and_quaternion(self.ee_link.pose)
        return {
            'ee_position_m': position.astype(np.float32),
            'ee_quaternion_xyzw': quaternion.astype(np.float32),
            'gripper_position_m': self.fingers_m().astype(np.float32)
            * np.array([1, -1], dtype=np.float32),
        }


class WidowX(Robot):
    """WidowX 250 S of BridgeData, as SIMPLER's published evaluation drives it.

    Actions are metres and radians, taken as they are (action scale 1). The goal of a step is
    relative to the goal of the step before:

        x_goal <- x_goal + a[:3],  R_goal <- exp(a[3:6]) R_goal

    The gripper's command is a position between closed and open; published policies send either.
    """

    uid = None
    control_mode = 'arm_pd_ee_target_delta_pose_align2_gripper_pd_joint_pos'
    observation_mode = 'rgb+segmentation'
    cameras: ClassVar = {'agentview': '3rd_view_camera'}
    image_shape = (480, 640)
    # ManiSkill's limits; no policy comes near them.
    action_space = spaces.Box(
        -np.array([1, 1, 1, *[np.pi / 2] * 3, 1], dtype=np.float32),
        np.array([1, 1, 1, *[np.pi / 2] * 3, 1], dtype=np.float32),
    )

    METRES_PER_UNIT = 1.0
    RADIANS_PER_UNIT = 1.0
    GRIPPER_LINKS = (
        'gripper_link',
        'gripper_prop_link',
        'gripper_bar_link',
        'left_finger_link',
        'right_finger_link',
    )

    def __init__(self, agent: Any) -> None:
        """Keep the gripper's parts from colliding with one another.

        Their convex hulls overlap: the fingers would be stuck. Upstream excludes the pairs in a
        file wx250s.srdf beside the robot's description; some copies of the assets lack it.
        """
        super().__init__(agent)
        if not Path(agent.urdf_path).with_suffix('.srdf').is_file():
            for name in self.GRIPPER_LINKS:
                agent.robot.links_map[name].set_collision_group_bit(2, 31, 1)

    @property
    def ee_link(self) -> Any:
        """See `Robot`."""
        return self.agent.controller.controllers['arm'].ee_link

    def reference_pose(self) -> Any:
        """See `Robot`: the goal of the step before."""
        return self.agent.controller.controllers['arm']._target_pose

    def command(self, action: np.ndarray) -> np.ndarray:
        """See `Robot`."""
        from scipy.spatial.transform import Rotation

        angles = Rotation.from_rotvec(action[3:6]).as_euler('XYZ')
        return np.array([*action[:3], *angles, -action[6]], dtype=np.float32)

    def proprioception(self) -> dict[str, np.ndarray]:
        """See `Robot`; in the base's frame, as BridgeData has it, fingers from 0.015 to 0.037."""
        position, quaternion = position_and_quaternion(self.base_pose())
        return {
            'ee_position_m': position.astype(np.float32),
            'ee_quaternion_xyzw': quaternion.astype(np.float32),
            'gripper_position_m': self.fingers_m().astype(np.float32),
        }


ROBOTS: dict[str, type[Robot]] = {'simpler_bridge': WidowX, 'maniskill': Panda}
"""Suite -> its robot."""


def position_and_quaternion(pose: Any) -> tuple[np.ndarray, np.ndarray]:
    """Split ManiSkill's Pose: position [3] and quaternion xyzw [4], float64."""
    raw = pose.raw_pose[0].cpu().numpy().astype(np.float64)
    return raw[:3], raw[[4, 5, 6, 3]]
