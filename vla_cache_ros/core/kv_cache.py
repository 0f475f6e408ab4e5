"""The K/V cache: preallocated, written in place, slot = sequence position = RoPE position."""

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
