"""Graphs to ONNX: the file that every compiled engine starts from.

torch.onnx's dynamo exporter traces the modules that PyTorch runs; K, the number of rows that run,
stays free between 1 and the slots of the cache. At opset 23 normalisation, attention and the
scatter of the new rows are one operator each (RMSNormalization, Attention, ScatterND); opset 20
spells the first two out.

A file is checked before it gets its name: by ONNX's checker with types and shapes, and by loading
it in ONNX Runtime. Some engines build a graph whose types do not fit without a word.
"""

import hashlib
import inspect
import os
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vla_cache_ros.core.errors import EngineError
from vla_cache_trt.engine import BUCKET, Graph, TensorSpec

OPSET = 23
FALLBACK_OPSET = 20
EXTERNAL_DATA_BYTES = 1_500_000_000
"""Weights beyond this go into a file of their own: protobuf ends at 2 GiB."""
DATA_SUFFIX = '.data'
EXAMPLE_ROWS = 3
HASHED_CHUNK_BYTES = 1 << 22
IN_ORT = (torch.float32, torch.float16)
"""Element types of weights that ONNX Runtime's CPU kernels take."""


@dataclass(frozen=True)
class ExportedGraph:
    """What an export wrote.

    Attributes:
        path: The ONNX file; weights may lie in a second file of that name with '.data' behind.
        sha256: Of both files; the same graph exports to the same hash.
        opset: The operator set that it was exported at.
        fallback_reason: Why that is not the one asked for; empty where it is.
        operators: How often each operator occurs.
        export_s: Time taken.
    """

    path: Path
    sha256: str
    opset: int
    fallback_reason: str
    operators: Mapping[str, int]
    export_s: float


def export_onnx(graph: Graph, path: Path, opset: int = OPSET) -> ExportedGraph:
    """Write a graph as ONNX; an interrupted call leaves what was there before.

    Args:
        graph: The graph, on any device.
        path: Where the file goes; its folder is made.
        opset: Operator set to try first; FALLBACK_OPSET is the second try.

    Raises:
        EngineError: The graph cannot be exported, or what was exported is no sound graph.
    """
    started = time.perf_counter()
    path.parent.mkdir(parents=True, exist_ok=True)
    reason = ''
    with tempfile.TemporaryDirectory(prefix='.export-', dir=path.parent) as scratch:
        draft = Path(scratch) / path.name
        try:
            operators = _export(graph, draft, opset)
        except EngineError as error:
            if opset <= FALLBACK_OPSET:
                raise
            reason, opset = f'opset {opset}: {error.__cause__}', FALLBACK_OPSET
            operators = _export(graph, draft, opset)
        sha256 = onnx_sha256(draft)
        # The weights first: a file without its weights would be worse than weights left over.
        for name in (path.name + DATA_SUFFIX, path.name):
            if (Path(scratch) / name).exists():
                os.replace(Path(scratch) / name, path.parent / name)
    export_s = time.perf_counter() - started
    return ExportedGraph(path, sha256, opset, reason, operators, export_s)


def onnx_sha256(path: Path) -> str:
    """Hash of an ONNX file and, where there is one, of the weights beside it."""
    digest = hashlib.sha256()
    for part in (path, path.with_name(path.name + DATA_SUFFIX)):
        if part.exists():
            with part.open('rb') as file:
                while chunk := file.read(HASHED_CHUNK_BYTES):
                    digest.update(chunk)
    return digest.hexdigest()


def check_onnx(path: Path, dtype: torch.dtype) -> None:
    """Make sure of a file's structure, types and shapes.

    Args:
        path: The ONNX file.
        dtype: Element type of its weights; ONNX Runtime loads those of IN_ORT.

    Raises:
        EngineError: It is damaged, or its types do not fit.
    """
    import onnx

    try:
        onnx.checker.check_model(str(path), full_check=True)
        if dtype in IN_ORT:
            _load_in_ort(path)
    except Exception as error:  # the checkers' own error types have no common base
        raise EngineError(
            f'{path.name} is no sound ONNX graph: {str(error).strip()}; export it again with '
            '`vla-cache engine export`.'
        ) from error


