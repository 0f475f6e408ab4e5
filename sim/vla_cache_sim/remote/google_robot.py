"""The Google robot of SIMPLER, on ManiSkill2_real2sim (SAPIEN 2); a factory for `server`.

Needs Python 3.8, NumPy, gymnasium and mani_skill2_real2sim, nothing of this project. Episodes are
those of SIMPLER's visual matching evaluation, enumerated placement by placement, then robot
texture by robot texture:

    init_state = texture x placements + placement
"""

from __future__ import annotations

import importlib
import math
import os
from typing import Any, NamedTuple

import numpy as np

CAMERA = 'overhead_camera'
IMAGE_SHAPE = (512, 640, 3)
CONTROL_MODE = (
    'arm_pd_ee_delta_pose_align_interpolate_by_planner_'
    'gripper_pd_joint_target_delta_pos_interpolate_by_planner'
)
CONTROL_FREQUENCY_HZ = 3
SIMULATION_FREQUENCY_HZ = 513

TEXTURES = (
    '',
    'recolor_tabletop_visual_matching_1',
    'recolor_tabletop_visual_matching_2',
    'recolor_cabinet_visual_matching_1',
)
"""Robot textures (urdf_version) over which the published figures are means."""

RESET_OPTIONS = ('task', 'init_state')


class Placement(NamedTuple):
    """Where an episode begins.

    Attributes:
        robot_xy: Base position, metres.
        robot_yaw: Turn of the base about z beside the usual half turn, radians.
        objects: ManiSkill2's obj_init_options.
        overlay: File of the real photograph behind the simulation.
    """

    robot_xy: tuple[float, float]
    robot_yaw: float
    objects: dict[str, Any]
    overlay: str


class Task(NamedTuple):
    """One task of a suite.

    Attributes:
        env_id: ManiSkill2's environment.
        arguments: Its arguments beside those that all tasks share.
        placements: One per episode and texture.
    """

    env_id: str
    arguments: dict[str, Any]
    placements: tuple[Placement, ...]


class Suite(NamedTuple):
    """Tasks that are evaluated alike."""

    step_limit: int
    tasks: tuple[Task, ...]


def _can(**orientation: bool) -> Task:
    """Pick the coke can from a grid of 5 x 5 places."""
    placements = tuple(
        Placement((0.35, 0.20), 0.0, {'init_xy': [x, y]}, 'google_coke_can_real_eval_1.png')
        for x in np.linspace(-0.35, -0.12, 5).tolist()
        for y in np.linspace(-0.02, 0.42, 5).tolist()
    )
    arguments = {'scene_name': 'google_pick_coke_can_1_v4', **orientation}
    return Task('GraspSingleOpenedCokeCanInScene-v0', arguments, placements)


_MOVE_NEAR = Task(
    'MoveNearGoogleBakedTexInScene-v0',
    {'scene_name': 'google_pick_coke_can_1_v4'},
    tuple(
        Placement((0.35, 0.21), -0.09, {'episode_id': k}, 'google_move_near_real_eval_1.png')
        for k in range(60)
    ),
)

_DRAWER_STANDS = {
    'a0': (0.644, -0.179, -0.03),
    'a1': (0.765, -0.182, -0.02),
    'a2': (0.889, -0.203, -0.06),
    'b0': (0.652, 0.009, 0.0),
    'b1': (0.752, 0.009, 0.0),
    'b2': (0.851, 0.035, 0.0),
    'c0': (0.665, 0.224, 0.0),
    'c1': (0.765, 0.222, -0.025),
    'c2': (0.865, 0.222, -0.025),
}
"""Where the robot stands before the cabinet: x, y in metres and yaw in radians."""


