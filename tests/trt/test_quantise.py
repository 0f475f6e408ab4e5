import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from tests.models.prismatic.conftest import tiny_vla
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
