import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from vla_cache_models.attendance import resolve_attendance
from vla_cache_models.decoder import Decoder, DecoderConfig
from vla_cache_models.flops import (
    implied_tokens,
    implied_tokens_behind,
    layer_flops,
    plan_flops,
    published_flops,
)
from vla_cache_ros.core.errors import ConfigError
from vla_cache_ros.core.kv_cache import KVCache
from vla_cache_ros.core.layout import ATTENTION_RULES, CameraSpan, TokenLayout
from vla_cache_ros.core.plan import LayerGroup, ReusePlan

LLAMA_7B = DecoderConfig(width=4096, layers=32, heads=32, kv_heads=32, mlp_width=11008)
SMALL = DecoderConfig(width=32, layers=4, heads=4, kv_heads=4, mlp_width=48)
GROUPS = (LayerGroup(0, 1), LayerGroup(1, 4))


def make_layout(attention: str, causal: bool) -> TokenLayout:
    cameras = (CameraSpan('left', 1, 2, 3), CameraSpan('right', 7, 3, 3))
    return TokenLayout(cameras, (17, 20), (20, 23), 23, attention, causal)


def make_plan(layout: TokenLayout, first: np.ndarray, second: np.ndarray) -> ReusePlan:
    vision = layout.num_vision
    return ReusePlan(
        layout.num_tokens, GROUPS, (first, second), np.zeros(vision, np.uint8), np.zeros(vision)
    )


def count(config: DecoderConfig, layout: TokenLayout, plan: ReusePlan) -> int:
    """Multiply-adds of the real decoder; torch counts two operations in each."""
    decoder = Decoder(config)
    cache = KVCache(config.layers, config.kv_heads, layout.num_tokens, config.head_dim)
    x = torch.zeros(1, len(plan.recompute[0]), config.width)
    running = plan.recompute[0]
    counter = FlopCounterMode(display=False)
    # The fused CPU kernel is not in torch's table of countable operations.
    with torch.inference_mode(), sdpa_kernel(SDPBackend.MATH), counter:
        for group, slots in zip(plan.groups, plan.recompute, strict=True):
            x = x[:, torch.from_numpy(np.searchsorted(running, slots))]
            running = slots
            attendance = resolve_attendance(layout, slots)
            x = decoder(x, torch.from_numpy(slots), attendance, cache, group.start, group.stop)
    assert counter.get_total_flops() % 2 == 0
    return counter.get_total_flops() // 2


@pytest.mark.parametrize(
    ('dense', 'tokens', 'whole'),
    [
        (1.864e12, 284.55, 285),  # OpenVLA
        (4.013e12, 604.86, 605),  # OpenVLA-OFT
        (1.847e12, 281.99, 282),  # CogACT, visual matching
        (1.807e12, 275.95, 276),  # CogACT, variant aggregation
    ],
)
def test_published_dense_figures_pin_the_token_counts(
    dense: float, tokens: float, whole: int
) -> None:
    implied = implied_tokens(LLAMA_7B, dense)
    assert implied == pytest.approx(tokens, abs=0.005)
    assert math.ceil(implied) == whole
    assert published_flops(LLAMA_7B, [whole] * 32) == pytest.approx(dense, rel=2e-3)


@pytest.mark.parametrize(
    ('dense', 'cached', 'vision', 'equal', 'behind', 'reused_share'),
    [
        (1.864e12, 1.355e12, 256, 207.49, 202.34, 0.321),
        (4.013e12, 3.097e12, 512, 469.31, 460.22, 0.282),
        (1.847e12, 1.496e12, 256, 228.89, 225.34, 0.221),
        (1.807e12, 1.493e12, 256, 228.43, 225.26, 0.198),
    ],
)
def test_published_cached_figures_imply_how_much_was_reused(
    dense: float, cached: float, vision: int, equal: float, behind: float, reused_share: float
) -> None:
    every = implied_tokens(LLAMA_7B, dense)
    assert implied_tokens(LLAMA_7B, cached) == pytest.approx(equal, abs=0.005)
    active = implied_tokens_behind(LLAMA_7B, cached, every, dense_layers=2)
    assert active == pytest.approx(behind, abs=0.005)
    assert (every - active) / vision == pytest.approx(reused_share, abs=5e-4)


