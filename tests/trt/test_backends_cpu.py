"""Every backend that runs on a CPU against PyTorch: whole policies, and random plans."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.trt.tiny_engines import (
    MODELS,
    PRUNE_LAYERS,
    RELEVANCE_LAYER,
    compare_policies,
    engine_policy,
    engines_of,
    frames_of,
    random_caches,
    random_layout,
    run_plan,
    tiny_model,
    tiny_reuse,
    torch_policy,
)
from vla_cache_models.vla import Vla
from vla_cache_ros.core.errors import ConfigError, EngineError, UnknownNameError
from vla_cache_trt.backends import openvino, ort, torch_eager
from vla_cache_trt.engine import Engine, Graph
from vla_cache_trt.export import export_onnx
from vla_cache_trt.graphs import decoder_graphs, model_graphs
from vla_cache_trt.runtime import EngineDecoder, EngineSet

pytestmark = pytest.mark.slow

OnnxOf = Callable[[str], Path]


@dataclass(frozen=True)
class Way:
    """A backend in one precision, and how far it may be from PyTorch in float32.

    Hidden states of the tiny models are of the order of 1.
    """

    module: ModuleType
    precision: str
    hidden: float
    relevance: float

    def load(self, graph: Graph, onnx: Path, folder: Path, buckets: tuple[int, ...]) -> Engine:
        return self.module.load_engine(graph, onnx, folder, self.precision, buckets, 'cpu')


WAYS = {
    'torch': Way(torch_eager, 'fp32', 1e-5, 1e-6),
    'ort': Way(ort, 'fp32', 1e-4, 1e-5),
    'openvino': Way(openvino, 'fp32', 1e-4, 1e-5),
    'openvino-bf16': Way(openvino, 'bf16', 0.15, 0.01),
}
EXACT = [name for name in WAYS if WAYS[name].precision == 'fp32']
COMPILED = [name for name in EXACT if name != 'torch']


@pytest.fixture(scope='module')
def models() -> dict[str, Vla]:
    return {name: tiny_model(name) for name in MODELS}


@pytest.fixture(scope='module')
def onnx_of(models: dict[str, Vla], tmp_path_factory: pytest.TempPathFactory) -> OnnxOf:
    """Exports a model's graphs when they are first asked for."""
    root, done = tmp_path_factory.mktemp('onnx'), set()

    def folder(name: str) -> Path:
        if name not in done:
            for graph in model_graphs(models[name], PRUNE_LAYERS, RELEVANCE_LAYER):
                export_onnx(graph, root / name / f'{graph.spec.name}.onnx')
            done.add(name)
        return root / name

    return folder


@pytest.fixture(scope='module', params=WAYS)
def way(request: pytest.FixtureRequest) -> Way:
    return WAYS[request.param]


@pytest.fixture(scope='module')
def decoder_group(models: dict[str, Vla]) -> Graph:
    return decoder_graphs(models['small'], PRUNE_LAYERS, RELEVANCE_LAYER)[1]


@pytest.mark.parametrize('model_name', MODELS)
@pytest.mark.parametrize('way_name', COMPILED)
def test_policies_equal_torch_dense_and_cached(
    way_name: str, model_name: str, models: dict[str, Vla], onnx_of: OnnxOf, tmp_path: Path
) -> None:
    model, way = models[model_name], WAYS[way_name]
    engines = engines_of(model, way.module, onnx_of(model_name), tmp_path, way.precision)
    for enabled in (False, True):
        reuse = tiny_reuse(model, enabled=enabled)
        worst, modes = compare_policies(
            torch_policy(model, reuse), engine_policy(model, reuse, engines), frames_of(model, 4)
        )
        assert modes == ({'keyframe', 'cached'} if enabled else {'dense'})
        assert worst <= 1e-4


@pytest.fixture(scope='module')
def decoders(
    way: Way, models: dict[str, Vla], onnx_of: OnnxOf, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[tuple[int, ...]], EngineDecoder]]:
    """Buckets -> the small VLA's decoder on engines; compiled once per list of buckets."""
    model, made = models['small'], {}

    def decoder(buckets: tuple[int, ...]) -> EngineDecoder:
        if buckets not in made:
            engines = {
                graph.spec.name: way.load(
                    graph,
                    onnx_of('small') / f'{graph.spec.name}.onnx',
                    tmp_path_factory.mktemp('engine'),
                    buckets,
                )
                for graph in decoder_graphs(model, PRUNE_LAYERS, RELEVANCE_LAYER)
            }
            made[buckets] = EngineDecoder(model.decoder, EngineSet(engines, RELEVANCE_LAYER))
        return made[buckets]

    yield decoder
    made.clear()


