"""The graphs as torch modules, against the modules that they wrap."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.models import conftest as small
from tests.models.prismatic import conftest as prismatic
from vla_cache_models.attendance import Attendance, one_row, resolve_attendance
from vla_cache_models.decoder import Decoder, DecoderConfig
from vla_cache_models.prismatic.cogact import GUIDANCE_SCALE
from vla_cache_models.prismatic.dit import guided_noise
from vla_cache_models.probe import AttentionProbe
from vla_cache_models.small.network import tower_layout
from vla_cache_models.small.vla import SmallVla
from vla_cache_models.vla import Vla
from vla_cache_ros.core.errors import ConfigError, UnknownNameError
from vla_cache_ros.core.kv_cache import KVCache
from vla_cache_ros.core.layout import ATTENTION_RULES, CameraSpan, TokenLayout
from vla_cache_trt.engine import BUCKET, Graph
from vla_cache_trt.graphs import decoder_group, model_graphs

RULES = [*((rule, False) for rule in ATTENTION_RULES), ('all', True)]
MODELS = ('small', *prismatic.MODELS)
WIDTH, LAYERS, RELEVANCE_LAYER = 32, 3, 1


def make_layout(attention: str = 'all', causal: bool = False) -> TokenLayout:
    """One leading token, cameras of 6 and 9 patches, 7 tokens behind them, 5 of them text."""
    cameras = (CameraSpan('left', 1, 2, 3), CameraSpan('right', 7, 3, 3))
    return TokenLayout(cameras, (17, 22), (22, 23), 23, attention, causal)


def make_decoder(kv_heads: int = 4) -> Decoder:
    """Three layers, seeded."""
    torch.manual_seed(0)
    return Decoder(DecoderConfig(WIDTH, LAYERS, 4, kv_heads, 64)).eval()


def make_cache(decoder: Decoder, layout: TokenLayout, seed: int = 0) -> KVCache:
    """What earlier steps left behind, and a dummy slot."""
    config = decoder.config
    cache = KVCache(config.layers, config.kv_heads, layout.num_tokens + 1, config.head_dim)
    generator = torch.Generator().manual_seed(seed)
    cache.k.normal_(generator=generator)
    cache.v.normal_(generator=generator)
    return cache


def dense_mask(attendance: Attendance, rows: int, slots: int) -> torch.Tensor:
    """The attendance as one mask, written out."""
    mask = torch.zeros(rows, slots, dtype=torch.bool)
    for block in attendance.blocks:
        mask[block.row_start : block.row_stop, block.key_start : block.key_stop] = True
    if attendance.mask is not None:
        mask[:, : attendance.mask.shape[1]] &= attendance.mask
    return mask


def text_inputs(
    layout: TokenLayout, rows: np.ndarray, size: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Where the text tokens are among the running rows, padded to `size`."""
    found = np.flatnonzero((rows >= layout.text[0]) & (rows < layout.text[1]))
    text_rows, weights = torch.zeros(size, dtype=torch.int64), torch.zeros(size)
    text_rows[: len(found)] = torch.from_numpy(found)
    weights[: len(found)] = 1 / len(found)
    return text_rows, weights


def padded(slots: np.ndarray, mask: torch.Tensor, bucket: int, dummy: int):
    """Slots and mask filled up with padding rows."""
    padding = bucket - len(slots)
    all_slots = torch.from_numpy(np.r_[slots, np.full(padding, dummy)].astype(np.int64))
    own = torch.zeros(padding, mask.shape[1], dtype=torch.bool)
    own[:, dummy] = True
    return all_slots, torch.cat((mask, own))


def close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(actual, expected, atol=1e-6, rtol=1e-5)


