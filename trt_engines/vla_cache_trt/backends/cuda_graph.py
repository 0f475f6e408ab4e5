"""PyTorch under CUDA graphs: the graph's own module, captured once per bucket.

It computes what PyTorch computes, with the same kernels; what it spares is the launching of every
kernel from Python.
"""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from vla_cache_ros.core.errors import EngineError
from vla_cache_trt.backends.capture import CapturedBuffers, check_cuda
from vla_cache_trt.backends.common import engine_buckets
from vla_cache_trt.engine import Graph, GraphSpec

NAME = 'torch_cuda_graph'


def identity() -> dict[str, str]:
    """What captured graphs depend on; they live in memory alone."""
    return {'kind': NAME, 'version': torch.__version__, 'compute_capability': ''}


def compile_graph(
    graph: Graph,
    onnx: Path | None,
    folder: Path,
    precision: str,
    buckets: tuple[int, ...],
    on_progress: Callable[[int, int], None],
) -> None:
    """Nothing is compiled and nothing written: graphs are captured when they are bound."""
    engine_buckets(graph.spec, buckets)
    on_progress(1, 1)


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


class CudaGraphEngine:
    """See `vla_cache_trt.engine.Engine`."""

    def __init__(self, graph: Graph, buckets: tuple[int, ...], device: torch.device) -> None:
        """Take the module as it is.

        Raises:
            EngineError: It is on another device.
        """
        self._graph = graph
        self.buckets = buckets
        self._device = device
        for parameter in graph.module.parameters():
            if parameter.device.type != device.type:
                raise EngineError(
                    f'{graph.spec.name} is on {parameter.device}, wanted on {device}; '
                    'load the model there.'
                )

    @property
    def spec(self) -> GraphSpec:
        """Inputs and outputs."""
        return self._graph.spec

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

    @torch.no_grad()
    def _execute(self, bucket: int) -> None:
        computed = self._module(*self._arguments(bucket).values())
        for buffer, tensor in zip(self._results(bucket).values(), computed, strict=True):
            buffer.copy_(tensor)
