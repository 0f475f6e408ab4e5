r"""The layer-adaptive schedule: how large a share of the reusable tokens each layer reuses.

One scalar per layer drives it, the entropy of its attention. With P_l the mean of layer l's
attention over its heads (each row sums to one):

    E_l = mean over rows of  -sum_j P_l[i, j] log P_l[i, j]                                   (1)

Rule 'code', what the published code does:

    r_l = 1 - (E_l - min E) / (max E - min E)
    then for l = 1, 2, ..:  r_l <- r_{l-1} + 0.55 (r_l - r_{l-1})  where r_l > r_{l-1}          (2)

Rule 'paper', what the paper states (its k is not published):

    R_l = (E_{l-1} - E_l) / E_{l-1},  R_0 = 0;  alpha_l = min(k sum_{j<=l} R_j, 1)              (3)
"""

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from vla_cache_ros.core.errors import ConfigError, UnknownNameError
from vla_cache_ros.core.relevance import attention_rows

SCHEDULE_RULES = ('code', 'paper')
ZERO_NATS = 1e-6
"""Entropies up to this count as 0 where they divide."""


@torch.no_grad()
def attention_entropy(
    q: Tensor,
    k: Tensor,
    visible: Tensor | None,
    *,
    scale: float | None = None,
    chunk_rows: int = 64,
) -> Tensor:
    """Entropy of one layer's attention, equation (1), in chunks of rows.

    The largest intermediate is [B, A, chunk_rows, N]. A subset of the rows (q and visible sliced
    alike) gives an estimate at a fraction of the cost.

    Args:
        q: Queries after RoPE, [B, A, R, d].
        k: Keys after RoPE, [B, Akv, N, d].
        visible: Which key each row may attend to, bool [R, N]; None: all.
        scale: Factor on the logits; None: 1 / sqrt(d).
        chunk_rows: Rows per chunk.

    Returns:
        float32 scalar tensor, nats; between 0 and log N.
    """
    batch, _, rows, _ = q.shape
    total = torch.zeros((), dtype=torch.float32, device=q.device)
    for start in range(0, rows, chunk_rows):
        chunk = slice(start, start + chunk_rows)
        mask = None if visible is None else visible[chunk]
        p = attention_rows(q[:, :, chunk], k, mask, scale).mean(dim=1)
        total -= torch.xlogy(p, p).sum()
    return total / (batch * rows)


def reuse_ratios(
    entropy: ArrayLike,
    rule: str = 'code',
    *,
    growth: float = 0.55,
    gain: float = 1.0,
) -> NDArray[np.float64]:
    """Share of the candidate tokens that each layer may reuse.

    Edge cases: where all entropies are equal (one layer included), rule 'code' gives 1 for every
    layer, as the published code does: each is as concentrated as the most concentrated one. Rule
    'paper' gives 0 there (no layer improves on the one before), never less than 0 where entropy
    rises, and a layer that follows an entropy of 0 (ZERO_NATS) adds R_l = 0.

    Args:
        entropy: E_l per layer, [L], finite and >= 0, nats.
        rule: 'code', equation (2), or 'paper', equation (3).
        growth: Damping of the rise in rule 'code'.
        gain: k of rule 'paper'.

    Returns:
        float64 [L], each in [0, 1].

    Raises:
        UnknownNameError: The rule is not one of SCHEDULE_RULES.
        ConfigError: The entropies are not a non-empty vector of finite values >= 0.
    """
    e = np.asarray(entropy, dtype=np.float64)
    if e.ndim != 1 or e.size == 0 or not np.isfinite(e).all() or (e < 0).any():
        raise ConfigError(f'entropies must be [L], finite and >= 0, one per layer; got {e}.')
    if rule == 'code':
        return _ratios_code(e, growth)
    if rule == 'paper':
        return _ratios_paper(e, gain)
    raise UnknownNameError('schedule rule', rule, SCHEDULE_RULES)


def _ratios_code(e: NDArray[np.float64], growth: float) -> NDArray[np.float64]:
    spread = float(e.max() - e.min())
    if spread == 0:
        return np.ones_like(e)
    r = 1 - (e - e.min()) / spread
    for layer in range(1, len(r)):
        rise = r[layer] - r[layer - 1]
        if rise > 0:
            r[layer] = r[layer - 1] + growth * rise
    return r


def _ratios_paper(e: NDArray[np.float64], gain: float) -> NDArray[np.float64]:
    before = e[:-1]
    drop = np.divide(before - e[1:], before, out=np.zeros_like(before), where=before > ZERO_NATS)
    return np.clip(gain * np.concatenate(([0.0], np.cumsum(drop))), 0, 1)
