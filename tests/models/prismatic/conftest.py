"""The three models at tiny size with seeded weights, and observations for them."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.models.prismatic.tiny_towers import register_tiny_towers
from vla_cache_models.decoder import DecoderConfig
from vla_cache_models.prismatic.build import random_vla
from vla_cache_models.prismatic.config import PrismaticConfig
from vla_cache_models.prismatic.dit import DitConfig
from vla_cache_models.prismatic.towers import TowerConfig
from vla_cache_models.prismatic.vla import PrismaticVla
from vla_cache_ros.core.types import Observation, Proprioception

INSTRUCTION = 'pick up the black bowl'
SIDE = 56
MODELS = ('openvla', 'openvla_oft', 'cogact')


def tiny_prismatic_config(kv_heads: int = 4, layers: int = 6) -> PrismaticConfig:
    """4 x 4 patches, decoder layers of 32."""
    return PrismaticConfig(
        towers=tuple(TowerConfig(timm_id, SIDE) for timm_id in register_tiny_towers()),
        decoder=DecoderConfig(32, layers, 4, kv_heads, 64),
    )


def tiny_vla(name: str, **options) -> PrismaticVla:
    """A tiny model in float32."""
    vla = random_vla(name, tiny_prismatic_config(**options), dit=DitConfig(2, 32, 4))
    with torch.no_grad():  # norms that are not all ones, biases that are not all zeros
        generator = torch.Generator().manual_seed(1)
        for parameter in vla._network.parameters():
            if parameter.ndim == 1:
                parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
    return vla


def make_observation(
    rng: np.random.Generator, instruction: str = INSTRUCTION, size: int = 64
) -> Observation:
    """Random images and a plausible arm state."""
    images = {
        name: rng.integers(0, 256, (size, size, 3), dtype=np.uint8)
        for name in ('agentview', 'wrist')
    }
    state = Proprioception(
        rng.normal(size=3) / 3, np.array([0.6, 0.0, 0.8, 0.0]), np.array([0.04, -0.04])
    )
    return Observation(images, state, instruction, stamp_ns=7)


def moved(observation: Observation, rng: np.random.Generator, patches: int = 3) -> Observation:
    """The same scene with a few changed spots in each image."""
    images = {}
    for name, image in observation.images.items():
        image = image.copy()
        for _ in range(patches):
            row, col = rng.integers(0, image.shape[0] - 8, 2)
            image[row : row + 8, col : col + 8] = rng.integers(0, 256, 3)
        images[name] = image
    return replace(observation, images=images)


@pytest.fixture
def rng() -> np.random.Generator:
    """Seeded."""
    return np.random.default_rng(0)
