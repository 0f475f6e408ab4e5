"""TensorRT for RTX: engines built ahead of time, for a GPU that need not be here.

A plan has one profile per bucket, which share the weights. (One profile that spans all buckets
would do, too, but release 1.7 fails to build a group of several layers with it.) Kernels are
compiled when the engine is bound, and kept in a cache file beside the plan. Each bucket has an
execution context of its own, with its addresses bound once, and the library captures each
context's run as one CUDA graph by itself. The new K/V rows are written on the same stream right
behind it.
"""

from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vla_cache_ros.core.errors import EngineError, UnknownNameError
from vla_cache_trt.backends.capture import WARM_UP_RUNS, check_cuda, fill_harmless
from vla_cache_trt.backends.common import BoundBuffers, engine_buckets, needs_onnx
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
    write_atomically,
)
from vla_cache_trt.engine import Graph, GraphSpec

NAME = 'tensorrt_rtx'
PACKAGE = Package(
    name=NAME,
    title='TensorRT for RTX',
    module='tensorrt_rtx',
    oldest=(1, 2),
    install='Install it with: pip install tensorrt-rtx-cu13==1.7.1.116',
)
REBUILD = 'vla-cache engine build --backend tensorrt_rtx'
KERNELS = 'kernels.cache'


def identity(compute_capability: str | None = None) -> dict[str, str]:
    """What a plan built here would be for.

    Args:
        compute_capability: Of another GPU, e.g. '8.9'; None: of the one in this machine.

    Raises:
        EngineError: The package cannot be loaded.
    """
    return {
        'kind': NAME,
        'version': version(load_package(PACKAGE)),
        'compute_capability': compute_capability or gpu_capability(),
    }


def compile_graph(
    graph: Graph,
    onnx: Path | None,
    folder: Path,
    precision: str,
    buckets: tuple[int, ...],
    on_progress: Callable[[int, int], None],
    compute_capability: str | None = None,
) -> None:
    """Build a graph's plan; needs no GPU.

    Args:
        graph: The graph.
        onnx: Its ONNX file.
        folder: Gets the plan.
        precision: As the graph was exported: networks are strongly typed.
        buckets: Sizes of K.
        on_progress: Called with steps done and steps in all.
        compute_capability: Of the GPU to build for, e.g. '8.9'; None: the one in this machine.

    Raises:
        EngineError: The package is missing, there is no GPU and none was named, or the ONNX file
            cannot be built.
        UnknownNameError: Engines cannot be built for that GPU.
    """
    buckets = engine_buckets(graph.spec, buckets)
    path = needs_onnx(graph, onnx)
    trt = load_package(PACKAGE)
    target = compute_capability or gpu_capability()
    if not target:
        raise EngineError(
            'torch sees no GPU to build for; name one: --compute-capability '
            f'{{{", ".join(capabilities(trt))}}}.'
        )
    architecture = _architecture(trt, target)

    def configure(config: Any) -> None:
        config.num_compute_capabilities = 1
        config.set_compute_capability(architecture, 0)

    build_plan(
        PACKAGE,
        trt,
        graph,
        path,
        folder,
        buckets,
        configure,
        on_progress,
        f'compute capability {target}',
    )


def capabilities(trt: Any) -> tuple[str, ...]:
    """Compute capabilities that engines can be built for."""
    numbers = sorted(
        int(name.removeprefix('SM'))
        for name in trt.ComputeCapability.__members__
        if name.startswith('SM')
    )
    return tuple(f'{number // 10}.{number % 10}' for number in numbers)


def load_engine(
    graph: Graph,
    onnx: Path | None,
    folder: Path,
    precision: str,
    buckets: tuple[int, ...],
    device: torch.device | str = 'cuda',
) -> 'RtxEngine':
    """Load a graph's plan.

    Raises:
        EngineError: The package or the GPU is missing, or the plan does not fit them or the graph.
    """
    buckets = engine_buckets(graph.spec, buckets)
    trt = load_package(PACKAGE)
    device = check_cuda(device, NAME)
    with torch.cuda.device(device):
        runtime, engine = load_plan(PACKAGE, trt, graph, folder, buckets, REBUILD)
    return RtxEngine(trt, runtime, engine, graph.spec, buckets, device, folder / KERNELS)


