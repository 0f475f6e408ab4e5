"""TensorRT for RTX: real engines, built without a GPU; running them against a stand-in."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.models.conftest import make_checkpoint, tiny_config
from tests.models.prismatic.conftest import tiny_prismatic_config
from tests.trt.fake_tensorrt import (
    BUCKETS,
    FakeTensorRt,
    fill,
    install,
    small_cache,
    small_graph,
)
from tests.trt.gpu_parity import PRECISIONS, STEPS, assert_same_as_torch
from vla_cache_models.decoder import Decoder, DecoderConfig
from vla_cache_models.prismatic.build import random_vla
from vla_cache_models.small.vla import SmallVla
from vla_cache_models.vla import Vla
from vla_cache_ros.core.errors import EngineError, UnknownNameError
from vla_cache_ros.core.layout import CameraSpan, TokenLayout
from vla_cache_trt.backends import nvidia, tensorrt_rtx, torch_eager
from vla_cache_trt.engine import Graph
from vla_cache_trt.export import export_onnx
from vla_cache_trt.graphs import decoder_group, model_graphs

GPUS = ('8.9', '12.0')


def small(dtype: torch.dtype) -> Vla:
    """The small VLA, its decoder three layers."""
    config = tiny_config()
    decoder = replace(config.decoder, layers=3)
    return SmallVla(make_checkpoint(replace(config, decoder=decoder)), dtype=dtype)


def openvla_oft(dtype: torch.dtype) -> Vla:
    """OpenVLA-OFT with three decoder layers."""
    config = tiny_prismatic_config()
    decoder = replace(config.decoder, layers=3)
    return random_vla('openvla_oft', replace(config, decoder=decoder), dtype=dtype)


def realistic_layer(dtype: torch.dtype) -> Graph:
    """One layer of 1024 with 16 heads over 300 tokens."""
    layout = TokenLayout(
        (CameraSpan('one', 1, 16, 16),), (257, 290), (290, 300), 300, 'all', False
    )
    torch.manual_seed(0)
    decoder = Decoder(DecoderConfig(1024, 1, 16, 16, 2816)).eval().to(dtype)
    return decoder_group(decoder, 0, 1, 301, layout, 0)


def build(
    graph: Graph, onnx: Path, folder: Path, capability: str | None, on_progress=lambda a, b: None
) -> Path:
    spec = graph.spec
    largest = int(spec.cache.shape[3]) - 1 if spec.cache else 1
    buckets = tuple(sorted({1, largest}))
    tensorrt_rtx.compile_graph(
        graph, onnx, folder, 'as exported', buckets, on_progress, compute_capability=capability
    )
    return folder / nvidia.PLAN


@pytest.fixture(scope='module')
def layer(tmp_path_factory) -> tuple[Graph, Path]:
    """The stand-in's graph, exported."""
    graph = small_graph(torch.float16)
    path = tmp_path_factory.mktemp('layer') / 'graph.onnx'
    export_onnx(graph, path)
    return graph, path


@pytest.mark.slow
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize('model', [small, openvla_oft])
def test_every_graph_of_a_model_builds_for_two_generations_of_gpus(model, dtype, tmp_path):
    graphs = model_graphs(model(dtype), (0, 2), 1)
    assert len(graphs) == 4
    for graph in graphs:
        onnx = tmp_path / f'{graph.spec.name}.onnx'
        export_onnx(graph, onnx)
        plans = [
            build(graph, onnx, tmp_path / capability / graph.spec.name, capability)
            for capability in GPUS
        ]
        assert plans[0].read_bytes() != plans[1].read_bytes()
        assert not list(tmp_path.rglob('*.partial'))


@pytest.mark.slow
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_a_layer_of_real_width_builds(dtype, tmp_path):
    graph = realistic_layer(dtype)
    export_onnx(graph, tmp_path / 'graph.onnx')
    weights = sum(parameter.nbytes for parameter in graph.module.decoder.layers.parameters())
    for capability in GPUS:
        plan = build(graph, tmp_path / 'graph.onnx', tmp_path / capability, capability)
        assert plan.stat().st_size > weights


def test_the_fallback_operators_build(layer, tmp_path):
    graph, _ = layer
    assert export_onnx(graph, tmp_path / 'graph.onnx', opset=20).opset == 20
    assert build(graph, tmp_path / 'graph.onnx', tmp_path / 'plan', '8.9').stat().st_size


def test_float32_attention_needs_decomposition_and_gets_it(monkeypatch, tmp_path):
    graph = small_graph()
    export_onnx(graph, tmp_path / 'graph.onnx')
    assert build(graph, tmp_path / 'graph.onnx', tmp_path / 'plan', '8.9').stat().st_size
    monkeypatch.setattr(nvidia, '_allow_decomposed_attention', lambda trt, network: None)
    with pytest.raises(EngineError, match='not supported by a dedicated kernel'):
        build(graph, tmp_path / 'graph.onnx', tmp_path / 'none', '8.9')
    assert not (tmp_path / 'none').exists()


def test_progress_grows_to_the_end(layer, tmp_path):
    steps = []
    build(*layer, tmp_path, '8.9', lambda done, total: steps.append(done / total))
    assert len(steps) > 5
    assert steps == sorted(set(steps))
    assert steps[-1] == 1


def test_ctrl_c_stops_a_real_build_and_leaves_no_plan(layer, tmp_path):
    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(*layer, tmp_path / 'plan', '8.9', interrupt)
    assert not list(tmp_path.rglob('*'))


