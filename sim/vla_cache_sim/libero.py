"""LIBERO's suites as gymnasium environments.

One control tick is `step`: 25 physics steps under robosuite's operational-space controller, then
one image per camera. Rendering costs several times the physics, so whoever does not read every
frame calls the two halves apart:

    >>> env.unwrapped.advance(action)  # physics alone
    >>> observation = env.unwrapped.observe()  # images and proprioception of the present state
"""

import contextlib
import gc
import os
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar
from xml.etree import ElementTree

import gymnasium
import numpy as np
from gymnasium import spaces

from vla_cache_ros.core.errors import ConfigError, SimulatorError, UnknownNameError
from vla_cache_sim.checks import check_action, check_reset_options, check_view
from vla_cache_sim.conditions import UNDISTURBED, Condition, episode_key, find_condition
from vla_cache_sim.image_disturbance import ImageDisturbance
from vla_cache_sim.libero_assets import LiberoTask, find_task, load_init_states, prepare_import
from vla_cache_sim.random_start import randomize_start
from vla_cache_sim.renderer import Renderer
from vla_cache_sim.scene import CAMERAS, Scene
from vla_cache_sim.scene_disturbance import SceneDisturbance
from vla_cache_sim.suites import (
    CONTROL_FREQUENCY_HZ,
    EVALUATION_STATES,
    SUITES,
    WAITING_STEPS,
    Suite,
    find_suite,
)

__all__ = ['CAMERAS', 'NULL_ACTION', 'SUITES', 'LiberoEnv', 'Suite', 'make_env']

NULL_ACTION = np.array([0, 0, 0, 0, 0, 0, -1], dtype=np.float32)
"""No motion, gripper open."""

RESET_OPTIONS = ('task', 'init_state', 'spread', 'condition')
_PLACEMENT_ATTEMPTS = 50


