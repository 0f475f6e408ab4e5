"""PyTorch eager behind the engine interface: the reference that other backends are held against.

It runs the graph's own module. Unlike the others it allocates while it runs, as PyTorch does, and
copies what comes out into the buffers.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from vla_cache_ros.core.errors import EngineError
from vla_cache_trt.backends.common import BoundBuffers, engine_buckets
from vla_cache_trt.engine import Graph, GraphSpec

NAME = 'torch'


def compile_graph(
    graph: Graph,
    onnx: Path | None,
    folder: Path,
    precision: str,
    buckets: tuple[int, ...],
    on_progress: Callable[[int, int], None],
) -> None:
    """Nothing is compiled and nothing written."""
    engine_buckets(graph.spec, buckets)
    on_progress(1, 1)


def load_engine(
    graph: Graph,
    onnx: Path | None,
    folder: Path,
    precision: str,
    buckets: tuple[int, ...],
    device: torch.device | str = 'cpu',
) -> 'TorchEngine':
    """The graph's module as an engine.

    Raises:
        EngineError: The module is on another device.
    """
    return TorchEngine(graph, engine_buckets(graph.spec, buckets), device)


class TorchEngine:
    """See `vla_cache_trt.engine.Engine`."""

    def __init__(self, graph: Graph, buckets: tuple[int, ...], device: torch.device | str) -> None:
        """Take the module as it is."""
        self._graph = graph
        self.buckets = buckets
        self._device = torch.device(device)
        for parameter in graph.module.parameters():
            if parameter.device.type != self._device.type:
                raise EngineError(
                    f'{graph.spec.name} is on {parameter.device}, wanted on {self._device}; '
                    'load the model there.'
                )

    @property
    def spec(self) -> GraphSpec:
        """Inputs and outputs."""
        return self._graph.spec

    def bind(self, k: Tensor | None = None, v: Tensor | None = None) -> BoundBuffers:
        """Give it buffers and one cache."""
        return BoundTorch(self._graph, self.buckets, k, v, self._device)


class BoundTorch(BoundBuffers):
    """The module on buffers of its own."""

    def __init__(
        self,
        graph: Graph,
        buckets: tuple[int, ...],
        k: Tensor | None,
        v: Tensor | None,
        device: torch.device,
    ) -> None:
        """Allocate the buffers."""
        super().__init__(graph.spec, buckets, k, v, device)
        self._module = graph.module

    def _execute(self, bucket: int) -> None:
        run_module(self._module, self._arguments(bucket), self._results(bucket))


@torch.no_grad()
def run_module(
    module: nn.Module, arguments: Mapping[str, Tensor], results: Mapping[str, Tensor]
) -> None:
    """Run a graph's module from its input buffers into its output and row buffers."""
    for buffer, tensor in zip(results.values(), module(*arguments.values()), strict=True):
        buffer.copy_(tensor)