LONGEST = 49
"""Tokens of the tiny small VLA; its cache has 50 slots."""
NUM_VISION = 32
MAX_TEXT = 12
BUCKETS = ((LONGEST,), (1, 20, LONGEST), (7, 33, 34, LONGEST))


@settings(max_examples=25)
@given(
    seed=st.integers(0, 2**31),
    buckets=st.sampled_from(BUCKETS),
    counts=st.tuples(st.integers(0, NUM_VISION), st.integers(0, NUM_VISION)),
)
def test_random_plans_equal_torch(
    way: Way,
    models: dict[str, Vla],
    decoders: Callable[[tuple[int, ...]], EngineDecoder],
    seed: int,
    buckets: tuple[int, ...],
    counts: tuple[int, int],
) -> None:
    """Nested random subsets of the vision rows, any layout, over K/V of an earlier step."""
    rng = np.random.default_rng(seed)
    torch_decoder, decoder = models['small'].decoder, decoders(buckets)
    layout = random_layout(rng, LONGEST, NUM_VISION, MAX_TEXT)
    vision = rng.permutation(NUM_VISION)
    recompute = tuple(
        np.r_[np.sort(vision[:count]), NUM_VISION : layout.num_tokens].astype(np.int64)
        for count in sorted(counts, reverse=True)
    )
    x = torch.randn(
        1, len(recompute[0]), torch_decoder.config.width, generator=torch.manual_seed(seed)
    )
    wanted_cache, found_cache = random_caches(torch_decoder, LONGEST + 1, seed)
    with torch.inference_mode():
        wanted, wanted_relevance = run_plan(torch_decoder, wanted_cache, layout, recompute, x)
        found, relevance = run_plan(decoder, found_cache, layout, recompute, x)
    torch.testing.assert_close(found, wanted, atol=way.hidden, rtol=way.hidden)
    torch.testing.assert_close(relevance, wanted_relevance, atol=way.relevance, rtol=0)
    for name in 'kv':
        rows, wanted_rows = getattr(found_cache, name), getattr(wanted_cache, name)
        torch.testing.assert_close(
            rows[:, :, :, :LONGEST],
            wanted_rows[:, :, :, :LONGEST],
            atol=way.hidden,
            rtol=way.hidden,
        )


@pytest.mark.parametrize('count', [1, 6, 7, 8, 33, 34, 35, LONGEST])
def test_one_row_bucket_edges_and_all_rows(
    way: Way,
    models: dict[str, Vla],
    decoders: Callable[[tuple[int, ...]], EngineDecoder],
    count: int,
) -> None:
    torch_decoder, decoder = models['small'].decoder, decoders(BUCKETS[2])
    layout = replace(models['small'].layout, attention='all', text=(LONGEST - 1, LONGEST))
    slots = np.arange(LONGEST - count, LONGEST)
    caches = random_caches(torch_decoder, LONGEST + 1, count)
    x = torch.randn(1, count, torch_decoder.config.width, generator=torch.manual_seed(count))
    with torch.inference_mode():
        wanted, _ = run_plan(torch_decoder, caches[0], layout, (slots, slots), x)
        found, _ = run_plan(decoder, caches[1], layout, (slots, slots), x)
    assert found.shape == wanted.shape
    torch.testing.assert_close(found, wanted, atol=way.hidden, rtol=way.hidden)


def test_nothing_is_allocated_for_outputs_in_a_run(
    decoder_group: Graph, onnx_of: OnnxOf, tmp_path: Path
) -> None:
    onnx = onnx_of('small') / f'{decoder_group.spec.name}.onnx'
    for name in COMPILED:
        engine = WAYS[name].load(decoder_group, onnx, tmp_path, (8, LONGEST))
        assert decoder_group.spec.cache is not None
        k, v = (torch.zeros(decoder_group.spec.cache.at(0)) for _ in range(2))
        bound = engine.bind(k, v)
        bound.inputs(8)['mask'][:] = True
        bound.inputs(8)['slots'][:] = torch.arange(8)
        bound.inputs(8)['hidden'][:] = 1
        first = {key: tensor.data_ptr() for key, tensor in bound.run(8).items()}
        outputs = bound.run(8)
        assert {key: tensor.data_ptr() for key, tensor in outputs.items()} == first
        assert float(outputs['hidden_out'].abs().max()) > 0
        assert (k[:, :, :, :8].abs().amax(dim=(0, 1, 2, 4)) > 0).all()
        assert not k[:, :, :, 8:].any()


