"""A tiny VLA with seeded weights, and observations for it."""

import numpy as np
import pytest
import torch

from vla_cache_models.decoder import DecoderConfig
from vla_cache_models.small.checkpoint import Checkpoint
from vla_cache_models.small.network import ParallelVla, VlaConfig
from vla_cache_models.small.proprioception import PROPRIOCEPTION_SIZE, ProprioceptionScale
from vla_cache_models.small.tokenizer import WordTokenizer
from vla_cache_ros.core.types import Observation, Proprioception

INSTRUCTION = 'pick up the milk and place it in the basket'


def tiny_config(attention: str = 'camera_isolated', kv_heads: int = 2) -> VlaConfig:
    """Two 32 px cameras of 4 x 4 patches."""
    return VlaConfig(
        cameras=('agentview', 'wrist'),
        image_size_px=32,
        patch_size_px=8,
        tower=DecoderConfig(32, 2, 2, 2, 64, rope_theta=0),
        decoder=DecoderConfig(32, 4, 4, kv_heads, 64),
        stem_width=48,
        vocabulary_size=12,
        text_tokens=12,
        proprioception_size=PROPRIOCEPTION_SIZE,
        chunk_size=4,
        action_size=7,
        relevance_layer=1,
        attention=attention,
    )


def make_checkpoint(config: VlaConfig) -> Checkpoint:
    """Seeded weights; the tokenizer knows INSTRUCTION."""
    torch.manual_seed(0)
    tokenizer = WordTokenizer.fit([INSTRUCTION], config.text_tokens)
    assert tokenizer.vocabulary_size <= config.vocabulary_size
    scale = ProprioceptionScale((0.0, 0.0, 1.0), (0.1, 0.1, 0.1))
    return Checkpoint(ParallelVla(config).eval(), tokenizer, scale, execute_steps=2)


def make_observation(
    rng: np.random.Generator, instruction: str = INSTRUCTION, size: int = 32
) -> Observation:
    """Random images and a plausible arm state."""
    images = {
        name: rng.integers(0, 256, (size, size, 3), dtype=np.uint8)
        for name in ('agentview', 'wrist')
    }
    state = Proprioception(
        rng.normal(size=3), np.array([0.0, 0.0, 0.0, 1.0]), np.array([0.04, -0.04])
    )
    return Observation(images, state, instruction, stamp_ns=7)


@pytest.fixture
def rng() -> np.random.Generator:
    """Seeded randomness."""
    return np.random.default_rng(0)
