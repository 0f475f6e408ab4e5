"""Buffers of a bound engine: what is the same for every backend.

Inputs and outputs have one buffer per bucket, allocated when the engine is bound. The new K/V rows
leave the graph into two buffers that all buckets share, and go from there into their slots:

    k[:, :, :, slots] = k_rows;    v[:, :, :, slots] = v_rows

Padding rows go to the dummy slot, which no real row attends to. A backend adds how it runs the
graph on these addresses, and nothing else.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from vla_cache_ros.core.errors import EngineError
from vla_cache_trt.buckets import check_buckets
from vla_cache_trt.engine import BUCKET, Graph, GraphSpec, TensorSpec

SLOTS = 'slots'
"""The input that says where the new K/V rows go."""


class BoundBuffers(ABC):
    """A `vla_cache_trt.engine.BoundEngine` without the run itself, see `_execute`."""

    def __init__(
        self,
        spec: GraphSpec,
        buckets: tuple[int, ...],
        k: Tensor | None,
        v: Tensor | None,
        device: torch.device | str = 'cpu',
    ) -> None:
        """Allocate the buffers.

        Args:
            spec: Of the graph.
            buckets: Of the engine.
            k: The cached keys of the graph's layers; used in place.
            v: The values likewise.
            device: Where the buffers live.

        Raises:
            EngineError: K and V are not what the graph takes.
        """
        check_cache(spec, k, v)
        self.k, self.v = k, v
        # Allocated as normal tensors: inference tensors could not be filled elsewhere later.
        with torch.inference_mode(False):
            self._inputs = {b: _buffers(spec.inputs, b, device) for b in buckets}
            self._outputs = {b: _buffers(spec.outputs, b, device) for b in buckets}
            self._rows = _row_buffers(spec.cache, buckets, device)

    def inputs(self, bucket: int) -> Mapping[str, Tensor]:
        """The buffers to fill before `run`."""
        return self._inputs[bucket]

    def run(self, bucket: int) -> Mapping[str, Tensor]:
        """Run once and write the new K/V rows into their slots."""
        self._execute(bucket)
        if self.k is not None and self.v is not None:
            slots = self._inputs[bucket][SLOTS]
            k_rows, v_rows = self._rows[bucket]
            self.k.index_copy_(3, slots, k_rows)
            self.v.index_copy_(3, slots, v_rows)
        return self._outputs[bucket]

    @abstractmethod
    def _execute(self, bucket: int) -> None:
        """Run the graph from its input buffers into its output and row buffers."""

    def _arguments(self, bucket: int) -> dict[str, Tensor]:
        """Everything that the graph takes, by name, in its order."""
        if self.k is None or self.v is None:
            return self._inputs[bucket]
        return {**self._inputs[bucket], 'k': self.k, 'v': self.v}

    def _results(self, bucket: int) -> dict[str, Tensor]:
        """Everything that the graph gives, by name, in its order."""
        rows = dict(zip(('k_rows', 'v_rows'), self._rows[bucket], strict=False))
        return {**self._outputs[bucket], **rows}


def row_spec(cache: TensorSpec) -> TensorSpec:
    """The spec of k_rows and v_rows, [L, 1, Akv, K, d], of a cache [L, 1, Akv, S, d]."""
    return TensorSpec('rows', (*cache.shape[:3], BUCKET, cache.shape[4]), cache.dtype)


def engine_buckets(spec: GraphSpec, buckets: tuple[int, ...]) -> tuple[int, ...]:
    """The buckets that an engine of a graph has: (0,) where nothing depends on them.

    Raises:
        ConfigError: The graph needs buckets, and these are none.
        EngineError: One holds more rows than the cache has slots beside the dummy slot.
    """
    if not spec.is_bucketed:
        return (0,)
    buckets = check_buckets(buckets)
    if spec.cache is not None and buckets[-1] >= int(spec.cache.shape[3]):
        raise EngineError(
            f'bucket {buckets[-1]} of {spec.name} is larger than the longest sequence, '
            f'{int(spec.cache.shape[3]) - 1} tokens; leave it out.'
        )
    return buckets


def check_cache(spec: GraphSpec, k: Tensor | None, v: Tensor | None) -> None:
    """Check that K and V are what a graph takes.

    Raises:
        EngineError: They are not.
    """
    if spec.cache is None:
        if k is not None or v is not None:
            raise EngineError(f'{spec.name} takes no K/V; bind it without.')
        return
    shape = spec.cache.at(0)
    for name, tensor in (('k', k), ('v', v)):
        if tensor is None:
            raise EngineError(f'{spec.name} needs K/V {list(shape)}; {name} is missing.')
        if tuple(tensor.shape) != shape or tensor.dtype != spec.cache.dtype:
            raise EngineError(
                f'{spec.name} takes {name} {list(shape)} {spec.cache.dtype}, given '
                f'{list(tensor.shape)} {tensor.dtype}: the engines belong to another model or '
                'dtype; rebuild them with `vla-cache engine build`.'
            )
        if not tensor.is_contiguous():
            raise EngineError(f'{name} of {spec.name} is not contiguous; bind whole layers.')


def needs_onnx(graph: Graph, onnx: Path | None) -> Path:
    """The graph's ONNX file, which must be there.

    Raises:
        EngineError: It is not.
    """
    if onnx is None or not onnx.is_file():
        raise EngineError(
            f'the ONNX file of {graph.spec.name} is missing'
            f'{"" if onnx is None else f": {onnx}"}; write it with `vla-cache engine export`.'
        )
    return onnx


def _buffers(
    specs: tuple[TensorSpec, ...], bucket: int, device: torch.device | str
) -> dict[str, Tensor]:
    return {
        spec.name: torch.zeros(spec.at(bucket), dtype=spec.dtype, device=device) for spec in specs
    }


def _row_buffers(
    cache: TensorSpec | None, buckets: tuple[int, ...], device: torch.device | str
) -> dict[int, tuple[Tensor, ...]]:
    """(k_rows, v_rows) per bucket, in memory that all buckets share; none without a cache."""
    if cache is None:
        return dict.fromkeys(buckets, ())
    spec = row_spec(cache)
    numbers = math.prod(spec.at(buckets[-1]))
    # Each begins an allocation of its own: TensorRT wants addresses that are multiples of 256.
    storage = tuple(torch.zeros(numbers, dtype=spec.dtype, device=device) for _ in range(2))
    return {
        bucket: tuple(rows[: math.prod(spec.at(bucket))].view(spec.at(bucket)) for rows in storage)
        for bucket in buckets
    }