def _drawer(verb: str, drawer: str) -> Task:
    """Open or close a drawer; ray traced, since policies read its depth from shadows."""
    arguments = {
        'scene_name': 'dummy_drawer',
        'shader_dir': 'rt',
        'station_name': 'mk_station_recolor',
        'light_mode': 'simple',
        'disable_bad_material': True,
    }
    placements = tuple(
        Placement((x, y), yaw, {'init_xy': [0.0, 0.0]}, f'open_drawer_{name}.png')
        for name, (x, y, yaw) in _DRAWER_STANDS.items()
    )
    return Task(f'{verb}{drawer}DrawerCustomInScene-v0', arguments, placements)


SUITES = {
    'simpler_google_coke_can': Suite(
        80, (_can(lr_switch=True), _can(laid_vertically=True), _can(upright=True))
    ),
    'simpler_google_move_near': Suite(80, (_MOVE_NEAR,)),
    'simpler_google_drawer': Suite(
        113,
        tuple(
            _drawer(verb, drawer)
            for verb in ('Open', 'Close')
            for drawer in ('Top', 'Middle', 'Bottom')
        ),
    ),
}


class RefusedError(ValueError):
    """The client asked for something that there is not."""

    kind = 'config'


class GoogleRobot:
    """One suite of the Google robot.

    Actions are metres and an axis-angle in radians in the base's frame, as the simulator takes
    them. The gripper is relative: +1 closes, -1 opens, 0 leaves the target where it is; repeating
    a change for several steps is the policy's business. As published, an episode runs to its step
    limit, and what counts is the state that it ends in.
    """

    control_frequency_hz = float(CONTROL_FREQUENCY_HZ)
    cameras = ('agentview',)

    def __init__(self, suite: str, task: int) -> None:
        """Look the task up; the simulator is built at the first reset.

        Args:
            suite: A key of SUITES.
            task: Task index, used until a reset asks for another.

        Raises:
            RefusedError: Unknown suite or task.
        """
        if suite not in SUITES:
            raise RefusedError(f'unknown suite {suite!r}; valid: {", ".join(SUITES)}.')
        self._suite_name = suite
        self._suite = SUITES[suite]
        self._built: tuple[Any, ...] = ()
        self._env: Any = None
        self._seen: dict[str, Any] = {}
        self._steps = self._init_state = 0
        self.instruction = ''
        self._choose_task(task)

    @property
    def spaces(self) -> dict[str, Any]:
        """Shapes and bounds of the action and of what is observed."""
        bounds = {
            'ee_position_m': (3.0, 3),
            'ee_quaternion_xyzw': (1.001, 4),
            'gripper_position_m': (1.5, 2),
        }
        states = {
            name: {'low': -bound, 'high': bound, 'shape': [length], 'dtype': 'float32'}
            for name, (bound, length) in bounds.items()
        }
        image = {'low': 0, 'high': 255, 'shape': list(IMAGE_SHAPE), 'dtype': 'uint8'}
        limits = [1.0, 1.0, 1.0, math.pi / 2, math.pi / 2, math.pi / 2, 1.0]
        return {
            'action': {
                'low': [-limit for limit in limits],
                'high': limits,
                'shape': [7],
                'dtype': 'float32',
            },
            'observation': {'agentview': image, **states},
        }

    def reset(
        self, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Start an episode.

        Args:
            seed: Seeds what the simulator draws beside the placement.
            options: 'task' and 'init_state', indices.

        Raises:
            RefusedError: Unknown option, task or initial state.
        """
        options = dict(options or {})
        unknown = [option for option in options if option not in RESET_OPTIONS]
        if unknown:
            raise RefusedError(
                f'unknown reset option {unknown[0]!r}; valid: {", ".join(RESET_OPTIONS)}.'
            )
        self._choose_task(options.get('task', self._task_index))
        self._init_state = options.get('init_state', 0)
        places = self._task.placements
        count = len(TEXTURES) * len(places)
        if type(self._init_state) is not int or not 0 <= self._init_state < count:
            raise RefusedError(
                f'unknown initial state {self._init_state!r}; valid: 0..{count - 1}.'
            )
        texture, place = divmod(self._init_state, len(places))
        placement = places[place]
        self._build(TEXTURES[texture], placement.overlay)
        half = placement.robot_yaw / 2
        robot = {
            'init_xy': np.array(placement.robot_xy),
            # wxyz: half a turn about z, then the yaw
            'init_rot_quat': np.array([-math.sin(half), 0.0, 0.0, math.cos(half)]),
        }
        objects = {
            name: np.array(value) if isinstance(value, list) else value
            for name, value in placement.objects.items()
        }
        self._seen, _ = self._env.reset(
            seed=seed, options={'robot_init_options': robot, 'obj_init_options': objects}
        )
        self.instruction = self._domain.get_language_instruction()
        self._steps = 0
        return self.observe(), self._info(success=False)

    def advance(self, action: np.ndarray) -> tuple[float, bool, bool, dict[str, Any]]:
        """Take one control step of a third of a second.

        Args:
            action: [7].

        Returns:
            (reward, success, truncated, info); info['success'] tells of the present state.
        """
        self._seen, _, reached, _, _ = self._env.step(np.asarray(action, dtype=np.float64))
        self.instruction = self._domain.get_language_instruction()
        self._steps += 1
        truncated = self._steps >= self._suite.step_limit
        success = bool(reached) and truncated
        return float(success), success, truncated, self._info(bool(reached))

    def observe(self) -> dict[str, np.ndarray]:
        """What the last step returned; the pose in the base's frame, fingers in radians."""
        domain = self._domain
        pose = domain.agent.robot.pose.inv() * domain.tcp.pose
        joints = np.asarray(self._seen['agent']['qpos'], dtype=np.float32)
        image = np.asarray(self._seen['image'][CAMERA]['rgb'])
        return {
            'agentview': image[..., :3].astype(np.uint8),
            'ee_position_m': np.asarray(pose.p, dtype=np.float32),
            'ee_quaternion_xyzw': np.asarray(pose.q, dtype=np.float32)[[1, 2, 3, 0]],
            'gripper_position_m': joints[-4:-2],  # before the two joints of the head
        }

    def close(self) -> None:
        """Free the simulator."""
        if self._env is not None:
            self._env.close()
        self._env, self._built = None, ()

    @property
    def _domain(self) -> Any:
        return self._env.unwrapped

    def _choose_task(self, index: int) -> None:
        count = len(self._suite.tasks)
        if type(index) is not int or not 0 <= index < count:
            raise RefusedError(
                f'unknown task of {self._suite_name} {index!r}; valid: 0..{count - 1}.'
            )
        self._task_index = index
        self._task = self._suite.tasks[index]

    def _build(self, texture: str, overlay: str) -> None:
        """Build the simulator, unless it stands already."""
        if self._built == (self._task_index, texture, overlay):
            return
        self.close()
        import gymnasium

        real2sim = importlib.import_module('mani_skill2_real2sim')
        importlib.import_module('mani_skill2_real2sim.envs')  # registers the environments
        self._env = gymnasium.make(
            self._task.env_id,
            obs_mode='rgbd',
            robot='google_robot_static',
            sim_freq=SIMULATION_FREQUENCY_HZ,
            control_mode=CONTROL_MODE,
            control_freq=CONTROL_FREQUENCY_HZ,
            max_episode_steps=self._suite.step_limit,
            camera_cfgs={'add_segmentation': True},
            rgb_overlay_path=os.path.join(str(real2sim.ASSET_DIR), 'real_inpainting', overlay),
            rgb_overlay_cameras=[CAMERA],
            urdf_version=texture,
            **self._task.arguments,
        )
        self._built = (self._task_index, texture, overlay)

    def _info(self, success: bool) -> dict[str, Any]:
        return {
            'success': success,
            'task': self._task_index,
            'init_state': self._init_state,
            'elapsed_steps': self._steps,
        }


def make(suite: str, task: int = 0) -> GoogleRobot:
    """Build the Google robot's simulator; see GoogleRobot."""
    return GoogleRobot(suite, task)
