"""A robot that is a point, for the recorder's tests."""

from types import SimpleNamespace
from typing import Any

import numpy as np

from vla_cache_ros.core.types import ActionChunk, Observation
from vla_cache_ros.dataset import DatasetSpec, EpisodeInfo
from vla_cache_sim.demonstrations.drivers import NoiseConfig
from vla_cache_sim.demonstrations.rollout import rollout_episode

SPEC = DatasetSpec(image_size_px=32, relevance_rows=4)
QUIET = NoiseConfig(max_std=0.0, burst_probability=0.0)


class PointRobot:
    """Moves 2 cm per action unit towards a goal at the origin; task 2 cannot be done."""

    cameras = SPEC.cameras
    step_limit = 60

    def __init__(self, task: int = 0) -> None:
        self.task = task
        self.instruction = f'go home {task}'
        self.scene = self
        self.renders = 0

    def start(self, seed: int, options: dict[str, Any]) -> None:
        assert options['init_state'] == 'random'
        self.position = np.random.default_rng(seed).uniform(0.3, 0.5, 3)
        self.steps = 0

    def close(self) -> None:
        pass

    def advance(self, action: np.ndarray) -> tuple[float, bool, bool, dict[str, Any]]:
        self.position = self.position + 0.02 * action[:3]
        self.steps += 1
        success = bool(np.abs(self.position).max() < 0.03) and self.task != 2
        return float(success), success, self.steps >= self.step_limit, {}

    def observe(self) -> dict[str, np.ndarray]:
        self.renders += 1
        image = np.full((32, 32, 3), self.steps, dtype=np.uint8)
        return {
            'agentview': image,
            'wrist': image + 100,
            'ee_position_m': self.position.astype(np.float32),
            'ee_quaternion_xyzw': np.array([0, 0, 0, 1], dtype=np.float32),
            'gripper_position_m': np.zeros(2, dtype=np.float32),
            'joint_position_rad': np.zeros(7, dtype=np.float32),
        }

    def target_position_m(self) -> np.ndarray:
        return self.position + 1

    def goal_position_m(self) -> np.ndarray:
        return np.zeros(3)

    def relevance_masks(self, camera: str, rows: int, cols: int) -> SimpleNamespace:
        masks = np.zeros((3, rows, cols), dtype=bool)
        masks[0, 0, 0] = masks[1, :, 1] = True
        masks[2, 0, 0] = camera == 'wrist'
        return SimpleNamespace(target=masks[0], goal=masks[1], gripper=masks[2])


class PointExpert:
    def __init__(self, env: PointRobot) -> None:
        self.env = env

    def act(self) -> np.ndarray:
        action = np.zeros(7, dtype=np.float32)
        action[:3] = np.clip(-self.env.position / 0.02, -1, 1)
        action[6] = self.env.steps / 100  # a label tells its control step
        return action


class PointPolicy:
    """Always moves along +x; counts its calls."""

    chunk_size = 8

    def __init__(self) -> None:
        self.calls = 0

    def reset(self, reason: str = 'reset') -> None:
        del reason

    def act(self, observation: Observation) -> ActionChunk:
        self.calls += 1
        assert set(observation.images) == set(SPEC.cameras)
        actions = np.zeros((8, 7), dtype=np.float32)
        actions[:, 0] = 3.0  # out of limits: the driver clips
        return ActionChunk(actions, observation.stamp_ns)


def point_factory(suite: str, task: int, image_size_px: int) -> tuple[Any, Any]:
    assert (suite, image_size_px) == ('points', 32)
    return PointRobot(task), PointExpert


def crashing_factory(suite: str, task: int, image_size_px: int) -> tuple[Any, Any]:
    import os

    os._exit(1)


def roll(driver: Any, seed: int = 0) -> tuple[Any, PointRobot]:
    env = PointRobot()
    env.start(seed, {'init_state': 'random'})
    rng = np.random.default_rng(seed)
    episode = rollout_episode(env, PointExpert(env), driver, rng, SPEC, EpisodeInfo('go home'))
    return episode, env