class LiberoEnv(gymnasium.Env[dict[str, np.ndarray], np.ndarray]):
    """A Franka Panda at one of LIBERO's tasks.

    Observation (Dict):
        <camera>: uint8 [H, W, 3], RGB, upright as a person would hold the camera. 'agentview'
            looks at the robot from across the table, 'wrist' rides on the hand.
        ee_position_m: float32 [3], grip site in the world frame, metres.
        ee_quaternion_xyzw: float32 [4], hand in the world frame.
        gripper_position_m: float32 [2], the two finger joints, metres (0.04, -0.04 fully open).
        joint_position_rad: float32 [7], arm joints.

    Action, Box [-1, 1]^7 at 20 Hz: end-effector translation (1 = 0.05 m), rotation vector in the
    world frame (1 = 0.5 rad), gripper (-1 opens, +1 closes).

    An episode ends (`terminated`) with reward 1 when LIBERO's own goal predicate holds and is
    `truncated` at the suite's published step limit.

    The simulator is built once per task and then reset in place (robosuite's hard_reset=False): a
    reset takes 0.1 s in place of 3 s. The model is then not compiled anew from sampled XML; joint
    state, velocities, controller goal, contact warm start and the placed fixtures are all reset,
    and the arrangement drawn before an official initial state is loaded is always that of seed 0,
    so that an episode depends on (task, init_state, actions) and not on the episodes before it.
    """

    metadata: ClassVar[dict[str, Any]] = {
        'render_modes': ['rgb_array'],
        'render_fps': int(CONTROL_FREQUENCY_HZ),
    }

    def __init__(
        self,
        suite: str = 'libero_object',
        task: int = 0,
        image_size_px: int = 128,
        cameras: Sequence[str] = ('agentview', 'wrist'),
        render_mode: str | None = None,
    ) -> None:
        """Declare the spaces; the simulator itself is built at the first reset.

        Args:
            suite: One of LIBERO's suites, a key of `SUITES`.
            task: Task index in the suite, used until a reset asks for another.
            image_size_px: Side of the square images.
            cameras: Names out of `CAMERAS`.
            render_mode: None or 'rgb_array' (the first camera).

        Raises:
            UnknownNameError: Unknown suite, task, camera or render mode.
            ConfigError: The image size is out of range, or a camera is named twice.
            SimulatorError: LIBERO or the rendering library is not installed.
        """
        self.suite = find_suite(suite, 'libero')
        modes = self.metadata['render_modes']
        check_view(cameras, CAMERAS, image_size_px, render_mode, modes)
        self.render_mode = render_mode
        self.image_size_px = image_size_px
        self.cameras = tuple(cameras)
        self._task = find_task(suite, task)
        self._init_states = load_init_states(self._task)
        self._domain: Any = None
        self._built_task: LiberoTask | None = None
        self._scene: Scene | None = None
        self._renderer: Renderer | None = None
        self._steps = 0
        self._init_state: int | str = 0
        self._condition = UNDISTURBED
        self._scene_disturbance: SceneDisturbance | None = None
        self._image_disturbance: ImageDisturbance | None = None

        image = spaces.Box(0, 255, (image_size_px, image_size_px, 3), np.uint8)
        self.observation_space: spaces.Dict = spaces.Dict(
            {
                **dict.fromkeys(self.cameras, image),
                'ee_position_m': spaces.Box(-3.0, 3.0, (3,), np.float32),
                'ee_quaternion_xyzw': spaces.Box(-1.0, 1.0, (4,), np.float32),
                'gripper_position_m': spaces.Box(-0.1, 0.1, (2,), np.float32),
                'joint_position_rad': spaces.Box(-2 * np.pi, 2 * np.pi, (7,), np.float32),
            }
        )
        self.action_space = spaces.Box(-1.0, 1.0, (7,), np.float32)

    @property
    def task(self) -> int:
        """Index of the present task in the suite."""
        return self._task.index

    @property
    def instruction(self) -> str:
        """The present task in words, as the published evaluations give it to a policy."""
        return self._task.instruction

    @property
    def control_frequency_hz(self) -> float:
        """Actions per second of simulated time."""
        return CONTROL_FREQUENCY_HZ

    @property
    def scene(self) -> Scene:
        """Poses and image masks of the objects of the task: for training, never for a policy.

        Raises:
            ConfigError: There was no reset yet.
        """
        if self._scene is None:
            raise ConfigError('the environment holds no scene yet; call reset() first')
        return self._scene

    @property
    def elapsed_steps(self) -> int:
        """Control steps since the reset, waiting steps not counted."""
        return self._steps

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Start an episode.

        Args:
            seed: Seeds everything that is drawn at random here.
            options: 'task': task index (default: the present one). 'init_state': index of an
                official initial state, or 'random' for a training start that is none of them
                (default: an official one drawn at random). 'spread': scale of a random start's
                deviations, default 1. 'condition': what disturbs the episode, a key of
                `conditions.CONDITIONS` (default: nothing); without a seed its seed is drawn.

        Raises:
            UnknownNameError: Unknown option, task, initial state or condition.
            SimulatorError: No valid random start was found.
        """
        self.start(seed=seed, options=options)
        return self.observe(), self._info(success=False)

    def start(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> None:
        """`reset` without rendering; arguments and errors are the same."""
        super().reset(seed=seed)
        options = dict(options or {})
        check_reset_options(options, RESET_OPTIONS)
        condition = find_condition(options.get('condition', UNDISTURBED))
        self._condition = UNDISTURBED
        self._scene_disturbance = self._image_disturbance = None
        task_index = options.get('task', self._task.index)
        if task_index != self._task.index:
            self._task = find_task(self.suite.name, task_index)
            self._init_states = load_init_states(self._task)
        if self._built_task != self._task:
            self._build()
        self._init_state = self._choose_init_state(options.get('init_state'))
        if self._init_state == 'random':
            randomize_start(self, self.np_random, spread=float(options.get('spread', 1.0)))
        else:
            self.set_state(self._init_states[int(self._init_state)])
            self.wait()
        self._steps = 0
        self._disturb(condition, seed)

    def step(
        self, action: np.ndarray
    ) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        """Advance one control step and render it."""
        reward, terminated, truncated, info = self.advance(action)
        return self.observe(), reward, terminated, truncated, info

    def advance(self, action: np.ndarray) -> tuple[float, bool, bool, dict[str, Any]]:
        """Advance one control step of 50 ms without rendering.

        Args:
            action: float [7], clipped to [-1, 1].

        Returns:
            (reward, terminated, truncated, info).

        Raises:
            ConfigError: Wrong shape or a value that is not finite, or there was no reset yet.
        """
        action = check_action(action, ' in [-1, 1]')
        if self._domain is None:
            raise ConfigError('the environment holds no scene yet; call reset() first')
        self._simulate(np.clip(action, -1.0, 1.0))
        self._steps += 1
        success = self.check_success()
        truncated = self._steps >= self.suite.step_limit
        return float(success), success, truncated, self._info(success)

    def observe(self) -> dict[str, np.ndarray]:
        """Render the cameras and read the robot's state, without advancing the simulation."""
        images = {camera: self.render_camera(camera) for camera in self.cameras}
        if self._image_disturbance is not None:
            images = self._image_disturbance.apply(images, self._steps)
        return {**images, **self.scene.proprioception()}

    def render(self) -> np.ndarray | None:
        """Return the first camera's image when the render mode is 'rgb_array'."""
        return self.render_camera(self.cameras[0]) if self.render_mode == 'rgb_array' else None

    def render_camera(self, camera: str, size_px: int | None = None) -> np.ndarray:
        """Render one camera upright, as the scene's disturbance has it; images are not disturbed.

        Args:
            camera: A key of `CAMERAS`.
            size_px: Side of the image, default the environment's own.

        Returns:
            uint8 [H, W, 3].
        """
        if camera not in CAMERAS:
            raise UnknownNameError('camera', camera, CAMERAS)
        size_px = size_px or self.image_size_px
        if self._renderer is None:
            # Created at the first frame: a run without images needs no OpenGL.
            self._renderer = Renderer(self.scene.model, self.scene.data)
        camera_id = self._domain.sim.model.camera_name2id(CAMERAS[camera])
        if self._scene_disturbance is not None:
            return self._scene_disturbance.render(
                self._renderer, camera, camera_id, size_px, self._steps
            )
        return self._renderer.render(camera_id, size_px)

    def close(self) -> None:
        """Free the simulator and its rendering context."""
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None
        if self._domain is not None:
            self._domain.close()
        self._domain = self._scene = self._built_task = None
        self._scene_disturbance = self._image_disturbance = None

    # The remaining methods serve this package's own modules (random starts, experts).

    def set_state(self, state: np.ndarray) -> None:
        """Reset the simulator and load a MuJoCo state, [1 + nq + nv], without waiting steps."""
        self.rebuild_arrangement(seed=0)
        self._domain.sim.set_state_from_flattened(state)
        self._domain.sim.forward()

    def rebuild_arrangement(self, seed: int) -> None:
        """Reset in place to an arrangement drawn from the task's official regions.

        Raises:
            SimulatorError: LIBERO finds no free place for its objects.
        """
        from robosuite.utils.errors import RandomizationError

        model = self.scene.model
        with _numpy_seed(seed):
            for _ in range(_PLACEMENT_ATTEMPTS):
                # LIBERO places objects relative to where the furniture was compiled.
                for body, (position, quaternion) in self._furniture.items():
                    model.body_pos[body] = position
                    model.body_quat[body] = quaternion
                with contextlib.suppress(RandomizationError):
                    self._domain.reset()
                    break
            else:
                raise SimulatorError(
                    f'LIBERO found no place for the objects of {self.instruction!r} in '
                    f'{_PLACEMENT_ATTEMPTS} attempts; use another seed'
                )
        robot = self._domain.robots[0]
        robot.gripper.current_action = np.zeros(robot.gripper.dof)  # robosuite leaves it
        robot.controller.sim = _NoForward(robot.controller.sim)

    def wait(self, steps: int = WAITING_STEPS) -> None:
        """Take the official null action for some steps, so that the objects come to rest."""
        for _ in range(steps):
            self._simulate(NULL_ACTION)

    def hold_arm(self) -> None:
        """Make the arm's present pose the controller's goal, after joints were set directly.

        The state must be up to date (mj_forward).
        """
        controller = self._domain.robots[0].controller
        controller.update(force=True)
        controller.reset_goal()

    def check_success(self) -> bool:
        """Evaluate LIBERO's goal predicate in the present state."""
        return bool(self._domain._check_success())

    def _simulate(self, action: np.ndarray) -> None:
        """Take the physics steps of one control step.

        robosuite evaluates the forward dynamics three times per physics step: before the
        controller, in it, and in mj_step. Splitting mj_step around the controller gives the same
        trajectory bit for bit in about half the time.
        """
        import mujoco

        model, data = self.scene.model, self.scene.data
        robot = self._domain.robots[0]
        disturbance = self._scene_disturbance
        for substep in range(self._substeps):
            mujoco.mj_step1(model, data)
            if disturbance is not None:
                disturbance.after_substep()
            robot.control(action, policy_step=substep == 0)
            mujoco.mj_step2(model, data)
        self._domain._post_process()  # e.g. lights up a stove that was turned on

    def _disturb(self, condition: Condition, seed: int | None) -> None:
        """Have the episode that has just been set up disturbed."""
        self._condition = condition.name
        if condition.name == UNDISTURBED:
            return
        seed = int(self.np_random.integers(2**31)) if seed is None else seed
        key = episode_key(seed, self.task, self._init_state)
        self._image_disturbance = ImageDisturbance(condition, key)
        if condition.needs_scene:
            self._scene_disturbance = SceneDisturbance(
                condition, key, self.scene, 1 / CONTROL_FREQUENCY_HZ
            )

    def _choose_init_state(self, init_state: int | str | None) -> int | str:
        if init_state is None:
            return int(self.np_random.integers(EVALUATION_STATES))
        if init_state == 'random':
            return 'random'
        is_index = isinstance(init_state, int | np.integer) and not isinstance(init_state, bool)
        if not is_index or not 0 <= int(init_state) < len(self._init_states):
            raise UnknownNameError(
                'initial state', init_state, [f'0..{len(self._init_states) - 1}', "'random'"]
            )
        return int(init_state)

    def _build(self) -> None:
        """Build the simulator of the present task."""
        self.close()
        gc.collect()  # LIBERO's objects refer to one another; a scene holds some 300 MB
        prepare_import()
        import libero.libero.envs.bddl_utils as bddl_utils
        import robosuite
        from libero.libero.envs import TASK_MAPPING

        bddl_path = str(self._task.bddl_path)
        problem = TASK_MAPPING[bddl_utils.get_problem_info(bddl_path)['problem_name']]
        with _numpy_seed(0), _no_output():
            self._domain = problem(
                bddl_path,
                robots=['Panda'],
                controller_configs=robosuite.load_controller_config(default_controller='OSC_POSE'),
                gripper_types='default',
                initialization_noise=None,
                use_camera_obs=False,
                has_renderer=False,
                has_offscreen_renderer=False,
                control_freq=CONTROL_FREQUENCY_HZ,
                horizon=10**9,
                ignore_done=True,
                hard_reset=False,
            )
        # robosuite would evaluate some 40 sensors 25 times a control step; `observe` reads what
        # is needed from the simulator.
        self._domain._observables.clear()
        self._substeps = round(self._domain.control_timestep / self._domain.model_timestep)
        self._scene = Scene(self._domain)
        self._furniture = self._compiled_furniture()
        self._built_task = self._task

    def _compiled_furniture(self) -> dict[int, tuple[list[float], list[float]]]:
        """Position and quaternion wxyz at which each fixture's body was compiled, by body."""
        bodies = ElementTree.fromstring(self._domain.model.get_xml()).iter('body')
        frames = {
            body.get('name'): (
                [float(x) for x in body.get('pos', '0 0 0').split()],
                [float(x) for x in body.get('quat', '1 0 0 0').split()],
            )
            for body in bodies
        }
        model = self._domain.sim.model
        indices = (self._domain.obj_body_id[name] for name in self.scene.fixtures)
        return {index: frames[model.body_id2name(index)] for index in indices}

    def _info(self, success: bool) -> dict[str, Any]:
        return {
            'success': success,
            'instruction': self.instruction,
            'task': self.task,
            'init_state': self._init_state,
            'condition': self._condition,
            'elapsed_steps': self._steps,
        }


