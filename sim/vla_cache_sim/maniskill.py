"""SIMPLER's bridge tasks and ManiSkill's own, over ManiSkill 3, as gymnasium environments.

One control tick is `step`; its two halves can be called apart, as `vla_cache_sim.libero` says:
`advance` costs some ten milliseconds, `observe` several times that without a GPU.

Names and conventions of everything here are in docs/simulators.md.
"""

import contextlib
import dataclasses
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import gymnasium
import numpy as np
from gymnasium import spaces

from vla_cache_ros.core.errors import ConfigError, SimulatorError, UnknownNameError
from vla_cache_sim.checks import check_action, check_reset_options, check_view
from vla_cache_sim.conditions import (
    IMAGE_CONDITIONS,
    UNDISTURBED,
    episode_key,
    find_condition,
)
from vla_cache_sim.image_disturbance import ImageDisturbance
from vla_cache_sim.maniskill_assets import (
    ManiSkillTask,
    check_assets,
    find_task,
    prepare_import,
)
from vla_cache_sim.maniskill_robots import ROBOTS, Robot
from vla_cache_sim.suites import find_suite
from vla_cache_sim.vulkan import render_device

RESET_OPTIONS = ('task', 'init_state', 'condition')


class ManiSkillEnv(gymnasium.Env[dict[str, np.ndarray], np.ndarray]):
    """A robot at one of ManiSkill's tasks.

    Observation (Dict):
        <camera>: uint8 [H, W, 3], RGB, upright. 'agentview' looks at the robot; 'wrist' rides on
            the hand (suite 'maniskill' alone).
        ee_position_m: float32 [3], gripper's centre; in the base's frame (bridge) or the world's.
        ee_quaternion_xyzw: float32 [4], likewise.
        gripper_position_m: float32 [2], finger joints, metres.

    Action, [7]: translation, rotation vector, gripper (-1 opens, +1 closes). Bridge: metres and
    radians at 5 Hz; suite 'maniskill': LIBERO's units at 20 Hz (1 = 0.05 m, 1 = 0.5 rad).

    Bridge's episodes take all their steps, and the state after the last one decides, as in
    SIMPLER's published evaluation; info['success'] tells of the present state. The others end
    (`terminated`) with their first success.

    The simulator is built once per task and then reset in place. The arm is brought home before
    the objects are placed, so that an episode does not depend on the ones before it.
    """

    metadata: ClassVar[dict[str, Any]] = {'render_modes': ['rgb_array'], 'render_fps': 20}

    def __init__(
        self,
        suite: str = 'simpler_bridge',
        task: int = 0,
        image_size_px: int = 128,
        cameras: Sequence[str] | None = None,
        render_mode: str | None = None,
    ) -> None:
        """Declare the spaces; the simulator itself is built at the first reset.

        Args:
            suite: One of ManiSkill's suites, a key of `SUITES`.
            task: Task index in the suite, used until a reset asks for another.
            image_size_px: Side of the square images; default 128. Bridge's are 480 x 640 whatever
                is asked for: that is the published camera, and checkpoints resize by themselves.
            cameras: Names of cameras; None: all that the robot has.
            render_mode: None or 'rgb_array' (the first camera).

        Raises:
            UnknownNameError: Unknown suite, task, camera or render mode.
            ConfigError: The image size is out of range, or a camera is named twice.
        """
        self.suite = find_suite(suite, 'maniskill')
        self._robot_class = ROBOTS[self.suite.name]
        cameras = tuple(self._robot_class.cameras if cameras is None else cameras)
        modes = self.metadata['render_modes']
        check_view(cameras, self._robot_class.cameras, image_size_px, render_mode, modes)
        self.render_mode = render_mode
        self.cameras = cameras
        published_shape = self._robot_class.image_shape
        self.image_shape = published_shape or (image_size_px, image_size_px)
        self._task_index = task
        self._task = find_task(suite, task)
        self._domain: Any = None
        self._built_task: ManiSkillTask | None = None
        self._robot: Robot | None = None
        self._home: Any = None
        self._steps = 0
        self._init_state = 0
        self._disturbance = ImageDisturbance(find_condition(UNDISTURBED), ())
        self._condition = UNDISTURBED

        image = spaces.Box(0, 255, (*self.image_shape, 3), np.uint8)
        self.observation_space: spaces.Dict = spaces.Dict(
            {
                **dict.fromkeys(self.cameras, image),
                'ee_position_m': spaces.Box(-3.0, 3.0, (3,), np.float32),
                'ee_quaternion_xyzw': spaces.Box(-1.001, 1.001, (4,), np.float32),
                'gripper_position_m': spaces.Box(-0.1, 0.1, (2,), np.float32),
            }
        )
        self.action_space: spaces.Box = self._robot_class.action_space

    @property
    def task(self) -> int:
        """Index of the present task in the suite."""
        return self._task_index

    @property
    def instruction(self) -> str:
        """The present task in words."""
        return self.suite.instructions[self._task_index]

    @property
    def control_frequency_hz(self) -> float:
        """Actions per second of simulated time."""
        return self.suite.control_frequency_hz

    @property
    def step_limit(self) -> int:
        """Control steps before an episode of the present task is truncated."""
        return self._task.step_limit

    @property
    def domain(self) -> Any:
        """ManiSkill's environment: ground truth for training, never for a policy.

        Raises:
            ConfigError: There was no reset yet.
        """
        if self._domain is None:
            raise ConfigError('the environment holds no scene yet; call reset() first')
        return self._domain

    @property
    def robot(self) -> Robot:
        """The robot.

        Raises:
            ConfigError: There was no reset yet.
        """
        if self._robot is None:
            raise ConfigError('the environment holds no robot yet; call reset() first')
        return self._robot

    @property
    def scene(self) -> Robot:
        """What tells the robot's state without rendering: its `proprioception`."""
        return self.robot

    @property
    def elapsed_steps(self) -> int:
        """Control steps since the reset."""
        return self._steps

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Start an episode.

        Args:
            seed: Seeds the choice of an initial state that is not given; nothing else is random.
            options: 'task': task index (default: the present one). 'init_state': episode id of
                SIMPLER, or the seed of ManiSkill's own tasks (default: one of those that are
                evaluated on, drawn at random). 'condition': what disturbs the images, one of
                `conditions.IMAGE_CONDITIONS` (default: nothing).

        Raises:
            UnknownNameError: Unknown option, task, initial state or condition.
            SimulatorError: ManiSkill, a driver or the task's files are missing.
        """
        self.start(seed=seed, options=options)
        return self.observe(), self._info(success=False)

    def start(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> None:
        """`reset` without observing; arguments and errors are the same."""
        super().reset(seed=seed)
        options = dict(options or {})
        check_reset_options(options, RESET_OPTIONS)
        task_index = int(options.get('task', self._task_index))
        self._task, self._task_index = find_task(self.suite.name, task_index), task_index
        self._init_state = self._choose_init_state(options.get('init_state'))
        condition = find_condition(options.get('condition', UNDISTURBED), IMAGE_CONDITIONS)
        if self._built_task != self._task:
            self._build()
        self._place()
        self._steps = 0
        key = episode_key(seed or 0, task_index, self._init_state)
        self._condition, self._disturbance = condition.name, ImageDisturbance(condition, key)

    def step(
        self, action: np.ndarray
    ) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        """Advance one control step and render it."""
        reward, terminated, truncated, info = self.advance(action)
        return self.observe(), reward, terminated, truncated, info

    def advance(self, action: np.ndarray) -> tuple[float, bool, bool, dict[str, Any]]:
        """Advance one control step without rendering.

        Args:
            action: float [7], clipped to the action space.

        Returns:
            (reward, terminated, truncated, info).

        Raises:
            ConfigError: Wrong shape or a value that is not finite, or there was no reset yet.
        """
        action = check_action(action)
        domain = self.domain
        action = np.clip(action, self.action_space.low, self.action_space.high)
        domain._step_action(self.robot.command(action))
        self._steps += 1
        success = bool(domain.get_info()['success'])
        truncated = self._steps >= self.step_limit
        terminated = success and (truncated or not self._task.judged_at_end)
        return float(terminated), terminated, truncated, self._info(success)

    def observe(self) -> dict[str, np.ndarray]:
        """Render the cameras and read the robot's state, without advancing the simulation."""
        rendered = self.domain._get_obs_sensor_data()
        images = {camera: self._image(rendered, camera) for camera in self.cameras}
        return {
            **self._disturbance.apply(images, self._steps),
            **self.robot.proprioception(),
        }

    def render(self) -> np.ndarray | None:
        """Return the first camera's image when the render mode is 'rgb_array'."""
        if self.render_mode != 'rgb_array':
            return None
        return self._image(self.domain._get_obs_sensor_data(), self.cameras[0])

    def close(self) -> None:
        """Free the simulator."""
        if self._domain is not None:
            self._domain.close()
        self._domain = self._robot = self._built_task = None

    def _image(self, rendered: dict[str, Any], camera: str) -> np.ndarray:
        image = rendered[self._robot_class.cameras[camera]]['rgb'][0]
        return np.ascontiguousarray(image.cpu().numpy())

    def _choose_init_state(self, init_state: Any) -> int:
        if init_state is None:
            return int(self.np_random.integers(self.suite.init_states))
        is_index = isinstance(init_state, int | np.integer) and not isinstance(init_state, bool)
        if not is_index or not 0 <= int(init_state) < self._task.init_states:
            raise UnknownNameError(
                'initial state', init_state, [f'0..{self._task.init_states - 1}']
            )
        return int(init_state)

    def _build(self) -> None:
        """Build the simulator of the present task."""
        self.close()
        check_assets(self._task)
        prepare_import()
        from mani_skill.utils.registration import REGISTERED_ENVS

        robot_class = self._robot_class
        options: dict[str, Any] = {}
        if robot_class.image_shape is None:
            height, width = self.image_shape
            options['sensor_configs'] = {'height': height, 'width': width}
        if robot_class.uid is not None:
            options['robot_uids'] = robot_class.uid
        with _drawing_on(render_device()), warnings.catch_warnings():
            warnings.simplefilter('ignore')  # about ManiSkill's own code
            # The class itself: ManiSkill's own factory would ask on stdin for missing files.
            self._domain = REGISTERED_ENVS[self._task.env_id].cls(
                obs_mode=robot_class.observation_mode,
                control_mode=robot_class.control_mode,
                sim_backend='physx_cpu',
                **options,
            )
        if abs(self._domain.control_freq - self.control_frequency_hz) > 1e-6:
            raise SimulatorError(
                f'{self._task.env_id} runs at {self._domain.control_freq} Hz where this suite '
                f'expects {self.control_frequency_hz}; install ManiSkill 3.0.1.'
            )
        if self._task.scene is not None:
            # ManiSkill keeps the photograph in the class, where the next scene would replace it.
            self._domain._rgb_overlay_images = dict(self._domain._rgb_overlay_images)
        # PickCube's green ball marks the goal: it belongs into the picture.
        for marker in self._domain._hidden_objects:
            marker.show_visual()
        self._domain._hidden_objects = []
        self._robot = robot_class(self._domain.agent)
        self._home = self._domain.agent.robot.get_qpos().clone()
        self._built_task = self._task

    def _place(self) -> None:
        """Begin the episode of the chosen initial state."""
        import torch

        domain = self.domain
        domain.agent.reset(init_qpos=self._home)
        if self._task.scene is None:
            domain.reset(seed=self._init_state)
        else:
            domain.reset(seed=0, options={'episode_id': torch.tensor([self._init_state])})

    def _info(self, success: bool) -> dict[str, Any]:
        return {
            'success': success,
            'instruction': self.instruction,
            'task': self.task,
            'init_state': self._init_state,
            'condition': self._condition,
            'elapsed_steps': self._steps,
        }


