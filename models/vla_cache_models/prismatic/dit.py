"""The diffusion transformer that turns CogACT's cognition feature into the noise of a chunk.

For noisy actions x [B, T, A] at diffusion step t [B], condition z [B, 1, C] (CogACT,
arXiv:2411.19650; DiT with the condition as a token, arXiv:2212.09748):

    c     = W_2 silu(W_1 s(t)) + W_z z,   s(t) = (cos(t w), sin(t w)),  w_j = 10000^(-j / 128)
    h     = (c, W_x x) + p                                                   [B, 1 + T, D]
    h     = h + attention(norm(h));   h = h + W_fc2 gelu(W_fc1 norm(h))      for each block
    noise = W_out norm(h), the row of c dropped                              [B, T, A]

norm is LayerNorm without weights, gelu its tanh form; every linear map has a bias. Guidance:

    noise = u + scale (n - u),   n = noise(x, t, z),  u = noise(x, t, the learned 'no condition')
"""

import math
import re
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vla_cache_ros.core.errors import CheckpointError, ConfigError

# Size in CogACT's names -> depth, width, heads.
DIT_SIZES = {'S': (6, 384, 4), 'B': (12, 768, 12), 'L': (24, 1024, 16)}

# Tensors that CogACT's checkpoints hold and no forward reads, as fnmatch patterns.
UNUSED_DIT_TENSORS = ('history_embedder.*',)

TIME_EMBEDDING_WIDTH = 256
MAX_PERIOD = 10_000.0
NORM_EPS = 1e-6


@dataclass(frozen=True)
class DitConfig:
    """Shape of a diffusion transformer.

    Attributes:
        depth: Blocks.
        width: D.
        heads: Attention heads; divides width. No tensor's shape tells it.
        condition_width: C, the decoder's width.
        chunk_size: T.
        action_size: A, numbers per action.
        mlp_ratio: Hidden width of a block's MLP over width.
    """

    depth: int
    width: int
    heads: int
    condition_width: int = 4096
    chunk_size: int = 16
    action_size: int = 7
    mlp_ratio: int = 4

    def __post_init__(self) -> None:
        """Check the sizes.

        Raises:
            ConfigError: One is below 1, or heads does not divide width.
        """
        for name, value in vars(self).items():
            if value < 1:
                raise ConfigError(f'{name} of the DiT is {value!r}; valid: at least 1.')
        if self.width % self.heads:
            raise ConfigError(
                f'width {self.width} of the DiT is not a multiple of heads {self.heads}; '
                f'{_valid_sizes()}.'
            )

    @classmethod
    def from_tensors(
        cls, shapes: Mapping[str, Sequence[int]], heads: int | None = None
    ) -> 'DitConfig':
        """Read the shape off a checkpoint.

        Args:
            shapes: Tensor name, without the checkpoint's 'net.', -> shape.
            heads: Attention heads; None takes those of the published size of that depth and width.

        Raises:
            CheckpointError: A tensor that tells the shape is missing or not a matrix, a block is
                missing, or heads is None and no published size has that depth and width.
            ConfigError: heads does not divide the width.
        """
        width, action_size = _matrix(shapes, 'x_embedder.linear.weight')
        _, condition_width = _matrix(shapes, 'z_embedder.linear.weight')
        positions, _ = _matrix(shapes, 'positional_embedding')
        mlp_width, _ = _matrix(shapes, 'blocks.0.mlp.fc1.weight')
        depth = _count_blocks(shapes)
        if heads is None:
            heads = _published_heads(depth, width)
        return cls(
            depth, width, heads, condition_width, positions - 1, action_size, mlp_width // width
        )


def _valid_sizes() -> str:
    sizes = ', '.join(
        f'{name} (depth {depth}, width {width}, heads {heads})'
        for name, (depth, width, heads) in DIT_SIZES.items()
    )
    return f'published sizes: {sizes}'


def _matrix(shapes: Mapping[str, Sequence[int]], name: str) -> tuple[int, int]:
    """Rows and columns of a tensor that must be a matrix."""
    if name not in shapes:
        raise CheckpointError(
            f'the action model has no tensor {name!r}, so it is not a DiT of CogACT; '
            f'{_valid_sizes()}.'
        )
    if len(shapes[name]) != 2:
        raise CheckpointError(
            f'tensor {name!r} of the action model has shape {tuple(shapes[name])}; '
            'valid: a matrix.'
        )
    rows, columns = shapes[name]
    return rows, columns


def _count_blocks(shapes: Mapping[str, Sequence[int]]) -> int:
    """Number of blocks, which must be numbered from 0 without a gap."""
    matches = (re.match(r'blocks\.(\d+)\.', name) for name in shapes)
    found = {int(match[1]) for match in matches if match}
    missing = set(range(max(found) + 1)) - found
    if missing:
        raise CheckpointError(
            f'the action model has blocks up to {max(found)} but lacks {sorted(missing)}; '
            'the file is incomplete, fetch it again.'
        )
    return len(found)


def _published_heads(depth: int, width: int) -> int:
    for known_depth, known_width, heads in DIT_SIZES.values():
        if (depth, width) == (known_depth, known_width):
            return heads
    raise CheckpointError(
        f'the action model has depth {depth} and width {width}, which is no published size; '
        f'{_valid_sizes()}. State the number of heads to load another one.'
    )


