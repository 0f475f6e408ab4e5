"""What every backend gives: a compiled graph, bound to a K/V cache, run at a bucket.

    graph    one torch module with named inputs and outputs         vla_cache_trt.graphs
    engine   the graph compiled by a backend, its weights on the device
    bound    the engine with input buffers of its own and the addresses of one policy's K/V cache

K, the number of tokens that run, differs from step to step; a compiled graph wants few shapes. So
K is rounded up to a bucket, and the rows that fill it up are padding: they take the dummy slot,
the last one of the cache, which no real row attends to. A padding row attends to the dummy slot
alone.

K/V stay where the cache put them. A graph reads the cached rows, puts the new ones in their slots
for its own attention, and gives them out; `BoundEngine.run` then writes them into the cache in
place.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

BUCKET = 'K'
"""The one dimension of a TensorSpec that is not fixed."""


@dataclass(frozen=True)
class TensorSpec:
    """One input or output.

    Attributes:
        name: Its name in the graph.
        shape: Numbers, and BUCKET where the bucket's size goes.
        dtype: Element type.
    """

    name: str
    shape: tuple[int | str, ...]
    dtype: torch.dtype

    def at(self, bucket: int) -> tuple[int, ...]:
        """The shape at a bucket."""
        return tuple(bucket if size == BUCKET else int(size) for size in self.shape)


@dataclass(frozen=True)
class GraphSpec:
    """What goes into a graph and what comes out.

    Attributes:
        name: Of the graph and its files, e.g. 'decoder_2_6'.
        inputs: Filled by the caller before each run; K/V not among them.
        outputs: What a run gives back; the new K/V rows not among them.
        cache: K's and V's spec, [L, 1, Akv, S, d] of the layers in this graph, S slots with the
            dummy slot last; None for a graph without cache. The graph takes 'k' and 'v' behind
            its inputs and gives 'k_rows' and 'v_rows', [L, 1, Akv, K, d], behind its outputs.
    """

    name: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    cache: TensorSpec | None = None

    @property
    def is_bucketed(self) -> bool:
        """Whether any shape depends on the bucket."""
        return any(BUCKET in tensor.shape for tensor in (*self.inputs, *self.outputs))


@dataclass(frozen=True)
class Graph:
    """A module, as PyTorch runs it and as the engines export it.

    Attributes:
        spec: Its inputs and outputs; module takes the inputs, k and v by position in the spec's
            order and returns the outputs, k_rows and v_rows as a tuple.
        module: The torch module, in eval mode.
    """

    spec: GraphSpec
    module: nn.Module


class BoundEngine(Protocol):
    """An engine with buffers of its own; nothing is allocated in `run`."""

    def inputs(self, bucket: int) -> Mapping[str, Tensor]:
        """The buffers to fill before `run`, on the engine's device.

        Args:
            bucket: One of the engine's buckets; ignored by graphs without buckets.
        """
        ...

    def run(self, bucket: int) -> Mapping[str, Tensor]:
        """Run once and write the new K/V rows into their slots.

        Args:
            bucket: The one whose buffers were filled.

        Returns:
            The outputs, valid until the next run at this bucket.
        """
        ...


class Engine(Protocol):
    """A compiled graph."""

    @property
    def spec(self) -> GraphSpec:
        """Its inputs and outputs."""
        ...

    @property
    def buckets(self) -> tuple[int, ...]:
        """Ascending sizes of K that it runs; (0,) for graphs without buckets."""
        ...

    def bind(self, k: Tensor | None = None, v: Tensor | None = None) -> BoundEngine:
        """Give the engine buffers and one cache.

        Args:
            k: The cached keys of the graph's layers, contiguous; its memory is used as it is.
            v: The values likewise.
        """
        ...