@given(tokens=st.floats(0, 4000), layers=st.integers(1, 40), mlp_width=st.integers(1, 20_000))
def test_implied_tokens_inverts_the_published_formula(
    tokens: float, layers: int, mlp_width: int
) -> None:
    config = replace(LLAMA_7B, layers=layers, mlp_width=mlp_width)
    flops = published_flops(config, [tokens] * layers)
    assert implied_tokens(config, flops) == pytest.approx(tokens, rel=1e-9, abs=1e-9)


@given(first=st.integers(1, 600), rest=st.integers(1, 600), dense_layers=st.integers(0, 31))
def test_implied_tokens_behind_inverts_a_pruned_stack(
    first: int, rest: int, dense_layers: int
) -> None:
    layers = [first] * dense_layers + [rest] * (32 - dense_layers)
    flops = published_flops(LLAMA_7B, layers)
    assert implied_tokens_behind(LLAMA_7B, flops, first, dense_layers) == pytest.approx(rest)


@settings(max_examples=25, deadline=None)
@given(
    rule=st.sampled_from([*((rule, False) for rule in ATTENTION_RULES), ('all', True)]),
    kv_heads=st.sampled_from([1, 2, 4]),
    dropped=st.lists(st.integers(1, 15), unique=True),
    kept_in_first=st.integers(0, 15),
)
def test_plan_flops_is_what_torch_counts_in_the_real_decoder(
    rule: tuple[str, bool], kv_heads: int, dropped: list[int], kept_in_first: int
) -> None:
    layout, config = make_layout(*rule), replace(SMALL, kv_heads=kv_heads)
    every = np.arange(layout.num_tokens)
    first = np.setdiff1d(every, dropped[kept_in_first:])
    plan = make_plan(layout, first, np.setdiff1d(every, dropped))
    assert plan_flops(config, layout, plan) == count(config, layout, plan)


def test_a_dense_forward_is_charged_as_published() -> None:
    layout = make_layout('all', causal=True)
    every = np.arange(layout.num_tokens)
    ours = plan_flops(SMALL, layout, make_plan(layout, every, every))
    assert ours == published_flops(SMALL, [layout.num_tokens] * SMALL.layers)


@given(keys=st.integers(1, 700), data=st.data())
def test_rows_against_all_keys_exceed_the_published_square(keys: int, data: st.DataObject) -> None:
    rows = data.draw(st.integers(0, keys))
    published = published_flops(replace(SMALL, layers=1), [rows])
    extra = 2 * rows * (keys - rows) * SMALL.width
    assert layer_flops(SMALL, rows, rows * keys) == published + extra


def test_grouped_queries_spare_key_and_value_projections_alone() -> None:
    grouped = replace(SMALL, kv_heads=1)
    spared = layer_flops(SMALL, 10, 100) - layer_flops(grouped, 10, 100)
    assert spared == 10 * SMALL.width * 2 * (SMALL.width - grouped.head_dim)


def test_isolated_cameras_score_fewer_pairs() -> None:
    every = np.arange(23)
    counts = [
        plan_flops(SMALL, layout, make_plan(layout, every, every))
        for layout in (make_layout('all', False), make_layout('camera_isolated', False))
    ]
    unseen = 23 * 23 - ((23 - 15) * 23 + 6 * 6 + 9 * 9)
    assert counts[0] - counts[1] == SMALL.layers * 2 * unseen * SMALL.width


def test_impossible_counts_are_refused() -> None:
    with pytest.raises(ConfigError, match='holds 3 numbers; valid: one number >= 0'):
        published_flops(SMALL, [1, 2, 3])
    with pytest.raises(ConfigError, match='each of the 4 layers'):
        published_flops(SMALL, [1, 2, 3, -4])
    with pytest.raises(ConfigError, match='finite and >= 0'):
        implied_tokens(SMALL, float('nan'))
    with pytest.raises(ConfigError, match=r'valid: 0\.\.3'):
        implied_tokens_behind(SMALL, 1e9, 10, dense_layers=4)
    with pytest.raises(ConfigError, match='finite and >= 0'):
        implied_tokens_behind(SMALL, 1.0, 10, dense_layers=2)
