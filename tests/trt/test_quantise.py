import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from tests.models.prismatic.conftest import tiny_vla
from vla_cache_ros.core.errors import EngineError
from vla_cache_trt.backends import openvino, ort
from vla_cache_trt.export import example_inputs, export_onnx, input_names
from vla_cache_trt.graphs import decoder_graphs
from vla_cache_trt.quantise import quantise_products, quantise_weights

WEIGHTS_PER_LAYER = 4
LAYERS = 6


@pytest.fixture(scope='module')
def exported(tmp_path_factory):
    [graph] = decoder_graphs(tiny_vla('openvla_oft'), (0,), 3)
    path = tmp_path_factory.mktemp('quantise') / 'decoder.onnx'
    export_onnx(graph, path)
    return graph, path


def run(path, graph, rows):
    session = onnxruntime.InferenceSession(str(path), providers=['CPUExecutionProvider'])
    feed = {
        name: tensor.numpy()
        for name, tensor in zip(input_names(graph), example_inputs(graph, rows), strict=True)
    }
    names = {value.name for value in session.get_inputs()}
    return session.run(None, {name: value for name, value in feed.items() if name in names})


@pytest.mark.parametrize('rows', [1, 17])
@pytest.mark.parametrize('quantise', [quantise_weights, quantise_products])
def test_quantised_graphs_are_close_to_the_original(exported, tmp_path, quantise, rows):
    graph, path = exported
    target = tmp_path / 'int8.onnx'
    quantise(path, target)
    for wanted, found in zip(run(path, graph, rows), run(target, graph, rows), strict=True):
        cosine = torch.cosine_similarity(
            *(torch.from_numpy(x).double().flatten() for x in (wanted, found)), dim=0
        )
        assert wanted.shape == found.shape
        assert 0.99 < cosine < 1 - 1e-9  # close, and not untouched


def test_every_weight_of_the_layers_is_stored_in_eight_bits(exported, tmp_path):
    _, path = exported
    target = tmp_path / 'int8.onnx'
    quantise_weights(path, target)
    model = onnx.load(str(target))
    levels = [item for item in model.graph.initializer if item.data_type == onnx.TensorProto.INT8]
    assert len(levels) == WEIGHTS_PER_LAYER * LAYERS
    assert target.stat().st_size < 0.6 * path.stat().st_size
    for item in levels:
        numbers = onnx.numpy_helper.to_array(item).astype(np.int64)
        assert (np.abs(numbers).max(axis=0) == 127).all()  # each channel uses its whole range


def test_products_of_two_activations_stay_in_floating_point(exported, tmp_path):
    _, path = exported
    target = tmp_path / 'int8.onnx'
    quantise_products(path, target)
    operators = [node.op_type for node in onnx.load(str(target)).graph.node]
    assert operators.count('MatMulInteger') == WEIGHTS_PER_LAYER * LAYERS
    assert operators.count('MatMul') == 1  # scores of the relevance
    assert operators.count('Attention') == LAYERS


@pytest.mark.parametrize('backend', [ort, openvino])
def test_backends_run_int8_near_their_float32(exported, tmp_path, backend):
    graph, path = exported
    rows, found = 16, []
    inputs = example_inputs(graph, rows)
    for precision in ('fp32', 'int8'):
        folder = tmp_path / precision
        folder.mkdir()
        backend.compile_graph(graph, path, folder, precision, (rows,), lambda done, total: None)
        engine = backend.load_engine(graph, path, folder, precision, (rows,))
        k, v = (tensor.clone() for tensor in inputs[-2:])
        bound = engine.bind(k, v)
        for buffer, tensor in zip(bound.inputs(rows).values(), inputs[:-2], strict=True):
            buffer.copy_(tensor)
        outputs = {name: tensor.clone() for name, tensor in bound.run(rows).items()}
        found.append({**outputs, 'k': k, 'v': v})
    for name, wanted in found[0].items():
        gap = torch.cosine_similarity(wanted.flatten(), found[1][name].flatten(), dim=0)
        assert 0.99 < gap < 1 - 1e-7, name


def test_int8_that_was_not_built_is_refused(exported, tmp_path):
    graph, path = exported
    with pytest.raises(EngineError, match='int8.onnx'):
        ort.load_engine(graph, path, tmp_path, 'int8', (16,))
