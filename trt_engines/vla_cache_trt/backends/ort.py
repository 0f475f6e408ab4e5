"""ONNX Runtime on the CPU: one session per graph, bound to the buffers by address.

One session serves all buckets. Weights are packed when the session is made, which takes about a
second per 100 MB; nothing that would spare it outlives the process, so no artifact is written but
for int8: the quantised graph.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vla_cache_ros.core.errors import EngineError
from vla_cache_trt.backends.common import BoundBuffers, engine_buckets, needs_onnx
from vla_cache_trt.engine import Graph, GraphSpec
from vla_cache_trt.quantise import QUANTISED, quantise_products

NAME = 'ort'


def compile_graph(
    graph: Graph,
    onnx: Path | None,
    folder: Path,
    precision: str,
    buckets: tuple[int, ...],
    on_progress: Callable[[int, int], None],
) -> None:
    """Check that ONNX Runtime takes the graph; for int8, write the quantised one.

    Raises:
        EngineError: It does not, or the file is missing.
    """
    engine_buckets(graph.spec, buckets)
    source = needs_onnx(graph, onnx)
    if precision == 'int8':
        quantise_products(source, folder / QUANTISED)
        source = folder / QUANTISED
    _session(source)
    on_progress(1, 1)


def load_engine(
    graph: Graph,
    onnx: Path | None,
    folder: Path,
    precision: str,
    buckets: tuple[int, ...],
    device: torch.device | str = 'cpu',
) -> 'OrtEngine':
    """Load a graph with as many threads as torch has.

    Raises:
        EngineError: The file is missing or ONNX Runtime does not take it.
    """
    sizes = engine_buckets(graph.spec, buckets)
    source = folder / QUANTISED if precision == 'int8' else onnx
    return OrtEngine(graph.spec, _session(needs_onnx(graph, source)), sizes)


class OrtEngine:
    """See `vla_cache_trt.engine.Engine`."""

    def __init__(self, spec: GraphSpec, session: Any, buckets: tuple[int, ...]) -> None:
        """Take over a session.

        Args:
            spec: Inputs and outputs.
            session: onnxruntime.InferenceSession.
            buckets: Ascending.
        """
        self.spec = spec
        self.buckets = buckets
        self._session = session

    def bind(self, k: Tensor | None = None, v: Tensor | None = None) -> 'BoundOrt':
        """Give it buffers and one cache."""
        return BoundOrt(self.spec, self.buckets, self._session, k, v)


class BoundOrt(BoundBuffers):
    """One IOBinding per bucket; ONNX Runtime reads and writes the torch tensors' own memory."""

    def __init__(
        self,
        spec: GraphSpec,
        buckets: tuple[int, ...],
        session: Any,
        k: Tensor | None,
        v: Tensor | None,
    ) -> None:
        """Allocate the buffers and bind their addresses."""
        super().__init__(spec, buckets, k, v)
        self._session = session
        self._bindings = {bucket: self._binding(bucket) for bucket in buckets}

    def _execute(self, bucket: int) -> None:
        self._session.run_with_iobinding(self._bindings[bucket])

    def _binding(self, bucket: int) -> Any:
        binding = self._session.io_binding()
        for name, tensor in self._arguments(bucket).items():
            binding.bind_input(name, 'cpu', 0, *_memory(tensor))
        for name, tensor in self._results(bucket).items():
            binding.bind_output(name, 'cpu', 0, *_memory(tensor))
        return binding


def _memory(tensor: Tensor) -> tuple[Any, tuple[int, ...], int]:
    """Element type, shape and address."""
    return tensor.numpy().dtype.type, tuple(tensor.shape), tensor.data_ptr()


def _session(onnx: Path) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    # Waiting threads that spin take the cores from what torch does between the engines.
    options.add_session_config_entry('session.intra_op.allow_spinning', '0')
    try:
        return onnxruntime.InferenceSession(onnx, options, providers=['CPUExecutionProvider'])
    except Exception as error:  # onnxruntime's own errors have no common base
        raise EngineError(
            f'ONNX Runtime does not take {onnx}: {error}. If the file was changed, write it again '
            'with `vla-cache engine export`.'
        ) from error
