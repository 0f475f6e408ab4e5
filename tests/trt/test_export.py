"""The ONNX files: what is in them, and what other engines compute from them."""

from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import openvino
import pytest
import torch
from torch import nn

from tests.models import conftest as small
from tests.models.prismatic import conftest as prismatic
from vla_cache_models.decoder import DecoderConfig
from vla_cache_models.small.vla import SmallVla
from vla_cache_models.vla import Vla
from vla_cache_ros.core.errors import EngineError
from vla_cache_trt import export
from vla_cache_trt.engine import Graph, GraphSpec, TensorSpec
from vla_cache_trt.export import (
    ExportedGraph,
    check_onnx,
    example_inputs,
    export_onnx,
    input_names,
    onnx_sha256,
    output_names,
)
from vla_cache_trt.graphs import model_graphs

pytestmark = pytest.mark.slow

MODELS = ('small', *prismatic.MODELS)
DTYPES = {'fp32': torch.float32, 'fp16': torch.float16, 'bf16': torch.bfloat16}
# Largest absolute difference from PyTorch in the same precision.
TOLERANCE = {'fp32': 1e-4, 'fp16': 1e-2}
KINDS = [(name, precision) for precision in ('fp32', 'fp16') for name in MODELS]


@cache
def graphs_of(name: str, precision: str) -> tuple[Graph, ...]:
    """A tiny model of two layers, cut between them."""
    model: Vla
    if name == 'small':
        config = replace(small.tiny_config(), decoder=DecoderConfig(32, 2, 4, 2, 64))
        model = SmallVla(small.make_checkpoint(config))
    else:
        model = prismatic.tiny_vla(name, kv_heads=2, layers=2)
    model.network.to(DTYPES[precision])
    if name == 'cogact':
        model.network.action_model.float()  # as it is loaded
    graphs = model_graphs(model, (1,), 0)
    # Towers and decoder are openvla_oft's; half the exports are enough in the second precision.
    return graphs[-1:] if precision == 'fp16' and name in ('openvla', 'cogact') else graphs


@pytest.fixture(scope='module')
def exported(tmp_path_factory: pytest.TempPathFactory):
    """Exports a model's graphs, once per model and precision."""
    folder = tmp_path_factory.mktemp('onnx')

    @cache
    def export_all(name: str, precision: str) -> tuple[ExportedGraph, ...]:
        return tuple(
            export_onnx(graph, folder / f'{name}_{precision}' / f'{graph.spec.name}.onnx')
            for graph in graphs_of(name, precision)
        )

    return export_all


def row_counts(graph: Graph) -> tuple[int, ...]:
    """K = 1, an inner one, N."""
    cache_spec = graph.spec.cache
    return (0,) if cache_spec is None else (1, 7, cache_spec.shape[3] - 1)


def random_step(graph: Graph, rows: int) -> dict[str, torch.Tensor]:
    """Scattered slots, a random mask, and two rows of padding where there is room."""
    given = dict(zip(input_names(graph), example_inputs(graph, rows), strict=True))
    if 'slots' not in given:
        return given
    rng = np.random.default_rng(rows)
    dummy = given['mask'].shape[1] - 1
    given['slots'] = torch.from_numpy(np.sort(rng.permutation(dummy)[:rows]))
    given['mask'] = torch.from_numpy(rng.random((rows, dummy + 1)) < 0.5)
    given['mask'][:, dummy] = False
    given['mask'][torch.arange(rows), given['slots']] = True
    if rows > 2:
        given['slots'][-2:] = dummy
        given['mask'][-2:] = torch.arange(dummy + 1) == dummy
        given['patches' if 'patches' in given else 'hidden'][:, -2:] = 0
    if 'text_rows' in given:
        size = len(given['text_rows'])
        given['text_rows'] = torch.from_numpy(rng.integers(0, rows, size))
        given['text_weights'] = torch.from_numpy(rng.random(size).astype(np.float32)) / size
    return given


def compare(graph: Graph, outputs, given: dict[str, torch.Tensor], tolerance: float) -> None:
    with torch.inference_mode():
        expected = graph.module(*given.values())
    for name, mine, theirs in zip(output_names(graph), expected, outputs, strict=True):
        difference = (mine.float() - torch.from_numpy(theirs).float()).abs().max().item()
        assert difference <= tolerance, (graph.spec.name, name, difference)


