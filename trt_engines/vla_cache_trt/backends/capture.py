"""CUDA graphs over a bound engine: one captured graph per bucket, replayed in the hot loop.

What is captured is the whole run: the graph from its input buffers into its output buffers, and
the write of the new K/V rows into their slots. All addresses are fixed when the engine is bound,
so a step launches one CUDA graph and allocates nothing.

All buckets share one memory pool: their graphs run one after another, and what outlives a run lies
in buffers outside of the pool.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from vla_cache_ros.core.errors import EngineError
from vla_cache_trt.backends.common import SLOTS, BoundBuffers

WARM_UP_RUNS = 3
"""Runs before the capture: libraries load their kernels and allocate their workspaces in them."""


def check_cuda(device: torch.device | str, backend: str) -> torch.device:
    """The CUDA device to run on.

    Args:
        device: As torch names it.
        backend: Name of the backend, for the message.

    Raises:
        EngineError: It is none, or torch sees no GPU.
    """
    wanted = torch.device(device)
    if wanted.type != 'cuda':
        raise EngineError(
            f'backend {backend} runs on an NVIDIA GPU, not on {wanted}; choose device cuda, or '
            'another backend: `vla-cache engine list` names those that run here.'
        )
    if not torch.cuda.is_available():
        build = torch.version.cuda
        lacking = (
            'this build of torch has no CUDA: install one that has (make setup TORCH_INDEX_URL=)'
            if build is None
            else f'torch is built for CUDA {build}; see that nvidia-smi lists the GPU and that '
            'its driver is new enough for that CUDA'
        )
        raise EngineError(f'backend {backend} needs an NVIDIA GPU and torch sees none: {lacking}.')
    return wanted


def fill_harmless(inputs: Mapping[str, Tensor], k: Tensor | None) -> None:
    """Inputs that leave a cache in use as it is: runs before the first step go to its dummy slot.

    Every row attends to all slots: a row without any key would leave NaN in the dummy slot, and
    NaN passes through masks.
    """
    for name, tensor in inputs.items():
        if name == SLOTS and k is not None:
            tensor.fill_(k.shape[3] - 1)
        elif tensor.dtype == torch.bool:
            tensor.fill_(True)
        else:
            tensor.zero_()


class Recorder:
    """Captures pieces of work on a stream of its own into one memory pool."""

    def __init__(self, device: torch.device) -> None:
        """Make the stream and the pool."""
        self._device = device
        self._stream = torch.cuda.Stream(device)
        self._pool = torch.cuda.graph_pool_handle()

    def record(self, work: Callable[[], object]) -> Callable[[], None]:
        """Warm up, then capture.

        Args:
            work: Launches kernels alone: it neither waits for the GPU nor moves its buffers.

        Returns:
            What runs it again, on the stream that is current then.
        """
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            for _ in range(WARM_UP_RUNS):
                work()
        graph = torch.cuda.CUDAGraph()
        # Other threads of a node may use the GPU meanwhile: they must not break the capture.
        with torch.cuda.graph(
            graph, pool=self._pool, stream=self._stream, capture_error_mode='thread_local'
        ):
            work()
        current.wait_stream(self._stream)
        return graph.replay


class CapturedBuffers(BoundBuffers):
    """A bound engine that replays a CUDA graph per bucket; see `_execute`."""

    _replay: dict[int, Callable[[], None]]

    def run(self, bucket: int) -> Mapping[str, Tensor]:
        """Run once and write the new K/V rows into their slots."""
        self._replay[bucket]()
        return self._outputs[bucket]

    def capture(self, device: torch.device, name: str) -> None:
        """Capture every bucket; called once, at the end of binding.

        Args:
            device: The GPU.
            name: Of the graph, for the message.

        Raises:
            EngineError: A run cannot be captured.
        """
        recorder = Recorder(device)
        self._replay = {}
        # The largest first: the smaller ones then fit into the pool that it has made.
        for bucket in sorted(self._inputs, reverse=True):
            inputs = self._inputs[bucket]
            fill_harmless(inputs, self.k)
            try:
                self._replay[bucket] = recorder.record(self._runner(bucket))
            except RuntimeError as error:
                raise EngineError(
                    f'{name} cannot be captured as a CUDA graph at bucket {bucket}: {error}. '
                    'If memory ran out, build with fewer buckets; backend torch needs no capture.'
                ) from error
            for tensor in inputs.values():
                tensor.zero_()

    def _runner(self, bucket: int) -> Callable[[], object]:
        return lambda: BoundBuffers.run(self, bucket)