def example_inputs(graph: Graph, rows: int = EXAMPLE_ROWS, seed: int = 0) -> tuple[Tensor, ...]:
    """Random inputs that a graph accepts, K and V at the end.

    Args:
        graph: The graph.
        rows: K.
        seed: Another seed, other inputs.
    """
    generator = torch.Generator().manual_seed(seed)
    device = next(graph.module.parameters()).device
    specs = [*graph.spec.inputs, *_cache_specs(graph)]
    return tuple(_example(spec, rows, generator).to(device) for spec in specs)


def input_names(graph: Graph) -> tuple[str, ...]:
    """Names of the exported graph's inputs, in order."""
    return tuple(spec.name for spec in (*graph.spec.inputs, *_cache_specs(graph)))


def output_names(graph: Graph) -> tuple[str, ...]:
    """Names of the exported graph's outputs, in order."""
    rows = () if graph.spec.cache is None else ('k_rows', 'v_rows')
    return (*(spec.name for spec in graph.spec.outputs), *rows)


def _cache_specs(graph: Graph) -> tuple[TensorSpec, ...]:
    cache = graph.spec.cache
    if cache is None:
        return ()
    return tuple(TensorSpec(name, cache.shape, cache.dtype) for name in 'kv')


def _example(spec: TensorSpec, rows: int, generator: torch.Generator) -> Tensor:
    shape = spec.at(rows)
    if spec.name == 'mask':  # everything but the dummy slot
        return (torch.arange(shape[1]) < shape[1] - 1).expand(shape).contiguous()
    if spec.name == 'slots':
        return torch.arange(rows)
    if spec.name == 'text_weights':
        return torch.full(shape, 1 / shape[0])
    if spec.dtype.is_floating_point:
        return torch.randn(shape, generator=generator).to(spec.dtype)
    if spec.dtype == torch.uint8:
        return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    return torch.zeros(shape, dtype=spec.dtype)


def _export(graph: Graph, path: Path, opset: int) -> Mapping[str, int]:
    """Export and check; returns the operators' counts."""
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter('ignore')  # the exporter's remarks on itself
            program = torch.onnx.export(
                graph.module,
                example_inputs(graph),
                dynamo=True,
                opset_version=opset,
                dynamic_shapes=_dynamic_shapes(graph),
                input_names=input_names(graph),
                output_names=output_names(graph),
                verbose=False,
            )
    except torch.onnx.errors.OnnxExporterError as error:
        raise EngineError(f'{graph.spec.name} cannot be exported: {error}') from error
    assert program is not None
    model = program.model
    for part in _parts(model):
        part.metadata_props.clear()  # source lines and traces: other folders, other hashes
    constants = [value.const_value for value in model.graph.initializers.values()]
    weights = sum(0 if constant is None else constant.nbytes for constant in constants)
    program.save(str(path), external_data=weights > EXTERNAL_DATA_BYTES)
    check_onnx(path, _weight_dtype(graph))
    return dict(Counter(node.op_type for node in model.graph).most_common())


def _parts(model: Any) -> Iterator[Any]:
    """Everything in a model that may carry metadata."""
    yield model
    yield model.graph
    yield from (*model.graph.inputs, *model.graph.initializers.values())
    for node in model.graph:
        yield node
        yield from node.outputs


def _dynamic_shapes(graph: Graph) -> tuple[Any, ...]:
    """Where K is, in the nesting of the module's arguments."""
    cache = graph.spec.cache
    rows = None if cache is None else torch.export.Dim(BUCKET, min=1, max=int(cache.shape[3]) - 1)
    shapes = [
        {axis: rows for axis, size in enumerate(spec.shape) if size == BUCKET}
        for spec in (*graph.spec.inputs, *_cache_specs(graph))
    ]
    parameters = inspect.signature(graph.module.forward).parameters.values()
    named = sum(each.kind is not each.VAR_POSITIONAL for each in parameters)
    if named == len(parameters):
        return tuple(shapes)
    return *shapes[:named], tuple(shapes[named:])


def _weight_dtype(graph: Graph) -> torch.dtype:
    specs = (*graph.spec.inputs, *graph.spec.outputs)
    return next(spec.dtype for spec in specs if spec.dtype.is_floating_point)


def _load_in_ort(path: Path) -> None:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    onnxruntime.InferenceSession(str(path), options, providers=['CPUExecutionProvider'])