def merged(cached: torch.Tensor, rows: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
    """What a backend does with the new rows."""
    return cached.index_copy(3, slots, rows)


@st.composite
def steps(draw: st.DrawFn):
    """A layout, the vision tokens that run, a bucket, layer bounds, heads."""
    layout = make_layout(*draw(st.sampled_from(RULES)))
    chosen = draw(st.sets(st.integers(layout.vision[0], layout.vision[1] - 1)))
    slots = np.array(sorted({*layout.always_recomputed.tolist(), *chosen}), dtype=np.int64)
    bucket = draw(st.integers(len(slots), layout.num_tokens))
    start = draw(st.integers(0, RELEVANCE_LAYER))
    stop = draw(st.integers(RELEVANCE_LAYER + 1, LAYERS))
    return layout, slots, bucket, start, stop, draw(st.sampled_from((4, 2, 1)))


@given(steps())
@settings(max_examples=60, deadline=None)
@torch.inference_mode()
def test_a_decoder_group_is_the_decoder_for_any_rows(step) -> None:
    layout, slots, bucket, start, stop, kv_heads = step
    decoder = make_decoder(kv_heads)
    cache = make_cache(decoder, layout)
    dummy = layout.num_tokens
    graph = decoder_group(decoder, start, stop, dummy + 1, layout, RELEVANCE_LAYER)

    attendance = resolve_attendance(layout, slots)
    all_slots, mask = padded(slots, dense_mask(attendance, len(slots), dummy + 1), bucket, dummy)
    x = torch.randn(1, len(slots), WIDTH)
    hidden = torch.cat((x, torch.zeros(1, bucket - len(slots), WIDTH)), dim=1)
    text = text_inputs(layout, slots, graph.spec.inputs[3].shape[0])
    k, v = cache.k[start:stop].clone(), cache.v[start:stop].clone()
    out, relevance, k_rows, v_rows = graph.module(hidden, all_slots, mask, *text, k, v)

    visible = torch.from_numpy(layout.visible())
    probe = AttentionProbe(layout, RELEVANCE_LAYER, visible=visible)
    expected = decoder(x, torch.from_numpy(slots), attendance, cache, start, stop, probe)
    close(out[:, : len(slots)], expected)
    close(relevance, probe.relevance[0])
    assert torch.isfinite(out).all()
    # The new rows are those that the cache holds now; nothing else but the dummy slot changes.
    close(merged(k, k_rows, all_slots)[..., :dummy, :], cache.k[start:stop, ..., :dummy, :])
    close(merged(v, v_rows, all_slots)[..., :dummy, :], cache.v[start:stop, ..., :dummy, :])
    assert torch.isfinite(k_rows).all()
    assert torch.isfinite(v_rows).all()


@torch.inference_mode()
def test_the_given_cache_stays_as_it_is() -> None:
    layout, decoder = make_layout(), make_decoder()
    cache = make_cache(decoder, layout)
    k, v = cache.k.clone(), cache.v.clone()
    graph = decoder_group(decoder, 0, LAYERS, 24, layout, None)
    graph.module(torch.randn(1, 2, WIDTH), torch.arange(2), torch.ones(2, 24) > 0, k, v)
    assert torch.equal(k, cache.k)
    assert torch.equal(v, cache.v)


@torch.inference_mode()
def test_a_generated_token_sees_what_lies_before_it() -> None:
    layout, decoder = make_layout(causal=True), make_decoder(2)
    cache = make_cache(decoder, layout)
    graph = decoder_group(decoder, 0, LAYERS, 24, layout, None)
    x, slot = torch.randn(1, 1, WIDTH), torch.tensor([20])
    mask = dense_mask(one_row(20), 1, 24)
    out, *_ = graph.module(x, slot, mask, cache.k.clone(), cache.v.clone())
    close(out, decoder(x, slot, one_row(20), cache))


@torch.inference_mode()
def test_stale_rows_of_the_running_tokens_are_not_read() -> None:
    layout, decoder = make_layout(), make_decoder()
    cache = make_cache(decoder, layout)
    graph = decoder_group(decoder, 0, LAYERS, 24, layout, None)
    x, slots, mask = torch.randn(1, 3, WIDTH), torch.tensor([2, 5, 9]), torch.ones(3, 24) > 0
    first, *_ = graph.module(x, slots, mask, cache.k, cache.v)
    cache.k[..., slots, :] = 1e3
    cache.v[..., slots, :] = 1e3
    again, *_ = graph.module(x, slots, mask, cache.k, cache.v)
    assert torch.equal(first, again)


def make_model(name: str) -> Vla:
    if name == 'small':
        return SmallVla(small.make_checkpoint(small.tiny_config()))
    return prismatic.tiny_vla(name)


def graph_of(model: Vla, name: str) -> Graph:
    return {graph.spec.name: graph for graph in model_graphs(model, (2,), 1)}[name]


@pytest.mark.parametrize('name', MODELS)
def test_a_model_is_cut_where_tokens_stop_running(name: str) -> None:
    model = make_model(name)
    layers = model.decoder.config.layers
    graphs = model_graphs(model, (1, 2), 1)
    assert [graph.spec.name for graph in graphs] == [
        'tower' if name == 'small' else 'vision',
        'decoder_0_1',
        'decoder_1_2',
        f'decoder_2_{layers}',
        'dit' if name == 'cogact' else 'head',
    ]
    named = [[tensor.name for tensor in graph.spec.outputs] for graph in graphs[1:4]]
    assert named == [['hidden_out'], ['hidden_out', 'relevance'], ['hidden_out']]
    assert not any('relevance' in str(graph.spec) for graph in model_graphs(model, (0,), None))


@pytest.mark.parametrize('name', MODELS)
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
@torch.inference_mode()
def test_every_graph_keeps_its_spec(name: str, dtype: torch.dtype) -> None:
    model = make_model(name)
    model.network.to(dtype)
    for graph in model_graphs(model, (2,), 1):
        names = [tensor.name for tensor in (*graph.spec.inputs, *graph.spec.outputs)]
        assert len({*names, 'k', 'v', 'k_rows', 'v_rows'}) == len(names) + 4
        given = [torch.zeros(tensor.at(3), dtype=tensor.dtype) for tensor in graph.spec.inputs]
        cache = graph.spec.cache
        kv = [] if cache is None else 2 * [torch.zeros(cache.shape, dtype=cache.dtype)]
        outputs = graph.module(*given, *kv)
        rows = [] if cache is None else 2 * [(*cache.shape[:3], 3, cache.shape[4])]
        shapes = [*(tensor.at(3) for tensor in graph.spec.outputs), *rows]
        assert [tuple(output.shape) for output in outputs] == shapes
        dtypes = [*(tensor.dtype for tensor in graph.spec.outputs), *(dtype for _ in rows)]
        assert [output.dtype for output in outputs] == dtypes
        assert graph.spec.is_bucketed == (cache is not None)


@pytest.mark.parametrize('name', MODELS)
def test_the_longest_instruction_fits_the_relevance_inputs(name: str) -> None:
    model = make_model(name)
    text = {tensor.name: tensor for tensor in graph_of(model, 'decoder_0_2').spec.inputs}
    start, stop = model.layout.text
    longest = stop - start
    if name != 'small':
        longest = model._interface.prompt.max_tokens - 1 - (name == 'cogact')
    assert text['text_rows'].shape[0] >= longest
    assert text['mask'].shape == (BUCKET, model.max_tokens)


@given(st.sets(st.integers(0, 31)), st.integers(0, 31))
@settings(max_examples=30, deadline=None)
@torch.inference_mode()
def test_the_tower_graph_is_the_small_tower(chosen: set[int], extra: int) -> None:
    model = make_model('small')
    network, dummy = model.network, model.layout.num_vision
    cells = np.array(sorted(chosen), dtype=np.int64)
    patches = torch.randint(0, 256, (1, len(cells), 192), dtype=torch.uint8)
    tower = network.config.tower
    cache = KVCache(tower.layers, tower.kv_heads, dummy + 1, tower.head_dim)
    cache.k.normal_()
    cache.v.normal_()
    k, v = cache.k.clone(), cache.v.clone()
    attendance = resolve_attendance(tower_layout(model.layout), cells)
    bucket = min(dummy, len(cells) + extra) or 1
    slots, mask = padded(cells, dense_mask(attendance, len(cells), dummy + 1), bucket, dummy)
    filled = torch.zeros(1, bucket, 192, dtype=torch.uint8)
    filled[:, : len(cells)] = patches
    tokens, k_rows, v_rows = graph_of(model, 'tower').module(filled, slots, mask, k, v)
    assert torch.isfinite(tokens).all()
    if len(cells):
        expected = network.embed_vision(patches, torch.from_numpy(cells), attendance, cache)
        close(tokens[:, : len(cells)], expected)
    close(merged(k, k_rows, slots)[..., :dummy, :], cache.k[..., :dummy, :])
    close(merged(v, v_rows, slots)[..., :dummy, :], cache.v[..., :dummy, :])


@pytest.mark.parametrize('name', prismatic.MODELS)
@torch.inference_mode()
def test_the_vision_graph_is_towers_and_projector(name: str) -> None:
    model = make_model(name)
    graph = graph_of(model, 'vision')
    pixels = torch.randn(graph.spec.inputs[0].at(0))
    assert torch.equal(graph.module(pixels)[0], model.network.embed_vision(pixels))


@torch.inference_mode()
def test_the_heads_are_the_networks_own() -> None:
    for name, method in (
        ('small', 'decode_actions'),
        ('openvla', 'next_token'),
        ('openvla_oft', 'read_actions'),
    ):
        model = make_model(name)
        graph = graph_of(model, 'head')
        hidden = torch.randn(graph.spec.inputs[0].at(0))
        (out,) = graph.module(hidden)
        assert torch.equal(out, getattr(model.network, method)(hidden)), name


@torch.inference_mode()
def test_the_dit_graph_is_one_guided_prediction() -> None:
    model = make_model('cogact')
    graph = graph_of(model, 'dit')
    x, _, condition = (torch.randn(tensor.at(0)) for tensor in graph.spec.inputs)
    t = torch.tensor([42])
    (noise,) = graph.module(x, t, condition)
    dit = model.network.action_model
    assert torch.equal(noise, guided_noise(dit, x, t, condition, GUIDANCE_SCALE))


def test_layers_that_do_not_exist_are_refused() -> None:
    model = make_model('small')
    for prune, relevance in (((4,), 1), ((-1,), 1), ((0,), 4)):
        with pytest.raises(ConfigError, match=r'layers 0\.\.3'):
            model_graphs(model, prune, relevance)


def test_an_unknown_model_is_refused() -> None:
    model = make_model('small')
    model.name = 'pi0'
    with pytest.raises(UnknownNameError, match="'pi0'; valid: small, openvla, "):
        model_graphs(model, (0,), 1)
