"""What the simulator knows and a policy must not: poses of the task's objects, and image masks.

Experts and training losses read it; nothing here renders or advances the simulation.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import cv2
import numpy as np
from scipy.spatial import ConvexHull
from scipy.spatial.transform import Rotation

from vla_cache_ros.core.errors import UnknownNameError

CAMERAS = {'agentview': 'agentview', 'wrist': 'robot0_eye_in_hand', 'front': 'frontview'}
"""Our camera names -> the simulator's."""

_VISUAL_GROUP = 1
_COLLISION_GROUP = 0
_GROUNDS = (
    'main_table',
    'floor',
    'countertop',
    'coffee_table',
    'kitchen_table',
    'study_table',
    'living_room_table',
)
_RASTER = 4
"""Raster points per patch and axis when a mask is filled."""
_NEAR_M = 0.01
_POINT_SPACING_M = 0.02


@dataclass(frozen=True)
class RelevanceMasks:
    """Which patches of a camera's grid show what; each bool [rows, cols], occlusion ignored."""

    target: np.ndarray
    """The object to be moved."""
    goal: np.ndarray
    """The object or furniture that it is to go to."""
    gripper: np.ndarray
    """The hand and the fingers."""


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
        self._corners: dict[int, np.ndarray] = {}
        self._below: dict[int, np.ndarray] = {}
        self._body_points: dict[str, list[tuple[int, np.ndarray]]] = {}
        robot = domain.robots[0]
        self._arm_qpos = np.asarray(robot._ref_joint_pos_indexes)
        self._gripper_qpos = np.asarray(robot._ref_gripper_joint_pos_indexes)
        self._gripper_qvel = np.asarray(robot._ref_gripper_joint_vel_indexes)
        self._arm_dofs = np.asarray(robot._ref_joint_vel_indexes)
        self._grip_site = robot.eef_site_id
        body = domain.sim.model.body_name2id
        self._hand_body = body(robot.robot_model.eef_name)
        self._finger_bodies = body('gripper0_leftfinger'), body('gripper0_rightfinger')
        self._shoulder_body = body('robot0_link2')
        self._finger_geoms = tuple(self._geoms_below(finger) for finger in self._finger_bodies)
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

    def shoulder_position_m(self) -> np.ndarray:
        """Centre of the arm's shoulder, float64 [3]; it never moves."""
        return self.data.xpos[self._shoulder_body].copy()

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
        import mujoco

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
        """Points on an object's collision geometry, at most 2 cm apart, in the world, [n, 3]."""
        if name not in self._body_points:
            self._body_points[name] = self._points_by_body(name)
        return np.concatenate(
            [
                points @ self.data.xmat[body].reshape(3, 3).T + self.data.xpos[body]
                for body, points in self._body_points[name]
            ]
        )

    def _points_by_body(self, name: str) -> list[tuple[int, np.ndarray]]:
        """Points on the collision geometry in the frame of the body that carries it."""
        geoms = self._geoms_below(self.domain.obj_body_id[name])
        by_body: dict[int, list[np.ndarray]] = {}
        for geom in geoms[self.model.geom_group[geoms] == _COLLISION_GROUP]:
            rotation = Rotation.from_quat(self.model.geom_quat[geom], scalar_first=True)
            points = rotation.apply(self._corners_of(geom)) + self.model.geom_pos[geom]
            by_body.setdefault(int(self.model.geom_bodyid[geom]), []).append(points)
        return [(body, np.concatenate(points)) for body, points in by_body.items()]

    def touches_fingers(self, name: str) -> tuple[bool, bool]:
        """Whether the object touches the left and the right finger."""
        pairs = self.data.contact.geom[: self.data.ncon]
        own = self._geoms_below(self.domain.obj_body_id[name])
        touching = np.isin(pairs, own)
        others = np.concatenate([pairs[touching[:, 0], 1], pairs[touching[:, 1], 0]])
        left, right = (bool(np.isin(others, finger).any()) for finger in self._finger_geoms)
        return left, right

    # Masks: which image patches show what

    def target_mask(self, camera: str, grid: tuple[int, int]) -> np.ndarray:
        """Patches of `grid` = (rows, cols) that show the object to be moved, bool [rows, cols]."""
        return self._mask(self._visual_geoms(self.domain.obj_body_id[self.target]), camera, grid)

    def goal_mask(self, camera: str, grid: tuple[int, int]) -> np.ndarray:
        """Patches of `grid` = (rows, cols) that show the destination, bool [rows, cols]."""
        body = self.domain.obj_body_id[self.goal_object]
        return self._mask(self._visual_geoms(body), camera, grid)

    def gripper_mask(self, camera: str, grid: tuple[int, int]) -> np.ndarray:
        """Patches of `grid` = (rows, cols) that show the hand or a finger, bool [rows, cols]."""
        return self._mask(self._visual_geoms(self._hand_body), camera, grid)

    def relevance_masks(self, camera: str, rows: int, cols: int) -> RelevanceMasks:
        """All three masks of a camera of `LiberoEnv`, for its upright square image.

        Raises:
            UnknownNameError: There is no such camera.
        """
        grid = rows, cols
        return RelevanceMasks(
            target=self.target_mask(camera, grid),
            goal=self.goal_mask(camera, grid),
            gripper=self.gripper_mask(camera, grid),
        )

    def project(self, camera: str, points_m: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Project world points into a camera's upright image.

            u = 1/2 + f x / d,  v = 1/2 - f y / d,  f = 1 / (2 tan(fovy / 2)),  d = -z

        with (x, y, z) in the camera's frame, which looks along -z with y upwards.

        Args:
            camera: A key of `CAMERAS`.
            points_m: float64 [n, 3].

        Returns:
            Image coordinates, float64 [n, 2], as (column, row) in shares of the image's side
            (0 to 1 inside), and the depths d, float64 [n], positive in front of the camera.
        """
        if camera not in CAMERAS:
            raise UnknownNameError('camera', camera, CAMERAS)
        index = self.domain.sim.model.camera_name2id(CAMERAS[camera])
        rotation = self.data.cam_xmat[index].reshape(3, 3)
        x, y, z = ((points_m - self.data.cam_xpos[index]) @ rotation).T
        focal = 0.5 / np.tan(np.deg2rad(self.model.cam_fovy[index]) / 2)
        depth = np.maximum(-z, 1e-6)
        return np.stack([0.5 + focal * x / depth, 0.5 - focal * y / depth], axis=1), -z

    def _mask(self, geoms: np.ndarray, camera: str, grid: tuple[int, int]) -> np.ndarray:
        """Fill the convex outline of every geom on a raster finer than the grid."""
        rows, cols = grid
        raster = np.zeros((rows * _RASTER, cols * _RASTER), dtype=np.uint8)
        scale = np.array([cols, rows]) * _RASTER
        for geom in geoms:
            rotation = self.data.geom_xmat[geom].reshape(3, 3)
            points = self._corners_of(geom) @ rotation.T + self.data.geom_xpos[geom]
            image, depth = self.project(camera, points)
            image = np.clip(image[depth > _NEAR_M], -2.0, 3.0) * scale - 0.5
            if len(image):
                outline = cv2.convexHull(np.round(image).astype(np.int32))
                cv2.fillConvexPoly(raster, outline, 1)
        return raster.reshape(rows, _RASTER, cols, _RASTER).max(axis=(1, 3)) > 0

    def _visual_geoms(self, body: int) -> np.ndarray:
        geoms = self._geoms_below(body)
        visible = self.model.geom_group[geoms] == _VISUAL_GROUP
        return geoms[visible]

    def _corners_of(self, geom: int) -> np.ndarray:
        if geom not in self._corners:
            self._corners[geom] = self._geom_corners(geom)
        return self._corners[geom]

    # Geometry

    def _geoms_below(self, body: int) -> np.ndarray:
        """Indices of the geoms of a body and of all its descendants."""
        if body not in self._below:
            inside = np.zeros(self.model.nbody, dtype=bool)
            inside[body] = True
            for child in range(body + 1, self.model.nbody):
                inside[child] = inside[self.model.body_parentid[child]]
            self._below[body] = np.flatnonzero(inside[self.model.geom_bodyid])
        return self._below[body]

    def _geom_corners(self, geom: int) -> np.ndarray:
        """Corners of a geom's convex hull in its own frame, float64 [n, 3]."""
        import mujoco

        kind = self.model.geom_type[geom]
        size = self.model.geom_size[geom]
        if kind == mujoco.mjtGeom.mjGEOM_MESH:
            mesh = self.model.geom_dataid[geom]
            start, count = self.model.mesh_vertadr[mesh], self.model.mesh_vertnum[mesh]
            vertices = np.asarray(self.model.mesh_vert[start : start + count], dtype=float)
            return vertices[ConvexHull(vertices, qhull_options='QJ').vertices]
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
