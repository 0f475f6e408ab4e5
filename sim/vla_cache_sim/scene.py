"""What the simulator knows and a policy must not: poses of the task's objects, and image masks."""

from typing import Any

import numpy as np


class Scene:
    """A view on the simulator's present state; every call reads it anew."""

    def __init__(self, domain: Any) -> None:
        """Look up the indices of the robot and of the task's objects.

        Args:
            domain: LIBERO's environment object, after its construction.
        """
        self.domain = domain
        self.model = domain.sim.model._model
        self.data = domain.sim.data._data
        robot = domain.robots[0]
        self._arm_qpos = np.asarray(robot._ref_joint_pos_indexes)
        self._gripper_qpos = np.asarray(robot._ref_gripper_joint_pos_indexes)
        self._grip_site = robot.eef_site_id
        self._hand_body = domain.sim.model.body_name2id(robot.robot_model.eef_name)

    def proprioception(self) -> dict[str, np.ndarray]:
        """The robot's own state, as `LiberoEnv` observes it (float32)."""
        w, x, y, z = self.data.xquat[self._hand_body]
        state = {
            'ee_position_m': self.data.site_xpos[self._grip_site],
            'ee_quaternion_xyzw': (x, y, z, w),
            'gripper_position_m': self.data.qpos[self._gripper_qpos],
            'joint_position_rad': self.data.qpos[self._arm_qpos],
        }
        return {name: np.array(value, dtype=np.float32) for name, value in state.items()}
