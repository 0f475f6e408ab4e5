"""Graphs with int8 weights, made from the exported ones.

A weight W [in, out] of a matrix product becomes integers with one scale per output channel:

    s_j = max_i |W_ij| / 127,    Q_ij = round(W_ij / s_j) in [-127, 127],    W ~ Q s

`quantise_weights` stores just that: the graph multiplies Q by s and goes on in floating point; the
weights take a quarter of the space. `quantise_products` also rounds each product's input to eight
bits, by its own range at run time, and multiplies integers: faster where the CPU has instructions
for it, and further from the original. All other operators, attention among them, stay as they are.
"""

import logging
from pathlib import Path

import numpy as np

from vla_cache_trt.export import DATA_SUFFIX, EXTERNAL_DATA_BYTES

LEVELS = 127
QUANTISED = 'int8.onnx'
"""Where backends keep a quantised graph."""


def quantise_weights(source: Path, target: Path) -> None:
    """Write a graph with int8 weights that computes in floating point.

    Args:
        source: The exported graph in float32.
        target: The new one; its folder exists.
    """
    import onnx
    from onnx import helper, numpy_helper

    model = onnx.load(str(source))
    graph = model.graph
    restored = []
    for tensor in [item for item in graph.initializer if _is_weight(item, graph)]:
        weight = numpy_helper.to_array(tensor)
        # A channel of zeros stays one: any scale will do.
        scale = np.maximum(np.abs(weight).max(axis=0) / LEVELS, np.finfo(np.float32).tiny)
        levels = np.rint(weight / scale).astype(np.int8)
        names = [f'{tensor.name}_{part}' for part in ('levels', 'scale')]
        graph.initializer.remove(tensor)
        graph.initializer.append(numpy_helper.from_array(levels, names[0]))
        graph.initializer.append(numpy_helper.from_array(scale.astype(np.float32), names[1]))
        restored.append(helper.make_node('DequantizeLinear', names, [tensor.name], axis=1))
    nodes = [*restored, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    is_large = sum(len(tensor.raw_data) for tensor in graph.initializer) > EXTERNAL_DATA_BYTES
    onnx.save(
        model, str(target), save_as_external_data=is_large, location=target.name + DATA_SUFFIX
    )


def quantise_products(source: Path, target: Path) -> None:
    """Write a graph with int8 weights whose matrix products multiply integers.

    Args:
        source: The exported graph in float32.
        target: The new one; its folder exists.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    root = logging.getLogger()
    level = root.level
    root.setLevel(
        logging.ERROR
    )  # it recommends a pre-processing that undoes the opset's operators
    try:
        quantize_dynamic(
            str(source),
            str(target),
            op_types_to_quantize=['MatMul'],
            per_channel=True,
            weight_type=QuantType.QInt8,
            use_external_data_format=source.with_name(source.name + DATA_SUFFIX).exists(),
            # Products of two activations, such as scores, stay in floating point.
            extra_options={'MatMulConstBOnly': True},
        )
    finally:
        root.setLevel(level)


def _is_weight(tensor, graph) -> bool:  # noqa: ANN001 - onnx is imported where it is used
    """Whether a constant is the right-hand side of matrix products and nothing else."""
    readers = [node for node in graph.node if tensor.name in node.input]
    return (
        len(tensor.dims) == 2
        and len(readers) > 0
        and all(node.op_type == 'MatMul' and node.input[1] == tensor.name for node in readers)
    )