@pytest.mark.parametrize(
    ('buckets', 'message'),
    [
        ((), 'the list of buckets is empty'),
        ((8, 8), r'buckets \[8, 8\] do not increase'),
        ((20, 8), 'do not increase'),
        ((0, 8), 'do not increase from 1'),
        ((8, LONGEST + 1), f'bucket {LONGEST + 1} of decoder_1_3 .* {LONGEST} tokens'),
    ],
)
def test_bad_buckets_are_refused(
    way: Way,
    buckets: tuple[int, ...],
    message: str,
    decoder_group: Graph,
    onnx_of: OnnxOf,
    tmp_path: Path,
) -> None:
    onnx = onnx_of('small') / f'{decoder_group.spec.name}.onnx'
    with pytest.raises((ConfigError, EngineError), match=message):
        way.load(decoder_group, onnx, tmp_path, buckets)


def test_missing_and_damaged_graphs_are_refused(
    decoder_group: Graph, onnx_of: OnnxOf, tmp_path: Path
) -> None:
    whole = (onnx_of('small') / f'{decoder_group.spec.name}.onnx').read_bytes()
    half = tmp_path / 'half.onnx'
    half.write_bytes(whole[: len(whole) // 2])
    for name in COMPILED:
        with pytest.raises(EngineError, match='is missing.*engine export'):
            WAYS[name].load(decoder_group, tmp_path / 'none.onnx', tmp_path, (LONGEST,))
        with pytest.raises(EngineError, match='does not take .*half.onnx.*engine export'):
            WAYS[name].load(decoder_group, half, tmp_path, (LONGEST,))


def test_a_cache_that_does_not_fit_is_refused(decoder_group: Graph) -> None:
    engine = torch_eager.load_engine(decoder_group, None, Path(), 'fp32', (LONGEST,))
    assert decoder_group.spec.cache is not None
    shape = decoder_group.spec.cache.at(0)
    k = torch.zeros(shape)
    with pytest.raises(EngineError, match='v is missing'):
        engine.bind(k)
    with pytest.raises(EngineError, match='belong to another model or dtype'):
        engine.bind(k, k.half())
    with pytest.raises(EngineError, match='belong to another model or dtype'):
        engine.bind(k[:1], k[:1])
    with pytest.raises(EngineError, match='not contiguous'):
        engine.bind(k.transpose(3, 4).contiguous().transpose(3, 4), k)


def test_an_unknown_precision_is_refused(
    decoder_group: Graph, onnx_of: OnnxOf, tmp_path: Path
) -> None:
    onnx = onnx_of('small') / f'{decoder_group.spec.name}.onnx'
    with pytest.raises(UnknownNameError, match='precision of OpenVINO'):
        openvino.load_engine(decoder_group, onnx, tmp_path, 'fp64', (LONGEST,))


def test_openvino_compiles_large_graphs_once_for_all_buckets(
    monkeypatch: pytest.MonkeyPatch,
    decoder_group: Graph,
    models: dict[str, Vla],
    onnx_of: OnnxOf,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(openvino, 'STATIC_WEIGHT_BYTES', 0)
    model = models['small']
    engines = engines_of(model, openvino, onnx_of('small'), tmp_path)
    reuse = tiny_reuse(model)
    worst, _ = compare_policies(
        torch_policy(model, reuse), engine_policy(model, reuse, engines), frames_of(model, 4)
    )
    assert worst <= 1e-4
    reports: list[tuple[int, int]] = []
    onnx = onnx_of('small') / f'{decoder_group.spec.name}.onnx'
    openvino.compile_graph(
        decoder_group, onnx, tmp_path, 'fp32', (8, LONGEST), lambda *at: reports.append(at)
    )
    assert reports == [(0, 1), (1, 1)]
