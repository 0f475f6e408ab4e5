"""An OpenVLA-OFT of 0.3 B parameters with random weights, for CPUs: same sequence, same shares.

    python benchmarks/oft_300m.py          prints its parameters and its work

Two cameras of 16 x 16 patches and a prompt of 35 tokens make 605 tokens, as published for
OpenVLA-OFT; towers and projector take about the share of the step's work that they have there.
"""

import json
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from work import step_work

from vla_cache_models.decoder import DecoderConfig
from vla_cache_models.prismatic.build import empty_network, random_vla
from vla_cache_models.prismatic.config import PrismaticConfig
from vla_cache_models.prismatic.layouts import oft_layout
from vla_cache_models.prismatic.network import PrismaticVlm
from vla_cache_models.prismatic.openvla_oft import ACTION_SIZE, CHUNK_SIZE
from vla_cache_models.prismatic.prompt import LlamaPrompt, StandInTokenizer
from vla_cache_models.prismatic.towers import TowerConfig
from vla_cache_models.prismatic.vla import PrismaticVla
from vla_cache_ros.core.config import ReuseConfig
from vla_cache_ros.core.layout import TokenLayout
from vla_cache_ros.core.plan import LayerGroup, ReusePlan
from vla_cache_ros.core.types import Observation

NAME = 'openvla_oft'
CONFIG = PrismaticConfig(
    towers=(
        TowerConfig('vit_small_patch14_reg4_dinov2.lvd142m', 224, depth=7),
        TowerConfig('vit_small_patch14_dinov2.lvd142m', 224, depth=6),
    ),
    decoder=DecoderConfig(width=1024, layers=20, heads=16, kv_heads=16, mlp_width=2752),
)
GRID = 16
TOKENS = 605
INSTRUCTION = (
    'pick up the black bowl on the cookie box and place it on the plate next to the small mug'
)
REUSED = 0.6
PUBLISHED_PRUNE_LAYERS = (1, 4, 6, 7)
"""2, 6, 9 and 11 of 32, scaled to 20."""


def make_model(dtype: torch.dtype = torch.float32) -> PrismaticVla:
    """The model with seeded random weights."""
    return random_vla(NAME, CONFIG, dtype=dtype)


def with_instruction(observations: Sequence[Observation]) -> list[Observation]:
    """The frames under the instruction that makes the sequence TOKENS long."""
    return [replace(observation, instruction=INSTRUCTION) for observation in observations]


def forced_reuse(
    prune_layers: tuple[int, ...], relevance_layer: int, layout: TokenLayout
) -> ReuseConfig:
    """Settings that reuse REUSED of the vision tokens in every cached step, whatever changed.

    The whole decision runs: comparison, relevance, protection, ranking. Every patch counts as
    static and as young, so the number of candidates, and with a fixed ratio that of the reused
    tokens, is the same at every step.

    Args:
        prune_layers: Layers at which reused tokens stop running.
        relevance_layer: The layer that gives the relevance.
        layout: The model's layout.
    """
    protected = ReuseConfig().protected_fraction
    candidates = sum(camera.size - round(protected * camera.size) for camera in layout)
    # Half a token more, since the planner rounds down.
    ratio = (round(REUSED * layout.num_vision) + 0.5) / candidates
    return ReuseConfig(
        prune_layers=prune_layers,
        similarity_threshold=0.0,
        difference_threshold=1.0,
        protected_fraction=protected,
        relevance_layer=relevance_layer,
        schedule='fixed',
        fixed_ratios=(ratio,) * len(prune_layers),
        age_limit_steps=None,
        keyframe_period_steps=None,
        camera_motion_fraction=1.0,
        auto_off=False,
    )


def plan_of(layout: TokenLayout, prune_layer: int, reused: int) -> ReusePlan:
    """All tokens run in the first layers; from `prune_layer` on, `reused` vision tokens do not."""
    every = np.arange(layout.num_tokens)
    kept = np.delete(every, np.s_[layout.vision[0] : layout.vision[0] + reused])
    layers = CONFIG.decoder.layers
    groups, runs = (LayerGroup(prune_layer, layers),), (kept,)
    if prune_layer:
        groups, runs = (LayerGroup(0, prune_layer), *groups), (every, *runs)
    status = np.zeros(layout.num_vision, dtype=np.uint8)
    return ReusePlan(layout.num_tokens, groups, runs, status, status.astype(np.int32))


def stage_work(network: PrismaticVlm, layout: TokenLayout, plan: ReusePlan) -> dict[str, float]:
    """Stage of the step -> multiply-adds."""
    return {
        stage: float(sum(part.multiply_adds for part in parts.values()))
        for stage, parts in step_work(network, layout, plan).items()
    }


def describe(layout: TokenLayout) -> dict[str, object]:
    """Parameters and work of a step, dense and at REUSED from the first layer on."""
    network = empty_network(NAME, CONFIG)
    reused = round(REUSED * layout.num_vision)
    return {
        'parameters': sum(weight.numel() for weight in network.parameters()),
        'tokens': layout.num_tokens,
        'dense': stage_work(network, layout, plan_of(layout, 0, 0)),
        'cached': stage_work(network, layout, plan_of(layout, 0, reused)),
        'cached_published_layers': stage_work(
            network, layout, plan_of(layout, PUBLISHED_PRUNE_LAYERS[0], reused)
        ),
    }


def main() -> None:
    """Print what the model is."""
    prompt = LlamaPrompt(StandInTokenizer())(INSTRUCTION)
    cameras = ('agentview', 'wrist')
    layout = oft_layout(cameras, GRID, len(prompt), CHUNK_SIZE * ACTION_SIZE)
    print(json.dumps(describe(layout), indent=2))


if __name__ == '__main__':
    main()
