"""Decoder that runs only the recomputed tokens against a full K/V cache.

One layer, for the K recomputed tokens at slots s (VLA-Cache, decoder part):

    h        = rms_norm(x)                                              [B, K, D]
    q, k, v  = W_q h, W_k h, W_v h;    q, k rotated by RoPE(s)
    cache[s] = k, v                    the other slots keep the rows of the step that wrote them
    x        = x + W_o softmax(q cache_k^T / sqrt(d)) cache_v
    x        = x + W_down (silu(W_gate h') * W_up h'),  h' = rms_norm(x)

With K = N this is the plain forward. The same class serves the decoder and, without RoPE and with
a cache of its own, the vision tower.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vla_cache_models.attendance import Attendance
from vla_cache_models.probe import AttentionProbe
from vla_cache_ros.core.errors import ConfigError
from vla_cache_ros.core.kv_cache import KVCache


@dataclass(frozen=True)
class DecoderConfig:
    """Shape of a stack of decoder layers.

    Attributes:
        width: D.
        layers: L.
        heads: A; the width of one head is width / heads.
        kv_heads: Akv; heads / kv_heads query heads share one key/value head (grouped-query
            attention). Equal to heads: multi-head attention.
        mlp_width: Hidden width of SwiGLU.
        rope_theta: Base of the rotary wavelengths; 0 leaves RoPE out.
        norm_eps: Epsilon of RMSNorm.
    """

    width: int
    layers: int
    heads: int
    kv_heads: int
    mlp_width: int
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        """Check that the widths divide.

        Raises:
            ConfigError: They do not.
        """
        if self.width % self.heads or (self.width // self.heads) % 2:
            raise ConfigError(
                f'width {self.width} is not an even multiple of heads {self.heads}; '
                'choose a width divisible by twice the heads.'
            )
        if self.heads % self.kv_heads:
            raise ConfigError(f'heads {self.heads} is not a multiple of kv_heads {self.kv_heads}.')

    @property
    def head_dim(self) -> int:
        """Width d of one head."""
        return self.width // self.heads


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Apply RoPE in the rotate-half convention.

    Args:
        x: [B, A, K, d].
        cos: [K, d] or [B, 1, K, d].
        sin: Same shape as cos.
    """
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


class PartialAttention(nn.Module):
    """Attention of K query rows over all cached slots."""

    def __init__(self, config: DecoderConfig) -> None:
        """Build the fused q, k, v projection and the output projection."""
        super().__init__()
        self.config = config
        kv_width = config.kv_heads * config.head_dim
        self.qkv = nn.Linear(config.width, config.width + 2 * kv_width, bias=False)
        self.out = nn.Linear(config.width, config.width, bias=False)

    def forward(
        self,
        h: Tensor,
        rotation: tuple[Tensor, Tensor] | None,
        slots: Tensor | None,
        attendance: Attendance,
        cache: KVCache | None,
        layer: int,
        probe: AttentionProbe | None,
    ) -> Tensor:
        """Attend; writes the K new rows into the cache first. See `Decoder.forward`."""
        config = self.config
        heads = self.qkv(h).unflatten(-1, (-1, config.head_dim)).transpose(1, 2)
        q, k, v = heads.split((config.heads, config.kv_heads, config.kv_heads), dim=1)
        if rotation is not None:
            q, k = rotate(q, *rotation), rotate(k, *rotation)
        if cache is not None:
            cache.write(layer, slots, k, v)
            k, v = cache.layer(layer)
        if probe is not None:
            probe.observe(layer, q, k, slots)
        attended = [
            F.scaled_dot_product_attention(
                q[:, :, block.row_start : block.row_stop],
                k[:, :, block.key_start : block.key_stop],
                v[:, :, block.key_start : block.key_stop],
                attn_mask=None
                if attendance.mask is None
                else attendance.mask[
                    ..., block.row_start : block.row_stop, block.key_start : block.key_stop
                ],
                enable_gqa=config.kv_heads != config.heads,
            )
            for block in attendance.blocks
        ]
        rows = attended[0] if len(attended) == 1 else torch.cat(attended, dim=2)
        return self.out(rows.transpose(1, 2).flatten(2))