def check_task(suite: str, task: int) -> None:
    """Make sure, without building anything, that a task can be built.

    Raises:
        UnknownNameError: There is no such suite or task.
        SimulatorError: ManiSkill or files of the task are missing; the message says how to get
            them.
    """
    check_assets(find_task(suite, task))


def make_env(
    suite: str,
    task: int = 0,
    *,
    image_size_px: int = 128,
    cameras: Sequence[str] | None = None,
) -> ManiSkillEnv:
    """Build an environment without gymnasium's wrappers; see `ManiSkillEnv` for the arguments."""
    return ManiSkillEnv(suite, task, image_size_px=image_size_px, cameras=cameras)


@contextlib.contextmanager
def _drawing_on(device: Any) -> Iterator[None]:
    """Have ManiSkill draw on a device that its own names for devices cannot express."""
    from mani_skill.envs import sapien_env

    original = sapien_env.parse_sim_and_render_backend

    def parse(sim_backend: str, render_backend: str) -> Any:
        del render_backend
        return dataclasses.replace(
            original(sim_backend, 'none'),
            render_device=device,
            render_backend='sapien_cuda' if device.is_cuda() else 'sapien_cpu',
        )

    sapien_env.parse_sim_and_render_backend = parse
    try:
        yield
    finally:
        sapien_env.parse_sim_and_render_backend = original
