"""PyTorch under CUDA graphs: the graph's own module, captured once per bucket.

It computes what PyTorch computes, with the same kernels; what it spares is the launching of every
kernel from Python.
"""

from pathlib import Path

import torch
from torch import Tensor

from vla_cache_trt.backends.capture import CapturedBuffers, check_cuda
from vla_cache_trt.backends.common import engine_buckets
from vla_cache_trt.backends.torch_eager import TorchEngine, compile_graph, run_module
from vla_cache_trt.engine import Graph

__all__ = ['NAME', 'compile_graph', 'identity', 'load_engine']

NAME = 'torch_cuda_graph'


def identity() -> dict[str, str]:
    """What captured graphs depend on; they live in memory alone."""
    return {'kind': NAME, 'version': torch.__version__, 'compute_capability': ''}


def load_engine(
    graph: Graph,
    onnx: Path | None,
    folder: Path,
    precision: str,
    buckets: tuple[int, ...],
    device: torch.device | str = 'cuda',
) -> 'CudaGraphEngine':
    """The graph's module as an engine.

    Raises:
        EngineError: There is no GPU, or the module is not on it.
    """
    return CudaGraphEngine(graph, engine_buckets(graph.spec, buckets), check_cuda(device, NAME))


class CudaGraphEngine(TorchEngine):
    """See `vla_cache_trt.engine.Engine`."""

    def bind(self, k: Tensor | None = None, v: Tensor | None = None) -> 'BoundCudaGraph':
        """Give it buffers and one cache, and capture every bucket.

        Raises:
            EngineError: K and V are not what the graph takes, or a run cannot be captured.
        """
        return BoundCudaGraph(self._graph, self.buckets, k, v, self._device)


class BoundCudaGraph(CapturedBuffers):
    """The module captured on buffers of its own."""

    def __init__(
        self,
        graph: Graph,
        buckets: tuple[int, ...],
        k: Tensor | None,
        v: Tensor | None,
        device: torch.device,
    ) -> None:
        """Allocate the buffers and capture."""
        super().__init__(graph.spec, buckets, k, v, device)
        self._module = graph.module
        self.capture(device, graph.spec.name)

    def _execute(self, bucket: int) -> None:
        run_module(self._module, self._arguments(bucket), self._results(bucket))