@pytest.mark.parametrize(('name', 'precision'), KINDS)
def test_onnx_runtime_computes_what_torch_computes(exported, name: str, precision: str) -> None:
    for graph, file in zip(graphs_of(name, precision), exported(name, precision), strict=True):
        session = onnxruntime.InferenceSession(file.path)
        for rows in row_counts(graph):
            given = random_step(graph, rows)
            arrays = {key: tensor.numpy() for key, tensor in given.items()}
            outputs = session.run(list(output_names(graph)), arrays)
            compare(graph, outputs, given, TOLERANCE[precision])


@pytest.mark.parametrize(('name', 'precision'), KINDS)
def test_openvino_computes_what_torch_computes(exported, name: str, precision: str) -> None:
    core = openvino.Core()
    settings = {'INFERENCE_PRECISION_HINT': 'f32', 'INFERENCE_NUM_THREADS': 1}
    for graph, file in zip(graphs_of(name, precision), exported(name, precision), strict=True):
        compiled = core.compile_model(file.path, 'CPU', settings)
        for rows in row_counts(graph):
            given = random_step(graph, rows)
            results = compiled({key: tensor.numpy() for key, tensor in given.items()})
            outputs = [results[output] for output in output_names(graph)]
            compare(graph, outputs, given, TOLERANCE[precision])


@pytest.mark.parametrize(('name', 'precision'), KINDS)
def test_files_say_what_the_specs_say(exported, name: str, precision: str) -> None:
    for graph, file in zip(graphs_of(name, precision), exported(name, precision), strict=True):
        model = onnx.load(file.path)
        assert [value.name for value in model.graph.input] == list(input_names(graph))
        assert [value.name for value in model.graph.output] == list(output_names(graph))
        free = {
            size.dim_param
            for value in (*model.graph.input, *model.graph.output)
            for size in value.type.tensor_type.shape.dim
            if size.dim_param
        }
        assert free == ({'K'} if graph.spec.is_bucketed else set())
        # Weights that this graph does not use stay out of its file.
        read = {name for node in model.graph.node for name in node.input}
        assert {weight.name for weight in model.graph.initializer} <= read
        assert (file.opset, file.fallback_reason) == (23, '')


@pytest.mark.parametrize('name', MODELS)
def test_layers_are_single_operators(exported, name: str) -> None:
    front, first, second, *_ = exported(name, 'fp32')
    assert front.operators['Attention'] == (2 if name == 'small' else 4)
    for group in (first, second):
        found = {kind: group.operators.get(kind) for kind in ('Attention', 'RMSNormalization')}
        assert found == {'Attention': 1, 'RMSNormalization': 2}
        assert group.operators['ScatterND'] == 2  # K and V
        # q, k and v to heads and back: nothing turns the cache around.
        relevance = int(group is first)
        assert group.operators['Transpose'] == 2 + relevance


def test_the_same_graph_has_the_same_hash(exported, tmp_path: Path) -> None:
    first, *_ = exported('cogact', 'fp32')[1:2]
    again = export_onnx(graphs_of('cogact', 'fp32')[1], tmp_path / first.path.name)
    assert again.sha256 == first.sha256 == onnx_sha256(again.path)
    assert str(Path(__file__).parents[2]).encode() not in again.path.read_bytes()


@pytest.mark.parametrize('opset', [20, 23])
def test_bf16_graphs_are_sound_and_load_in_openvino(tmp_path: Path, opset: int) -> None:
    graph = graphs_of('openvla_oft', 'bf16')[1]
    file = export_onnx(graph, tmp_path / 'group.onnx', opset)
    assert file.opset == opset
    assert ('Attention' in file.operators) == (opset == 23)
    compiled = openvino.Core().compile_model(file.path, 'CPU')
    types = {value.any_name: value.element_type for value in compiled.inputs}
    assert types['hidden'] == types['k'] == openvino.Type.bf16


def test_opset_20_computes_the_same(tmp_path: Path) -> None:
    graph = graphs_of('openvla_oft', 'fp32')[1]
    session = onnxruntime.InferenceSession(export_onnx(graph, tmp_path / 'g.onnx', 20).path)
    given = random_step(graph, 9)
    outputs = session.run(None, {key: tensor.numpy() for key, tensor in given.items()})
    compare(graph, outputs, given, TOLERANCE['fp32'])