class TimestepEmbedder(nn.Module):
    """Diffusion step -> [B, D]: sines and cosines, then an MLP."""

    def __init__(self, width: int) -> None:
        """Build the MLP."""
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(TIME_EMBEDDING_WIDTH, width), nn.SiLU(), nn.Linear(width, width)
        )

    def forward(self, t: Tensor, dtype: torch.dtype) -> Tensor:
        """Embed t [B], of any numeric type, in the network's type."""
        half = TIME_EMBEDDING_WIDTH // 2
        index = torch.arange(half, device=t.device, dtype=torch.float32)
        # float32 until the MLP: in bfloat16 an angle of 90 radians is off by up to 0.25.
        angle = t[:, None].float() * torch.exp(-math.log(MAX_PERIOD) * index / half)
        waves = torch.cat((angle.cos(), angle.sin()), dim=-1)
        return self.mlp(waves.to(dtype))


class ConditionEmbedder(nn.Module):
    """Condition -> [B, 1, D]; holds the learned condition that stands for none."""

    def __init__(self, config: DitConfig) -> None:
        """Build the projection."""
        super().__init__()
        self.linear = nn.Linear(config.condition_width, config.width)
        self.uncondition = nn.Parameter(0.02 * torch.randn(1, config.condition_width))

    def forward(self, z: Tensor) -> Tensor:
        """Project z [B, 1, C]."""
        return self.linear(z)


class DitAttention(nn.Module):
    """Attention of all rows over all rows."""

    def __init__(self, config: DitConfig) -> None:
        """Build the fused q, k, v projection and the output projection."""
        super().__init__()
        self.heads = config.heads
        self.qkv = nn.Linear(config.width, 3 * config.width)
        self.proj = nn.Linear(config.width, config.width)

    def forward(self, h: Tensor) -> Tensor:
        """Map [B, 1 + T, D] to [B, 1 + T, D]."""
        q, k, v = self.qkv(h).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        rows = F.scaled_dot_product_attention(q, k, v)
        return self.proj(rows.transpose(1, 2).flatten(2))


class DitBlock(nn.Module):
    """Pre-norm attention and MLP, each with a residual."""

    def __init__(self, config: DitConfig) -> None:
        """Build the block."""
        super().__init__()
        width, hidden = config.width, config.mlp_ratio * config.width
        self.attention_norm = nn.LayerNorm(width, eps=NORM_EPS, elementwise_affine=False)
        self.attn = DitAttention(config)
        self.mlp_norm = nn.LayerNorm(width, eps=NORM_EPS, elementwise_affine=False)
        self.mlp = nn.Sequential(
            OrderedDict(
                fc1=nn.Linear(width, hidden),
                gelu=nn.GELU(approximate='tanh'),
                fc2=nn.Linear(hidden, width),
            )
        )

    def forward(self, h: Tensor) -> Tensor:
        """Map [B, 1 + T, D] to [B, 1 + T, D]."""
        h = h + self.attn(self.attention_norm(h))
        return h + self.mlp(self.mlp_norm(h))


class DiffusionTransformer(nn.Module):
    """Predicts the noise in a chunk; parameters named as in CogACT's checkpoints after 'net.'."""

    def __init__(self, config: DitConfig) -> None:
        """Build the network."""
        super().__init__()
        self.config = config
        width = config.width
        self.x_embedder = nn.Sequential(OrderedDict(linear=nn.Linear(config.action_size, width)))
        self.t_embedder = TimestepEmbedder(width)
        self.z_embedder = ConditionEmbedder(config)
        self.positional_embedding = nn.Parameter(
            width**-0.5 * torch.randn(config.chunk_size + 1, width)
        )
        self.blocks = nn.ModuleList(DitBlock(config) for _ in range(config.depth))
        self.final_layer = nn.Sequential(
            OrderedDict(
                norm=nn.LayerNorm(width, eps=NORM_EPS, elementwise_affine=False),
                linear=nn.Linear(width, config.action_size),
            )
        )

    def forward(self, x: Tensor, t: Tensor, z: Tensor) -> Tensor:
        """Predict the noise.

        Args:
            x: Noisy actions, [B, T, A].
            t: Step of the base diffusion process, not of the sampler, int64 or float [B].
            z: Condition, [B, 1, C].

        Returns:
            [B, T, A].
        """
        condition = self.t_embedder(t, x.dtype)[:, None] + self.z_embedder(z)
        h = torch.cat((condition, self.x_embedder(x)), dim=1) + self.positional_embedding
        for block in self.blocks:
            h = block(h)
        return self.final_layer(h[:, 1:])


def guided_noise(
    dit: DiffusionTransformer, x: Tensor, t: Tensor, z: Tensor, scale: float
) -> Tensor:
    """Noise under classifier-free guidance, conditioned and unconditioned in one batch.

    Args:
        dit: The network.
        x: Noisy actions, [B, T, A], of any float type; computed in the network's.
        t: Step of the base diffusion process, [B].
        z: Condition, [B, 1, C].
        scale: Strength of the guidance, at least 1; 1 runs the conditioned half alone.

    Returns:
        [B, T, A] in the network's type.

    Raises:
        ConfigError: scale is below 1 (the published code silently switches guidance off there).
    """
    if not scale >= 1:
        raise ConfigError(f'guidance scale is {scale!r}; valid: >= 1 (1 is off, published 1.5).')
    uncondition = dit.z_embedder.uncondition
    x, z = x.to(uncondition.dtype), z.to(uncondition.dtype)
    if scale == 1:
        return dit(x, t, z)
    conditions = torch.cat((z, uncondition.expand_as(z)))
    conditioned, unconditioned = dit(torch.cat((x, x)), torch.cat((t, t)), conditions).chunk(2)
    return unconditioned + scale * (conditioned - unconditioned)
