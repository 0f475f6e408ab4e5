"""What the simulator knows and a policy must not: poses of the task's objects, and image masks.

Experts and training losses read it; nothing here renders or advances the simulation.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import mujoco
import numpy as np
from scipy.spatial.transform import Rotation

_VISUAL_GROUP = 1
_COLLISION_GROUP = 0
_GROUNDS = ('main_table', 'floor', 'countertop', 'coffee_table', 'kitchen_table', 'study_table',
            'living_room_table')
_POINT_SPACING_M = 0.03


@dataclass(frozen=True)
class Pose:
    """A frame in the world."""

    position_m: np.ndarray
    """float64 [3]."""
    rotation: np.ndarray
    """float64 [3, 3], columns are the frame's axes in the world."""


class Scene:
    """A view on the simulator's present state; every call reads it anew."""

    def __init__(self, domain: Any) -> None:
        """Look up the indices of the robot and of the task's objects.

        Args:
            domain: LIBERO's environment object, after its construction.
        """
        self.domain = domain
        robot = domain.robots[0]
        self._arm_qpos = np.asarray(robot._ref_joint_pos_indexes)
        self._gripper_qpos = np.asarray(robot._ref_gripper_joint_pos_indexes)
        self._gripper_qvel = np.asarray(robot._ref_gripper_joint_vel_indexes)
        self._arm_dofs = np.asarray(robot._ref_joint_vel_indexes)
        self._grip_site = robot.eef_site_id
        body = domain.sim.model.body_name2id
        self._hand_body = body(robot.robot_model.eef_name)
        self._finger_bodies = body('gripper0_leftfinger'), body('gripper0_rightfinger')
        self._finger_geoms = tuple(self._geoms_below(finger) for finger in self._finger_bodies)
        self._points: dict[str, list[tuple[int, np.ndarray]]] = {}
        # The goals of the pick-and-place suites are one predicate: (in|on, object, place).
        goal = domain.parsed_problem['goal_state'][0]
        self.target = str(goal[1])
        self.goal = str(goal[2]) if len(goal) > 2 else str(goal[1])

    @property
    def model(self) -> Any:
        """MuJoCo's model (mjModel)."""
        return self.domain.sim.model._model

    @property
    def data(self) -> Any:
        """MuJoCo's state (mjData)."""
        return self.domain.sim.data._data

    # The robot

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

    def gripper_pose(self) -> Pose:
        """The grip site: between the finger pads, z axis towards the fingertips."""
        return Pose(
            self.data.site_xpos[self._grip_site].copy(),
            self.data.site_xmat[self._grip_site].reshape(3, 3).copy(),
        )

    def finger_positions_m(self) -> np.ndarray:
        """Origins of the left and the right finger, float64 [2, 3]."""
        return self.data.xpos[list(self._finger_bodies)].copy()

    def gripper_opening_m(self) -> float:
        """Gap between the finger pads: 0 closed, 0.08 open."""
        left, right = self.data.qpos[self._gripper_qpos]
        return float(left - right)

    def gripper_speed_m_s(self) -> float:
        """Rate of change of the opening, positive while it opens."""
        left, right = self.data.qvel[self._gripper_qvel]
        return float(left - right)

    @property
    def arm_qpos(self) -> np.ndarray:
        """Joint positions of the arm, float64 [7], rad; assigning them moves nothing else."""
        return self.data.qpos[self._arm_qpos].copy()

    @arm_qpos.setter
    def arm_qpos(self, qpos: np.ndarray) -> None:
        self.data.qpos[self._arm_qpos] = qpos

    @property
    def home_arm_qpos(self) -> np.ndarray:
        """Joint positions after LIBERO's own reset, float64 [7], rad."""
        return np.asarray(self.domain.robots[0].init_qpos, dtype=float)

    def solve_arm(self, position_m: np.ndarray, rotation: np.ndarray, steps: int = 60) -> None:
        """Bring the grip site to a pose by damped least squares on the arm's joints.

            dq = J^T (J J^T + lambda^2 I)^-1 e,  e = (x_goal - x, log(R_goal R^T))

        Kinematics alone; the pose is approached as closely as the joint limits allow.
        """
        arm = self._arm_dofs
        low, high = self.model.jnt_range[self.model.dof_jntid[arm]].T
        jacobian = np.zeros((2, 3, self.model.nv))
        for _ in range(steps):
            mujoco.mj_kinematics(self.model, self.data)
            mujoco.mj_comPos(self.model, self.data)
            pose = self.gripper_pose()
            turn = Rotation.from_matrix(rotation @ pose.rotation.T).as_rotvec()
            error = np.concatenate([position_m - pose.position_m, turn])
            if np.abs(error).max() < 1e-4:
                break
            mujoco.mj_jacSite(self.model, self.data, jacobian[0], jacobian[1], self._grip_site)
            columns = jacobian.reshape(6, -1)[:, arm]
            step = columns.T @ np.linalg.solve(columns @ columns.T + 1e-4 * np.eye(6), error)
            self.arm_qpos = np.clip(self.arm_qpos + np.clip(step, -0.2, 0.2), low, high)

    @cached_property
    def robot_geoms(self) -> np.ndarray:
        """Which geoms belong to the robot, bool [geoms]."""
        mask = np.zeros(self.model.ngeom, dtype=bool)
        mask[self._geoms_below(self.domain.sim.model.body_name2id('robot0_base'))] = True
        return mask

    # The objects

    @cached_property
    def objects(self) -> tuple[str, ...]:
        """Names of the movable objects."""
        return tuple(self.domain.objects_dict)

    @cached_property
    def fixtures(self) -> tuple[str, ...]:
        """Names of the furniture that stands in the scene."""
        return tuple(name for name in self.domain.fixtures_dict if name not in _GROUNDS)

    def pose(self, name: str) -> Pose:
        """Pose of an object, a fixture, or a region of one."""
        if name in self.domain.object_sites_dict:
            site = self.domain.sim.model.site_name2id(name)
            return Pose(
                self.data.site_xpos[site].copy(), self.data.site_xmat[site].reshape(3, 3).copy()
            )
        body = self.domain.obj_body_id[name]
        return Pose(self.data.xpos[body].copy(), self.data.xmat[body].reshape(3, 3).copy())

    def target_position_m(self) -> np.ndarray:
        """Where the object to be moved is, float64 [3]."""
        return self.pose(self.target).position_m

    def goal_position_m(self) -> np.ndarray:
        """Where it is to go: the centre of the region or object named by the goal, float64 [3]."""
        return self.pose(self.goal).position_m

    @cached_property
    def goal_object(self) -> str:
        """The object or fixture that the destination belongs to."""
        if self.goal in self.domain.object_sites_dict:
            return str(self.domain.object_sites_dict[self.goal].parent_name)
        return self.goal

    def free_joint_qpos(self, name: str) -> np.ndarray:
        """View on a movable object's position and quaternion wxyz, float64 [7]."""
        joint = self.model.body_jntadr[self.domain.obj_body_id[name]]
        start = self.model.jnt_qposadr[joint]
        return self.data.qpos[start : start + 7]

    def geom_owners(self) -> list[str]:
        """Name of the object or fixture that each geom belongs to, '' for all else."""
        return self._geom_owners

    @cached_property
    def _geom_owners(self) -> list[str]:
        owners = [''] * self.model.ngeom
        for name in self.objects + self.fixtures:
            for geom in self._geoms_below(self.domain.obj_body_id[name]):
                owners[geom] = name
        return owners

    def points_m(self, name: str) -> np.ndarray:
        """Points on an object's collision geometry, at most 3 cm apart, in the world, [n, 3]."""
        if name not in self._points:
            self._points[name] = [
                (geom, self._geom_corners(geom))
                for geom in self._geoms_below(self.domain.obj_body_id[name])
                if self.model.geom_group[geom] == _COLLISION_GROUP
            ]
        return np.concatenate(
            [
                corners @ self.data.geom_xmat[geom].reshape(3, 3).T + self.data.geom_xpos[geom]
                for geom, corners in self._points[name]
            ]
        )

    def touches_fingers(self, name: str) -> tuple[bool, bool]:
        """Whether the object touches the left and the right finger."""
        pairs = self.data.contact.geom[: self.data.ncon]
        own = self._geoms_below(self.domain.obj_body_id[name])
        touching = np.isin(pairs, own)
        others = np.concatenate([pairs[touching[:, 0], 1], pairs[touching[:, 1], 0]])
        left, right = (bool(np.isin(others, finger).any()) for finger in self._finger_geoms)
        return left, right

    # Geometry

    def _geoms_below(self, body: int) -> np.ndarray:
        """Indices of the geoms of a body and of all its descendants."""
        inside = np.zeros(self.model.nbody, dtype=bool)
        inside[body] = True
        for child in range(body + 1, self.model.nbody):
            inside[child] = inside[self.model.body_parentid[child]]
        return np.flatnonzero(inside[self.model.geom_bodyid])

    def _geom_corners(self, geom: int) -> np.ndarray:
        """Corners of a geom in its own frame, float64 [n, 3]."""
        kind = self.model.geom_type[geom]
        size = self.model.geom_size[geom]
        if kind == mujoco.mjtGeom.mjGEOM_MESH:
            mesh = self.model.geom_dataid[geom]
            start, count = self.model.mesh_vertadr[mesh], self.model.mesh_vertnum[mesh]
            vertices = np.asarray(self.model.mesh_vert[start : start + count], dtype=float)
            return vertices[:: max(1, count // 300)]
        if kind in (mujoco.mjtGeom.mjGEOM_CYLINDER, mujoco.mjtGeom.mjGEOM_CAPSULE):
            angle = np.linspace(0, 2 * np.pi, 16, endpoint=False)
            circle = np.stack([np.cos(angle), np.sin(angle)], axis=1) * size[0]
            return np.concatenate(
                [np.insert(circle, 2, height, axis=1) for height in (-size[1], size[1])]
            )
        if kind == mujoco.mjtGeom.mjGEOM_SPHERE:
            size = np.full(3, size[0])
        ticks = [np.linspace(-s, s, 1 + max(1, round(2 * s / _POINT_SPACING_M))) for s in size]
        return np.stack(np.meshgrid(*ticks), axis=-1).reshape(-1, 3)
