"""The decoder's partial forward against its plain one."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vla_cache_models.attendance import resolve_attendance
from vla_cache_models.decoder import Decoder, DecoderConfig, rotate
from vla_cache_ros.core.errors import ConfigError
from vla_cache_ros.core.kv_cache import KVCache
from vla_cache_ros.core.layout import ATTENTION_RULES, CameraSpan, TokenLayout

ALL_RULES = [*((rule, False) for rule in ATTENTION_RULES), ('all', True)]


def make_layout(attention: str, causal: bool) -> TokenLayout:
    """One leading token, two cameras of 6 and 9 patches, 7 tokens behind them."""
    cameras = (CameraSpan('left', 1, 2, 3), CameraSpan('right', 7, 3, 3))
    return TokenLayout(cameras, (17, 20), (20, 23), 23, attention, causal)


def make_decoder(kv_heads: int = 4, rope_theta: float = 10_000.0) -> Decoder:
    """Three layers of width 32, seeded."""
    torch.manual_seed(0)
    return Decoder(DecoderConfig(32, 3, 4, kv_heads, 64, rope_theta)).eval()


def make_cache(decoder: Decoder, layout: TokenLayout) -> KVCache:
    """A cache that fits."""
    config = decoder.config
    return KVCache(config.layers, config.kv_heads, layout.num_tokens, config.head_dim)


def reference_forward(decoder: Decoder, x: torch.Tensor, layout: TokenLayout) -> torch.Tensor:
    """The layer's equation written out with a full mask, one head at a time."""
    config = decoder.config
    visible = torch.from_numpy(layout.visible())
    rotation = decoder.rotation(torch.arange(layout.num_tokens))
    for layer in decoder.layers:
        h = layer.attention_norm(x)
        heads = layer.attention.qkv(h).unflatten(-1, (-1, config.head_dim)).transpose(1, 2)
        q, k, v = heads.split((config.heads, config.kv_heads, config.kv_heads), dim=1)
        if rotation is not None:
            q, k = rotate(q, *rotation), rotate(k, *rotation)
        outputs = []
        for head in range(config.heads):
            own = head // (config.heads // config.kv_heads)
            logits = q[:, head] @ k[:, own].transpose(1, 2) / config.head_dim**0.5
            weights = logits.masked_fill(~visible, float('-inf')).softmax(-1)
            outputs.append(weights @ v[:, own])
        x = x + layer.attention.out(torch.cat(outputs, dim=-1))
        x = x + layer.mlp(layer.mlp_norm(x))
    return x


@pytest.mark.parametrize(('attention', 'causal'), ALL_RULES)
@pytest.mark.parametrize('kv_heads', [4, 2, 1])
@torch.inference_mode()
def test_dense_forward_equals_the_equation(attention: str, causal: bool, kv_heads: int) -> None:
    layout, decoder = make_layout(attention, causal), make_decoder(kv_heads)
    x = torch.randn(2, layout.num_tokens, 32)
    slots = torch.arange(layout.num_tokens)
    dense = decoder(x, slots, resolve_attendance(layout))
    torch.testing.assert_close(dense, reference_forward(decoder, x, layout), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(('attention', 'causal'), ALL_RULES)
@torch.inference_mode()
def test_empty_reuse_set_is_dense_bit_for_bit(attention: str, causal: bool) -> None:
    layout, decoder = make_layout(attention, causal), make_decoder()
    x = torch.randn(1, layout.num_tokens, 32)
    every = np.arange(layout.num_tokens)
    dense = decoder(x, torch.from_numpy(every), resolve_attendance(layout))
    cached = decoder(
        x,
        torch.from_numpy(every),
        resolve_attendance(layout, every),
        make_cache(decoder, layout),
    )
    assert torch.equal(dense, cached)


@settings(max_examples=40, deadline=None)
@given(rule=st.sampled_from(ALL_RULES), seed=st.integers(0, 10_000), data=st.data())
@torch.inference_mode()
def test_reuse_of_unchanged_tokens_is_dense(
    rule: tuple[str, bool], seed: int, data: st.DataObject
) -> None:
    layout, decoder = make_layout(*rule), make_decoder(kv_heads=2)
    torch.manual_seed(seed)
    x = torch.randn(1, layout.num_tokens, 32)
    every = np.arange(layout.num_tokens)
    cache = make_cache(decoder, layout)
    dense = decoder(x, torch.from_numpy(every), resolve_attendance(layout, every), cache)
    running = np.array(
        sorted(data.draw(st.sets(st.integers(0, layout.num_tokens - 1), min_size=1)))
    )
    again = decoder(
        x[:, running],
        torch.from_numpy(running),
        resolve_attendance(layout, running),
        cache,
    )
    torch.testing.assert_close(again, dense[:, running], atol=1e-5, rtol=1e-5)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), data=st.data())