class RtxEngine(PlanEngine):
    """See `vla_cache_trt.engine.Engine`."""

    def __init__(
        self,
        trt: Any,
        runtime: Any,
        engine: Any,
        spec: GraphSpec,
        buckets: tuple[int, ...],
        device: torch.device,
        kernels: Path,
    ) -> None:
        """Take what was loaded; kernels: file of those compiled on this GPU."""
        super().__init__(trt, runtime, engine, spec, buckets, device)
        self._kernels = kernels

    def bind(self, k: Tensor | None = None, v: Tensor | None = None) -> 'BoundRtx':
        """Give it buffers and one cache, and compile the kernels of every bucket.

        Raises:
            EngineError: K and V are not what the graph takes, or the engine does not run.
        """
        settings = self.engine.create_runtime_config()
        settings.cuda_graph_strategy = self.trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        # Every shape is known now: nothing is left to be compiled while the policy runs.
        settings.dynamic_shapes_kernel_specialization_strategy = (
            self.trt.DynamicShapesKernelSpecializationStrategy.EAGER
        )
        kernels = settings.create_runtime_cache()
        before = self._kernels.read_bytes() if self._kernels.is_file() else b''
        if before:
            kernels.deserialize(before)  # of another driver: refused, and written anew below
        settings.set_runtime_cache(kernels)
        bound = BoundRtx(self, settings, k, v)
        after = bytes(memoryview(kernels.serialize()))
        if after != before:
            with suppress(OSError):  # a read-only folder costs the next start some seconds
                write_atomically(self._kernels, after)
        return bound


class BoundRtx(BoundBuffers):
    """One execution context per bucket, on a stream of their own.

    The library cannot capture on the default stream, where a policy's other work runs; events
    keep the two in order.
    """

    def __init__(
        self, engine: RtxEngine, settings: Any, k: Tensor | None, v: Tensor | None
    ) -> None:
        """Allocate the buffers, bind every context and run each a few times."""
        super().__init__(engine.spec, engine.buckets, k, v, engine.device)
        self._engine = engine
        with torch.cuda.device(engine.device):
            self._stream = torch.cuda.Stream(engine.device)
            self._filled, self._finished = torch.cuda.Event(), torch.cuda.Event()
            self._contexts = {
                bucket: self._context(settings, index, bucket)
                for index, bucket in enumerate(engine.buckets)
            }
            self._warm_up()

    def run(self, bucket: int) -> Mapping[str, Tensor]:
        """Run once and write the new K/V rows into their slots."""
        current = torch.cuda.current_stream(self._engine.device)
        self._filled.record(current)
        self._stream.wait_event(self._filled)
        with torch.cuda.stream(self._stream):
            outputs = super().run(bucket)
        self._finished.record(self._stream)
        current.wait_event(self._finished)
        return outputs

    def _context(self, settings: Any, profile: int, bucket: int) -> Any:
        context = self._engine.engine.create_execution_context(runtime_config=settings)
        tensors = {**self._arguments(bucket), **self._results(bucket)}
        bind_context(context, self._engine.spec, bucket, profile, tensors, self._stream)
        return context

    def _warm_up(self) -> None:
        """Compile and capture before the first step, touching the dummy slot alone."""
        for bucket, inputs in self._inputs.items():
            fill_harmless(inputs, self.k)
            for _ in range(WARM_UP_RUNS):
                self.run(bucket)
            for tensor in inputs.values():
                tensor.zero_()

    def _execute(self, bucket: int) -> None:
        engine = self._engine
        execute(engine.trt, self._contexts[bucket], engine.spec, self._stream.cuda_stream)


def _architecture(trt: Any, compute_capability: str) -> Any:
    """The package's name for a GPU's architecture.

    Raises:
        UnknownNameError: It builds nothing for that GPU.
    """
    valid = capabilities(trt)
    if compute_capability not in valid:
        raise UnknownNameError(
            'compute capability for TensorRT for RTX',
            compute_capability,
            valid,
            'Other GPUs run backend tensorrt or torch_cuda_graph.',
        )
    return trt.ComputeCapability.__members__[f'SM{compute_capability.replace(".", "")}']