def test_large_weights_lie_beside_the_file(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(export, 'EXTERNAL_DATA_BYTES', 1000)
    graph = graphs_of('openvla', 'fp32')[-1]
    path = tmp_path / 'head.onnx'
    whole = export_onnx(graph, path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ['head.onnx', 'head.onnx.data']
    given = random_step(graph, 0)
    (ids,) = onnxruntime.InferenceSession(path).run(None, {'hidden': given['hidden'].numpy()})
    compare(graph, [ids], given, 0)
    data = tmp_path / 'head.onnx.data'
    data.write_bytes(data.read_bytes()[:-1] + b'\xff')
    assert onnx_sha256(path) != whole.sha256


class UpcastNorm(nn.Module):
    """A normalisation that leaves its type: the exporter makes a mistyped operator of it."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(0.5, 1.5, 8, dtype=dtype))
        self.linear = nn.Linear(8, 8, dtype=dtype)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor]:
        h = x.float()
        h = h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + 1e-5) * self.weight.float()
        return (self.linear(h.to(x.dtype)),)


def upcast_graph(dtype: torch.dtype) -> Graph:
    spec = GraphSpec(
        'norm', (TensorSpec('x', (1, 3, 8), dtype),), (TensorSpec('y', (1, 3, 8), dtype),)
    )
    return Graph(spec, UpcastNorm(dtype).eval())


@pytest.mark.parametrize('precision', ['fp16', 'bf16'])
def test_a_mistyped_graph_is_noticed_and_exported_at_the_older_opset(
    tmp_path: Path, precision: str
) -> None:
    file = export_onnx(upcast_graph(DTYPES[precision]), tmp_path / 'norm.onnx')
    assert file.opset == 20
    assert file.fallback_reason.startswith('opset 23: ')
    assert 'inconsistent type' in file.fallback_reason


def test_a_mistyped_graph_at_the_older_opset_is_refused(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(export, 'FALLBACK_OPSET', 23)
    with pytest.raises(EngineError, match='no sound ONNX graph.*inconsistent type'):
        export_onnx(upcast_graph(torch.float16), tmp_path / 'norm.onnx')
    assert list(tmp_path.iterdir()) == []


def test_a_graph_that_onnx_runtime_rejects_is_refused(exported, tmp_path: Path) -> None:
    model = onnx.load(exported('small', 'fp32')[-1].path)
    path = tmp_path / 'head.onnx'
    weight = model.graph.initializer[0]
    weight.data_type = onnx.TensorProto.DOUBLE
    weight.raw_data = weight.raw_data * 2
    onnx.save(model, path)
    with pytest.raises(EngineError, match=r'head\.onnx is no sound ONNX graph'):
        check_onnx(path, torch.float32)


def test_a_damaged_file_is_refused(exported, tmp_path: Path) -> None:
    path = tmp_path / 'head.onnx'
    path.write_bytes(exported('small', 'fp32')[-1].path.read_bytes()[:-100])
    with pytest.raises(EngineError, match=r'head\.onnx is no sound ONNX graph'):
        check_onnx(path, torch.float32)


def test_a_failed_export_leaves_the_old_file(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / 'head.onnx'
    path.write_bytes(b'old')

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(export, 'check_onnx', interrupted)
    with pytest.raises(KeyboardInterrupt):
        export_onnx(graphs_of('small', 'fp32')[-1], path)
    assert path.read_bytes() == b'old'
    assert [file.name for file in tmp_path.iterdir()] == ['head.onnx']


class DataDependent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(8))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor]:
        return (x if x.sum().item() > 0 else x * self.weight,)


def test_a_graph_that_cannot_be_traced_is_refused_by_name(tmp_path: Path) -> None:
    spec = TensorSpec('x', (1, 8), torch.float32)
    graph = Graph(GraphSpec('branchy', (spec,), (replace(spec, name='y'),)), DataDependent())
    with pytest.raises(EngineError, match='branchy cannot be exported'):
        export_onnx(graph, tmp_path / 'branchy.onnx')