@torch.inference_mode()
def test_a_recomputed_row_is_the_full_recompute_when_its_inputs_are_equal(
    seed: int, data: st.DataObject
) -> None:
    """Under camera isolation, a change in one camera leaves the other's rows exact."""
    layout, decoder = make_layout('camera_isolated', False), make_decoder()
    torch.manual_seed(seed)
    x = torch.randn(1, layout.num_tokens, 32)
    every = np.arange(layout.num_tokens)
    cache = make_cache(decoder, layout)
    decoder(x, torch.from_numpy(every), resolve_attendance(layout, every), cache)
    left, right = layout.cameras
    x[:, right.start : right.stop] = torch.randn(1, right.size, 32)
    full = decoder(x, torch.from_numpy(every), resolve_attendance(layout))

    kept_left = data.draw(st.sets(st.integers(left.start, left.stop - 1)))
    running = np.array(sorted(kept_left | set(range(right.start, right.stop)) | {0, 16, 22}))
    partial = decoder(
        x[:, running], torch.from_numpy(running), resolve_attendance(layout, running), cache
    )
    in_cameras = (running >= left.start) & (running < right.stop)
    torch.testing.assert_close(
        partial[:, in_cameras], full[:, running[in_cameras]], atol=1e-5, rtol=1e-5
    )


@torch.inference_mode()
def test_rows_that_do_not_run_keep_their_keys_and_values() -> None:
    layout, decoder = make_layout('all', False), make_decoder()
    cache = make_cache(decoder, layout)
    every = np.arange(layout.num_tokens)
    x = torch.randn(1, layout.num_tokens, 32)
    decoder(x, torch.from_numpy(every), resolve_attendance(layout, every), cache)
    before = cache.k.clone()
    running = np.array([0, 3, 9, 22])
    decoder(
        torch.randn(1, 4, 32),
        torch.from_numpy(running),
        resolve_attendance(layout, running),
        cache,
    )
    kept = np.setdiff1d(every, running)
    assert torch.equal(cache.k[:, :, :, kept], before[:, :, :, kept])
    assert not torch.equal(cache.k[:, :, :, running], before[:, :, :, running])


@torch.inference_mode()
def test_layer_groups_compose() -> None:
    layout, decoder = make_layout('vision_isolated', False), make_decoder()
    x = torch.randn(1, layout.num_tokens, 32)
    slots, attendance = torch.arange(layout.num_tokens), resolve_attendance(layout)
    whole = decoder(x, slots, attendance)
    first = decoder(x, slots, attendance, start=0, stop=1)
    assert torch.equal(decoder(first, slots, attendance, start=1), whole)


def test_rope_depends_on_distance_only() -> None:
    decoder = make_decoder()
    q, k = torch.randn(1, 1, 1, 8), torch.randn(1, 1, 1, 8)

    def score(query_at: int, key_at: int) -> torch.Tensor:
        rotated = [
            rotate(x, *decoder.rotation(torch.tensor([at])))  # type: ignore[misc]
            for x, at in ((q, query_at), (k, key_at))
        ]
        return (rotated[0] * rotated[1]).sum()

    torch.testing.assert_close(score(5, 2), score(105, 102), atol=1e-4, rtol=1e-4)
    assert not torch.isclose(score(5, 2), score(5, 3))


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [({'width': 30, 'heads': 4}, 'width 30'), ({'heads': 4, 'kv_heads': 3}, 'kv_heads 3')],
)
def test_widths_that_do_not_divide_are_refused(kwargs: dict[str, int], message: str) -> None:
    sizes = {'width': 32, 'layers': 1, 'heads': 4, 'kv_heads': 4, 'mlp_width': 8} | kwargs
    with pytest.raises(ConfigError, match=message):
        DecoderConfig(**sizes)
