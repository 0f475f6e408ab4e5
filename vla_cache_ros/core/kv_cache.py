"""The K/V cache: preallocated, written in place, slot = sequence position = RoPE position."""

from collections.abc import Sequence

import torch
from torch import Tensor

from vla_cache_ros.core.errors import ConfigError


class KVCache:
    """Keys (after RoPE) and values of every layer, one slot per position of the sequence.

    A slot keeps what was last written to it, so a token that does not run in this step serves the
    K/V of the step in which it last ran. Nothing is allocated after construction.

    Attributes:
        k: Keys, [L, B, Akv, N, d].
        v: Values, [L, B, Akv, N, d].
    """

    def __init__(
        self,
        num_layers: int,
        num_kv_heads: int,
        num_tokens: int,
        head_dim: int,
        *,
        batch: int = 1,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = 'cpu',
    ) -> None:
        """Allocate zeroed K and V.

        Args:
            num_layers: L.
            num_kv_heads: Akv.
            num_tokens: N.
            head_dim: d.
            batch: B.
            dtype: Element type of both tensors.
            device: Where they live.

        Raises:
            ConfigError: A size is not positive.
        """
        shape = (num_layers, batch, num_kv_heads, num_tokens, head_dim)
        if min(shape) < 1:
            raise ConfigError(f'K/V cache sizes [L, B, Akv, N, d] must be positive; got {shape}.')
        self.k = torch.zeros(shape, dtype=dtype, device=device)
        self.v = torch.zeros(shape, dtype=dtype, device=device)

    @property
    def nbytes(self) -> int:
        """Memory of K and V together, bytes."""
        return self.k.nbytes + self.v.nbytes

    @property
    def num_tokens(self) -> int:
        """N, slots."""
        return self.k.shape[3]

    def layer(self, index: int) -> tuple[Tensor, Tensor]:
        """One layer's K and V over all slots.

        Returns:
            Views (k, v), each [B, Akv, N, d]: what the layer's queries attend to.
        """
        return self.k[index], self.v[index]

    @torch.no_grad()
    def write(self, layer: int, slots: Tensor | None, k: Tensor, v: Tensor) -> None:
        """Put the rows of the tokens that ran into their slots, in place.

        Args:
            layer: Layer index, 0..L-1.
            slots: Positions of the K tokens, int64 [K], without repeats; None for all N slots.
            k: Keys after RoPE at these positions, [B, Akv, K, d].
            v: Values, [B, Akv, K, d].
        """
        cached_k, cached_v = self.layer(layer)
        if slots is None:
            cached_k.copy_(k)
            cached_v.copy_(v)
        else:
            cached_k.index_copy_(2, slots, k.to(cached_k.dtype))
            cached_v.index_copy_(2, slots, v.to(cached_v.dtype))


class StackedCache(KVCache):
    """The caches of B sessions as one with B rows; what is written lands in the session's own.

    The sessions' caches stay where they are, so any of them may run together. Reading a layer
    copies it: B Akv N d numbers, little beside the layer's own work.
    """

    def __init__(self, caches: Sequence[KVCache]) -> None:
        """Stack caches of batch 1 and equal shape."""
        self._caches = tuple(caches)

    @property
    def nbytes(self) -> int:
        """Memory of the sessions' caches, bytes."""
        return sum(cache.nbytes for cache in self._caches)

    @property
    def num_tokens(self) -> int:
        """N, slots."""
        return self._caches[0].num_tokens

    def layer(self, index: int) -> tuple[Tensor, Tensor]:
        """One layer's K and V over all slots, copied; each [B, Akv, N, d]."""
        return (
            torch.cat([cache.k[index] for cache in self._caches]),
            torch.cat([cache.v[index] for cache in self._caches]),
        )

    def write(self, layer: int, slots: Tensor | None, k: Tensor, v: Tensor) -> None:
        """Put each session's rows into its own cache; see KVCache.

        Args:
            layer: Layer index, 0..L-1.
            slots: Int64 [K], the same for all, or [B, K]; None for all N slots.
            k: Keys, [B, Akv, K, d].
            v: Values, [B, Akv, K, d].
        """
        for row, cache in enumerate(self._caches):
            own = slots[row] if slots is not None and slots.ndim == 2 else slots
            cache.write(layer, own, k[row : row + 1], v[row : row + 1])
