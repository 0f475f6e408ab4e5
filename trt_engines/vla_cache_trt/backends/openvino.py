"""OpenVINO on the CPU, in float32 or, inside, in bfloat16; on the buffers' own memory.

int8 is a matter of the weights alone: they are stored in eight bits, and the CPU computes in what
is fastest on it, bfloat16 or float32.

Static shapes run 4 to 11 % faster than one dynamic shape (measured: four layers of width 192 and
of width 1024, 2 threads), but each compiled shape packs weights of its own. So graphs with small
weights are compiled once per bucket, the others once for all. Either way each bucket has an infer
request of its own, whose shapes never change. What was compiled is kept in the artifact folder.
"""

from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vla_cache_ros.core.errors import EngineError, UnknownNameError
from vla_cache_trt.backends.common import (
    BoundBuffers,
    engine_buckets,
    needs_onnx,
)
from vla_cache_trt.engine import Graph, GraphSpec
from vla_cache_trt.quantise import QUANTISED, quantise_weights

NAME = 'openvino'
HINTS = {'fp32': 'f32', 'bf16': 'bf16', 'int8': ''}
"""Precision -> what OpenVINO computes in, empty: the CPU's own choice; borders and K/V are
float32."""
STATIC_WEIGHT_BYTES = 128 * 2**20
"""Weights up to which a graph is compiled once per bucket."""


def compile_graph(
    graph: Graph,
    onnx: Path | None,
    folder: Path,
    precision: str,
    buckets: tuple[int, ...],
    on_progress: Callable[[int, int], None],
) -> None:
    """Compile into the folder, from where `load_engine` takes it.

    Raises:
        EngineError: The file is missing or OpenVINO does not take it.
        UnknownNameError: Unknown precision.
    """
    _compile(graph, onnx, folder, precision, buckets, on_progress)


def load_engine(
    graph: Graph,
    onnx: Path | None,
    folder: Path,
    precision: str,
    buckets: tuple[int, ...],
    device: torch.device | str = 'cpu',
) -> 'OpenVinoEngine':
    """Load what was compiled, for as many threads as torch has; compiles what is missing.

    Raises:
        EngineError: The file is missing or OpenVINO does not take it.
        UnknownNameError: Unknown precision.
    """
    compiled = _compile(graph, onnx, folder, precision, buckets, lambda done, total: None)
    return OpenVinoEngine(graph.spec, compiled)


class OpenVinoEngine:
    """See `vla_cache_trt.engine.Engine`."""

    def __init__(self, spec: GraphSpec, compiled: Mapping[int, Any]) -> None:
        """Take over compiled models.

        Args:
            spec: Inputs and outputs.
            compiled: Bucket -> openvino.CompiledModel, ascending; several may have the same.
        """
        self.spec = spec
        self.buckets = tuple(compiled)
        self._compiled = compiled

    def bind(self, k: Tensor | None = None, v: Tensor | None = None) -> 'BoundOpenVino':
        """Give it buffers and one cache."""
        return BoundOpenVino(self.spec, self._compiled, k, v)


class BoundOpenVino(BoundBuffers):
    """One infer request per bucket, on the torch tensors' own memory."""

    def __init__(
        self,
        spec: GraphSpec,
        compiled: Mapping[int, Any],
        k: Tensor | None,
        v: Tensor | None,
    ) -> None:
        """Allocate the buffers and hand them to the requests."""
        super().__init__(spec, tuple(compiled), k, v)
        self._requests = {
            bucket: self._request(bucket, model) for bucket, model in compiled.items()
        }

    def _execute(self, bucket: int) -> None:
        # Sharing the outputs spares a copy of them; they are in the buffers anyway.
        self._requests[bucket].infer(share_outputs=True)

    def _request(self, bucket: int, model: Any) -> Any:
        import openvino

        request = model.create_infer_request()
        for name, tensor in (self._arguments(bucket) | self._results(bucket)).items():
            request.set_tensor(name, openvino.Tensor(tensor.numpy(), shared_memory=True))
        return request


def _compile(
    graph: Graph,
    onnx: Path | None,
    folder: Path,
    precision: str,
    buckets: tuple[int, ...],
    on_progress: Callable[[int, int], None],
) -> dict[int, Any]:
    """Bucket -> compiled model, taken from the folder where it is there."""
    if precision not in HINTS:
        raise UnknownNameError('precision of OpenVINO', precision, HINTS)
    sizes = engine_buckets(graph.spec, buckets)
    path = folder / QUANTISED
    if precision != 'int8':
        path = needs_onnx(graph, onnx)
    elif not path.is_file():
        quantise_weights(needs_onnx(graph, onnx), path)
    weights = sum(parameter.nbytes for parameter in graph.module.parameters())
    shapes: tuple[int | None, ...] = sizes if weights <= STATIC_WEIGHT_BYTES else (None,)
    models = []
    for done, bucket in enumerate(shapes):
        on_progress(done, len(shapes))
        models.append(_compiled(graph.spec, path, folder, HINTS[precision], bucket))
    on_progress(len(shapes), len(shapes))
    return dict(zip(sizes, models * (len(sizes) // len(models)), strict=True))


@cache
def _core() -> Any:
    """OpenVINO's plugins, loaded once."""
    import openvino

    return openvino.Core()


def _compiled(spec: GraphSpec, onnx: Path, folder: Path, hint: str, bucket: int | None) -> Any:
    """Compile for one bucket; None: for any."""
    core = _core()
    settings = {
        'PERFORMANCE_HINT': 'LATENCY',
        'NUM_STREAMS': '1',
        'INFERENCE_NUM_THREADS': str(torch.get_num_threads()),
        'CACHE_DIR': str(folder),
    }
    if hint:
        settings['INFERENCE_PRECISION_HINT'] = hint
    try:
        model = core.read_model(onnx)
        if bucket is not None:
            model.reshape({tensor.name: list(tensor.at(bucket)) for tensor in spec.inputs})
        return core.compile_model(model, 'CPU', settings)
    except RuntimeError as error:
        raise EngineError(
            f'OpenVINO does not take {onnx}: {" ".join(str(error).split())}. If the file was '
            'changed, write it again with `vla-cache engine export`.'
        ) from error