class SwiGlu(nn.Module):
    """W_down (silu(W_gate h) * W_up h)."""

    def __init__(self, config: DecoderConfig) -> None:
        """Build the fused gate and up projection, and the down projection."""
        super().__init__()
        self.gate_up = nn.Linear(config.width, 2 * config.mlp_width, bias=False)
        self.down = nn.Linear(config.mlp_width, config.width, bias=False)

    def forward(self, h: Tensor) -> Tensor:
        """Map [B, K, D] to [B, K, D]."""
        gate, up = self.gate_up(h).chunk(2, dim=-1)
        return self.down(F.silu(gate) * up)


class DecoderLayer(nn.Module):
    """Pre-norm attention and SwiGLU, each with a residual."""

    def __init__(self, config: DecoderConfig) -> None:
        """Build the layer."""
        super().__init__()
        self.attention_norm = nn.RMSNorm(config.width, eps=config.norm_eps)
        self.attention = PartialAttention(config)
        self.mlp_norm = nn.RMSNorm(config.width, eps=config.norm_eps)
        self.mlp = SwiGlu(config)

    def forward(
        self,
        x: Tensor,
        rotation: tuple[Tensor, Tensor] | None,
        slots: Tensor | None,
        attendance: Attendance,
        cache: KVCache | None,
        layer: int,
        probe: AttentionProbe | None,
    ) -> Tensor:
        """Run the layer. See `Decoder.forward`."""
        x = x + self.attention(
            self.attention_norm(x), rotation, slots, attendance, cache, layer, probe
        )
        return x + self.mlp(self.mlp_norm(x))


class Decoder(nn.Module):
    """A stack of layers with the final norm."""

    def __init__(self, config: DecoderConfig) -> None:
        """Build the stack."""
        super().__init__()
        self.config = config
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.layers))
        self.norm = nn.RMSNorm(config.width, eps=config.norm_eps)

    def rotation(self, positions: Tensor) -> tuple[Tensor, Tensor] | None:
        """RoPE's cosines and sines at the given positions.

        Args:
            positions: [K], or [B, K] where the rows of a batch sit at different positions.

        Returns:
            Two tensors [K, d] or [B, 1, K, d], float32; None without RoPE.
        """
        if not self.config.rope_theta:
            return None
        d = self.config.head_dim
        exponent = torch.arange(0, d, 2, device=positions.device, dtype=torch.float32) / d
        angle = positions[..., None].float() * self.config.rope_theta**-exponent
        angle = torch.cat((angle, angle), dim=-1)
        if positions.ndim == 2:
            angle = angle[:, None]
        return angle.cos(), angle.sin()

    def forward(
        self,
        x: Tensor,
        positions: Tensor,
        attendance: Attendance,
        cache: KVCache | None = None,
        start: int = 0,
        stop: int | None = None,
        probe: AttentionProbe | None = None,
    ) -> Tensor:
        """Run layers [start, stop) on the given rows.

        Args:
            x: Hidden states of the rows that run, [B, K, D].
            positions: Their slots = sequence positions = RoPE positions, int64, [K], or [B, K]
                where the rows of a batch differ (a cache must then be a StackedCache).
            attendance: Which keys each row sees.
            cache: K/V of all N slots (it may have more), updated in place; None attends among the
                given rows only.
            start: First layer.
            stop: One past the last layer; None runs to the end.
            probe: Collects attention statistics on the way.

        Returns:
            [B, K, D], before the final norm.
        """
        rotation = self.rotation(positions)
        if rotation is not None:
            rotation = (rotation[0].to(x.dtype), rotation[1].to(x.dtype))
        slots = positions if cache is not None and positions.shape[-1] < cache.num_tokens else None
        for layer in range(start, self.config.layers if stop is None else stop):
            x = self.layers[layer](x, rotation, slots, attendance, cache, layer, probe)
        return x