class _NoForward:
    """A simulator for the controller that is already up to date when the controller asks."""

    def __init__(self, sim: Any) -> None:
        self._sim = sim
        self.model = sim.model
        self.data = sim.data

    def forward(self) -> None:
        """Do nothing: mj_step1 has just been called."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sim, name)


def check_task(suite: str, task: int) -> None:
    """Make sure, without building anything, that a task can be built.

    Raises:
        UnknownNameError: There is no such suite or task.
        SimulatorError: LIBERO, its renderer or files of the task are missing; the message says
            how to get them.
    """
    load_init_states(find_task(suite, task))


def make_env(
    suite: str,
    task: int = 0,
    *,
    image_size_px: int = 128,
    cameras: Sequence[str] = ('agentview', 'wrist'),
) -> LiberoEnv:
    """Build an environment without gymnasium's wrappers; see `LiberoEnv` for the arguments."""
    return LiberoEnv(suite, task, image_size_px=image_size_px, cameras=cameras)


@contextlib.contextmanager
def _numpy_seed(seed: int) -> Iterator[None]:
    """Seed numpy's global generator, which LIBERO draws from, and restore it afterwards."""
    state = np.random.get_state()
    np.random.seed(seed % 2**32)
    try:
        yield
    finally:
        np.random.set_state(state)


@contextlib.contextmanager
def _no_output() -> Iterator[None]:
    """Swallow what LIBERO prints while it builds a scene."""
    with (
        open(os.devnull, 'w', encoding='utf-8') as sink,
        contextlib.redirect_stdout(sink),
    ):
        yield
