"""Work of a decoder forward: the published formula, and what our partial-token forward does.

One FLOP here is one multiply-add, as in the published figures. With n active tokens, width d and
MLP width m, one layer is charged (VLA-Cache):

    F(n) = 4 n d^2 + 2 n^2 d + 3 n d m

Rows that run attend to all slots, not only to one another: with K rows, N keys, Akv of A
key/value heads and S query-key pairs (S = K N where every row sees every slot), our layer does

    C(K, S) = K d (d + 2 d Akv / A)      q, k, v
            + 2 S d                      scores and their sum over the values
            + K d^2                      output projection
            + 3 K d m                    gate, up, down

so C(N, N^2) = F(N) for multi-head attention, and C(K, K N) = F(K) + 2 K (N - K) d. A causal mask
spares nothing: the masked scores are computed too. Norms, RoPE, softmax and activations are not
counted in either.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

from vla_cache_models.attendance import resolve_attendance
from vla_cache_models.decoder import DecoderConfig
from vla_cache_ros.core.errors import ConfigError
from vla_cache_ros.core.layout import TokenLayout
from vla_cache_ros.core.plan import ReusePlan


def published_flops(config: DecoderConfig, tokens_per_layer: Sequence[float]) -> float:
    """The published formula, summed over the layers.

    Args:
        config: The decoder.
        tokens_per_layer: Active tokens n of each layer, L numbers. They may be fractions: a mean
            over prompts of different lengths is one.

    Returns:
        Multiply-adds.

    Raises:
        ConfigError: There is not one number per layer, or one is negative.
    """
    if len(tokens_per_layer) != config.layers or min(tokens_per_layer, default=0) < 0:
        raise ConfigError(
            f'tokens_per_layer holds {len(tokens_per_layer)} numbers; valid: one number >= 0 for '
            f'each of the {config.layers} layers.'
        )
    linear, quadratic = _per_token(config), 2 * config.width
    return sum(linear * n + quadratic * n**2 for n in tokens_per_layer)


def implied_tokens(config: DecoderConfig, flops: float) -> float:
    """The equal count of active tokens per layer that the published formula charges `flops` for.

    The positive root of L (2 d n^2 + (4 d^2 + 3 d m) n) = flops.

    Args:
        config: The decoder.
        flops: Multiply-adds of all layers.

    Raises:
        ConfigError: flops is negative or not finite.
    """
    if not (math.isfinite(flops) and flops >= 0):
        raise ConfigError(f'flops is {flops}; valid: finite and >= 0.')
    linear, quadratic = _per_token(config), 2 * config.width
    root = math.sqrt(linear**2 + 4 * quadratic * flops / config.layers)
    return (root - linear) / (2 * quadratic)


def implied_tokens_behind(
    config: DecoderConfig, flops: float, dense_tokens: float, dense_layers: int
) -> float:
    """The equal count of active tokens in the layers behind the first ones, which run everything.

    Args:
        config: The decoder.
        flops: Multiply-adds of all layers.
        dense_tokens: Active tokens of the first layers.
        dense_layers: How many these are: the first prune layer. Published: 2.

    Raises:
        ConfigError: No layer is left, or the first layers alone take more than flops.
    """
    if not 0 <= dense_layers < config.layers:
        raise ConfigError(
            f'dense_layers is {dense_layers}; valid: 0..{config.layers - 1}, so that a layer is '
            'left to prune.'
        )
    first = replace(config, layers=dense_layers)
    rest = replace(config, layers=config.layers - dense_layers)
    return implied_tokens(rest, flops - published_flops(first, [dense_tokens] * dense_layers))


def layer_flops(config: DecoderConfig, rows: int, pairs: int) -> int:
    """Multiply-adds C(K, S) of one layer of our forward.

    Args:
        config: The decoder.
        rows: K, rows that run.
        pairs: S, query-key pairs that are scored.
    """
    d = config.width
    kv_width = config.kv_heads * config.head_dim
    projections = d * (d + 2 * kv_width) + d * d
    return rows * (projections + 3 * d * config.mlp_width) + 2 * pairs * d


def plan_flops(config: DecoderConfig, layout: TokenLayout, plan: ReusePlan) -> int:
    """Multiply-adds of the decoder under a reuse plan.

    Args:
        config: The decoder.
        layout: Whose attention rule says which keys each row scores.
        plan: Which rows run in which layers.
    """
    total = 0
    for group, slots in zip(plan.groups, plan.recompute, strict=True):
        pairs = sum(
            (block.row_stop - block.row_start) * (block.key_stop - block.key_start)
            for block in resolve_attendance(layout, slots).blocks
        )
        total += (group.stop - group.start) * layer_flops(config, len(slots), pairs)
    return total


def _per_token(config: DecoderConfig) -> int:
    """Coefficient of n in the published formula, 4 d^2 + 3 d m."""
    return 4 * config.width**2 + 3 * config.width * config.mlp_width
