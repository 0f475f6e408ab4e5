"""Small synthetic episodes."""

from collections.abc import Callable

import numpy as np
import pytest

from vla_cache_ros.dataset import DatasetSpec, Episode, EpisodeInfo


@pytest.fixture
def spec() -> DatasetSpec:
    return DatasetSpec(image_size_px=32, relevance_rows=4)


@pytest.fixture
def make_episode(spec: DatasetSpec) -> Callable[..., Episode]:
    def make(frames: int = 5, seed: int = 0, instruction: str = 'lift the can') -> Episode:
        rng = np.random.default_rng(seed)

        def floats(*shape: int) -> np.ndarray:
            return rng.uniform(-1, 1, (frames, *shape)).astype(np.float32)

        smooth = np.linspace(0, 255, 32)[:, None, None] * np.ones((frames, 32, 32, 3))
        return Episode(
            images={camera: smooth.astype(np.uint8) for camera in spec.cameras},
            state=floats(9),
            action=floats(7),
            executed_action=floats(7),
            label_chunk=floats(8, 7),
            label_valid=rng.random((frames, 8)) < 0.5,
            target_position_m=floats(3),
            goal_position_m=floats(3),
            relevance=rng.integers(0, 8, (frames, 2, 4, 4)).astype(np.uint8),
            policy_drives=rng.random(frames) < 0.5,
            info=EpisodeInfo(instruction, suite='fake', task=1, seed=seed, attempt=seed),
        )

    return make
