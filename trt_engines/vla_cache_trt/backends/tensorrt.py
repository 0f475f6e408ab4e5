"""TensorRT 10 and 11: one optimisation profile, execution context and CUDA graph per bucket.

Each profile holds one K alone, so the builder picks its kernels for that K. Shapes and addresses,
those of the K/V cache among them, are given to each context once, when the engine is bound; what a
step does is to replay one CUDA graph: the engine, then the write of the new K/V rows.

TensorRT builds for the GPU that it runs on, and measures kernels on it: build on the robot's own
computer.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vla_cache_trt.backends.capture import CapturedBuffers, check_cuda
from vla_cache_trt.backends.common import engine_buckets, needs_onnx
from vla_cache_trt.backends.nvidia import (
    Package,
    PlanEngine,
    bind_context,
    build_plan,
    execute,
    gpu_capability,
    load_package,
    load_plan,
    version,
)
from vla_cache_trt.engine import Graph

NAME = 'tensorrt'
PACKAGE = Package(
    name=NAME,
    title='TensorRT',
    module='tensorrt',
    oldest=(10, 3),
    install=(
        'On a Jetson it comes with JetPack (apt install tensorrt python3-libnvinfer); else: '
        'pip install tensorrt --extra-index-url https://pypi.nvidia.com'
    ),
)
TIMINGS = 'timing.cache'
REBUILD = 'vla-cache engine build --backend tensorrt'


def identity() -> dict[str, str]:
    """What a plan built here would be for.

    Raises:
        EngineError: The package cannot be loaded.
    """
    return {
        'kind': NAME,
        'version': version(load_package(PACKAGE)),
        'compute_capability': gpu_capability(),
    }


def compile_graph(
    graph: Graph,
    onnx: Path | None,
    folder: Path,
    precision: str,
    buckets: tuple[int, ...],
    on_progress: Callable[[int, int], None],
) -> None:
    """Build a graph's plan with one profile per bucket.

    Raises:
        EngineError: TensorRT or a GPU is missing, or the ONNX file cannot be built.
    """
    buckets = engine_buckets(graph.spec, buckets)
    path = needs_onnx(graph, onnx)
    trt = load_package(PACKAGE)
    check_cuda('cuda', NAME)
    build_plan(
        PACKAGE,
        trt,
        graph,
        path,
        folder,
        buckets,
        lambda config: None,
        on_progress,
        f'compute capability {gpu_capability()}',
        # Above the graph's own folder: the graphs of a model have many kernels in common.
        folder.parent / TIMINGS,
    )


def load_engine(
    graph: Graph,
    onnx: Path | None,
    folder: Path,
    precision: str,
    buckets: tuple[int, ...],
    device: torch.device | str = 'cuda',
) -> 'TensorRtEngine':
    """Load a graph's plan.

    Raises:
        EngineError: TensorRT or the GPU is missing, or the plan does not fit them or the graph.
    """
    buckets = engine_buckets(graph.spec, buckets)
    trt = load_package(PACKAGE)
    device = check_cuda(device, NAME)
    with torch.cuda.device(device):
        runtime, engine = load_plan(PACKAGE, trt, graph, folder, buckets, REBUILD)
    return TensorRtEngine(trt, runtime, engine, graph.spec, buckets, device)


class TensorRtEngine(PlanEngine):
    """See `vla_cache_trt.engine.Engine`."""

    def bind(self, k: Tensor | None = None, v: Tensor | None = None) -> 'BoundTensorRt':
        """Give it buffers and one cache, and capture every bucket.

        Raises:
            EngineError: K and V are not what the graph takes, or a run cannot be captured.
        """
        return BoundTensorRt(self, k, v)


class BoundTensorRt(CapturedBuffers):
    """One execution context per bucket, captured with the write of its rows."""

    def __init__(self, engine: TensorRtEngine, k: Tensor | None, v: Tensor | None) -> None:
        """Allocate the buffers, bind every context and capture."""
        super().__init__(engine.spec, engine.buckets, k, v, engine.device)
        self._engine = engine
        with torch.cuda.device(engine.device):
            # Activations of all contexts: one of them runs at a time.
            with torch.inference_mode(False):
                self._scratch = torch.empty(
                    max(1, engine.engine.device_memory_size_v2),
                    dtype=torch.uint8,
                    device=engine.device,
                )
            self._contexts = {
                bucket: self._context(index, bucket) for index, bucket in enumerate(engine.buckets)
            }
            self.capture(engine.device, engine.spec.name)

    def _context(self, profile: int, bucket: int) -> Any:
        trt, plan = self._engine.trt, self._engine.engine
        context = plan.create_execution_context(
            trt.ExecutionContextAllocationStrategy.USER_MANAGED
        )
        tensors = {**self._arguments(bucket), **self._results(bucket)}
        stream = torch.cuda.current_stream(self._engine.device)
        bind_context(context, self._engine.spec, bucket, profile, tensors, stream)
        context.set_device_memory(self._scratch.data_ptr(), self._scratch.nbytes)
        return context

    def _execute(self, bucket: int) -> None:
        engine = self._engine
        stream = torch.cuda.current_stream(engine.device).cuda_stream
        execute(engine.trt, self._contexts[bucket], engine.spec, stream)
