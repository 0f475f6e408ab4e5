"""LIBERO as the published evaluations run it; a factory for `server`, without this project.

LIBERO's own OffScreenRenderEnv, compiled anew at every reset, its observations as robosuite
samples them, its own success. The versions come from requirements/published.txt.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from libero.libero import benchmark, get_libero_path
from libero.libero.envs import OffScreenRenderEnv

STEP_LIMITS = {
    'libero_spatial': 220,
    'libero_object': 280,
    'libero_goal': 300,
    'libero_10': 520,
}
"""Control steps after the waiting steps."""

WAITING_STEPS = 10
NULL_ACTION = np.array([0, 0, 0, 0, 0, 0, -1], dtype=np.float64)
CAMERAS = {'agentview': 'agentview_image', 'wrist': 'robot0_eye_in_hand_image'}
STATE = {
    'ee_position_m': 'robot0_eef_pos',
    'ee_quaternion_xyzw': 'robot0_eef_quat',
    'gripper_position_m': 'robot0_gripper_qpos',
    'joint_position_rad': 'robot0_joint_pos',
}
BOUNDS = {
    'ee_position_m': (3.0, 3),
    'ee_quaternion_xyzw': (1.0, 4),
    'gripper_position_m': (0.1, 2),
    'joint_position_rad': (2 * np.pi, 7),
}
RESET_OPTIONS = ('task', 'init_state')


class RefusedError(ValueError):
    """The client asked for something that there is not."""

    kind = 'config'


class PublishedLibero:
    """One suite; observations and actions are those of vla_cache_sim.libero.LiberoEnv."""

    control_frequency_hz = 20.0
    cameras = tuple(CAMERAS)

    def __init__(self, suite: str, task: int, image_size_px: int) -> None:
        """Look the task up; the simulator is built at the first reset.

        Args:
            suite: LIBERO's name of the suite.
            task: Task index, used until a reset asks for another.
            image_size_px: Side of the images; the published evaluations take 256.

        Raises:
            RefusedError: Unknown suite or task.
        """
        if suite not in STEP_LIMITS:
            raise RefusedError(f'unknown suite {suite!r}; valid: {", ".join(STEP_LIMITS)}.')
        self._suite_name = suite
        self._suite = benchmark.get_benchmark_dict()[suite]()
        self._image_size_px = image_size_px
        self._built_task = -1
        self._env: Any = None
        self._seen: dict[str, np.ndarray] = {}
        self._steps = self._init_state = 0
        self._choose_task(task)

    @property
    def instruction(self) -> str:
        """The present task in words."""
        return self._task.language

    @property
    def spaces(self) -> dict[str, Any]:
        """Shapes and bounds of the action and of what is observed."""
        size = self._image_size_px
        image = {'low': 0, 'high': 255, 'shape': [size, size, 3], 'dtype': 'uint8'}
        states = {
            name: {'low': -bound, 'high': bound, 'shape': [length], 'dtype': 'float32'}
            for name, (bound, length) in BOUNDS.items()
        }
        return {
            'action': {'low': -1.0, 'high': 1.0, 'shape': [7], 'dtype': 'float32'},
            'observation': {**{camera: image for camera in CAMERAS}, **states},
        }

    def reset(
        self, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Start an episode from an official initial state.

        Args:
            seed: Not used: the published evaluations seed the simulator with 0.
            options: 'task' and 'init_state', indices.

        Raises:
            RefusedError: Unknown option, task or initial state.
        """
        options = dict(options or {})
        unknown = [option for option in options if option not in RESET_OPTIONS]
        if unknown:
            raise RefusedError(
                f'unknown reset option {unknown[0]!r}; valid with the published simulator: '
                f'{", ".join(RESET_OPTIONS)}.'
            )
        self._choose_task(options.get('task', self._task_index))
        self._init_state = options.get('init_state', 0)
        count = len(self._init_states)
        if type(self._init_state) is not int or not 0 <= self._init_state < count:
            raise RefusedError(
                f'unknown initial state {self._init_state!r}; valid: 0..{count - 1}.'
            )
        self._build()
        # The published scripts seed once a task, so that where furniture stands depends on the
        # episodes before; seeded here, an episode is the same one in any order.
        self._env.seed(0)
        self._env.reset()
        self._seen = self._env.set_init_state(self._init_states[self._init_state])
        for _ in range(WAITING_STEPS):
            self._seen, _, _, _ = self._env.step(NULL_ACTION.tolist())
        self._steps = 0
        return self.observe(), self._info(success=False)

    def advance(self, action: np.ndarray) -> tuple[float, bool, bool, dict[str, Any]]:
        """Take one control step of 50 ms, rendered like all of them: robosuite samples images.

        Args:
            action: [7].

        Returns:
            (reward, success, truncated, info).
        """
        self._seen, reward, success, _ = self._env.step(action.tolist())
        self._steps += 1
        truncated = self._steps >= STEP_LIMITS[self._suite_name]
        return float(reward), bool(success), truncated, self._info(bool(success))

    def observe(self) -> dict[str, np.ndarray]:
        """What the last control step returned, images upright."""
        images = {name: self._seen[key][::-1] for name, key in CAMERAS.items()}
        states = {name: self._seen[key].astype(np.float32) for name, key in STATE.items()}
        return {**images, **states}

    def close(self) -> None:
        """Free the simulator."""
        if self._env is not None:
            self._env.close()
        self._env, self._built_task = None, -1

    def _choose_task(self, index: int) -> None:
        count = self._suite.n_tasks
        if type(index) is not int or not 0 <= index < count:
            raise RefusedError(
                f'unknown task of {self._suite_name} {index!r}; valid: 0..{count - 1}.'
            )
        self._task_index = index
        self._task = self._suite.get_task(index)
        self._init_states = self._suite.get_task_init_states(index)

    def _build(self) -> None:
        if self._built_task == self._task_index:
            return
        self.close()
        folder = get_libero_path('bddl_files')
        self._env = OffScreenRenderEnv(
            bddl_file_name=f'{folder}/{self._task.problem_folder}/{self._task.bddl_file}',
            camera_heights=self._image_size_px,
            camera_widths=self._image_size_px,
        )
        self._built_task = self._task_index

    def _info(self, success: bool) -> dict[str, Any]:
        return {
            'success': success,
            'task': self._task_index,
            'init_state': self._init_state,
            'elapsed_steps': self._steps,
        }


def make(suite: str, task: int = 0, image_size_px: int = 256) -> PublishedLibero:
    """Build LIBERO's simulator; see PublishedLibero."""
    return PublishedLibero(suite, task, image_size_px)