def test_a_truncated_file_is_named(layer, tmp_path):
    graph, path = layer
    damaged = tmp_path / 'graph.onnx'
    damaged.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(EngineError, match=r'cannot read .*graph.onnx.*vla-cache engine export'):
        build(graph, damaged, tmp_path / 'plan', '8.9')


def test_an_edited_file_is_refused(layer, tmp_path):
    import onnx

    graph, path = layer
    model = onnx.load(str(path))
    mask = next(entry for entry in model.graph.input if entry.name == 'mask')
    mask.type.tensor_type.shape.dim[1].dim_value += 1
    onnx.save(model, str(tmp_path / 'graph.onnx'))
    with pytest.raises(EngineError, match=r'graph\.onnx'):
        build(graph, tmp_path / 'graph.onnx', tmp_path / 'plan', '8.9')
    assert not (tmp_path / 'plan').exists()


def test_a_file_of_another_precision_is_refused(layer, tmp_path):
    _, path = layer
    with pytest.raises(EngineError, match=r'input hidden is .*HALF.*wanted torch.bfloat16'):
        build(small_graph(torch.bfloat16), path, tmp_path / 'plan', '8.9')


def test_a_gpu_that_it_does_not_build_for_is_named_with_those_that_it_does(layer, tmp_path):
    with pytest.raises(UnknownNameError, match=r"'9\.0'; valid: 7\.5, 8\.0, 8\.6, 8\.9, 12\.0"):
        build(*layer, tmp_path, '9.0')


def test_without_a_gpu_one_must_be_named(monkeypatch, layer, tmp_path):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    with pytest.raises(EngineError, match=r'--compute-capability \{7\.5, '):
        build(*layer, tmp_path, None)


def test_without_a_gpu_a_plan_is_built_but_not_loaded(monkeypatch, layer, tmp_path):
    graph, _ = layer
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    build(*layer, tmp_path, '8.9')
    with pytest.raises(EngineError, match='needs an NVIDIA GPU and torch sees none'):
        tensorrt_rtx.load_engine(graph, None, tmp_path, 'fp16', BUCKETS)


def test_the_identity_names_the_gpu_that_is_built_for():
    assert tensorrt_rtx.identity('8.9')['compute_capability'] == '8.9'
    assert tensorrt_rtx.identity('8.9')['version'].startswith('1.')


@pytest.fixture
def fake(monkeypatch, tmp_path) -> tuple[FakeTensorRt, tensorrt_rtx.RtxEngine]:
    graph = small_graph()
    trt = install(monkeypatch, FakeTensorRt('tensorrt_rtx', graph, '1.7.1.116'))
    shapes = {t.name: t for t in graph.spec.inputs if 'K' in t.shape}
    for size in BUCKETS:
        trt.profiles.append({name: (t.at(size),) * 3 for name, t in shapes.items()})
    monkeypatch.setattr(tensorrt_rtx, 'check_cuda', lambda device, name: torch.device('cpu'))
    (tmp_path / nvidia.PLAN).write_bytes(b'a plan')
    return trt, tensorrt_rtx.load_engine(graph, None, tmp_path, 'fp32', BUCKETS)


def test_every_bucket_has_a_context_that_captures_whole_graphs_by_itself(fake):
    trt, engine = fake
    engine.bind(*small_cache(trt.graph))
    assert [context.shapes['hidden'][1] for context in trt.contexts] == list(BUCKETS)
    assert [context.profile for context in trt.contexts] == [0, 1, 2]
    for context in trt.contexts:
        assert context.runtime_config.cuda_graph_strategy == 'whole'
        assert context.runtime_config.dynamic_shapes_kernel_specialization_strategy == 'eager'


def test_runs_equal_pytorch_and_bind_nothing_anew(fake):
    trt, engine = fake
    k, v = small_cache(trt.graph)
    own_k, own_v = k.clone(), v.clone()
    bound = engine.bind(k, v)
    reference = torch_eager.load_engine(trt.graph, None, Path(), 'fp32', BUCKETS).bind(
        own_k, own_v
    )
    for ours, theirs in ((k, own_k), (v, own_v)):
        assert torch.equal(ours[:, :, :, :-1], theirs[:, :, :, :-1])
    trt.calls.clear()
    for step, (bucket, rows) in enumerate(STEPS):
        for each in (bound, reference):
            fill(dict(each.inputs(bucket)), rows, seed=step)
        found, wanted = bound.run(bucket), reference.run(bucket)
        for name in wanted:
            torch.testing.assert_close(found[name], wanted[name])
        for ours, theirs in ((k, own_k), (v, own_v)):
            torch.testing.assert_close(ours[:, :, :, :-1], theirs[:, :, :, :-1])
    assert set(trt.names()) == {'execute'}


def test_kernels_compiled_on_a_gpu_are_kept_for_the_next_start(fake, tmp_path):
    trt, engine = fake
    engine.bind(*small_cache(trt.graph))
    assert (tmp_path / tensorrt_rtx.KERNELS).read_bytes() == b'kernels'
    assert 'kernels' not in trt.names()
    engine.bind(*small_cache(trt.graph))
    assert ('kernels', b'kernels') in trt.calls


@pytest.mark.gpu
@pytest.mark.parametrize('dtype', list(PRECISIONS))
def test_engines_equal_pytorch_on_the_gpu(dtype, tmp_path):
    trt = pytest.importorskip('tensorrt_rtx')
    capability = nvidia.gpu_capability()
    if capability not in tensorrt_rtx.capabilities(trt):
        pytest.skip(f'TensorRT for RTX builds nothing for compute capability {capability}')
    assert_same_as_torch(tensorrt_rtx, dtype, tmp_path)
