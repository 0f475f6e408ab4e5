r"""Task relevance of the vision tokens, from one layer's text-to-vision attention.

    s_j = 1/(A R) sum_a sum_i softmax_j(q_ai . k_aj / sqrt(d)),  i in text rows, j in vision

The softmax runs over every key that a text row may see; of its result only the vision columns are
kept. R text rows of one layer are all that is computed: no full attention map exists anywhere.
"""

import math

import torch
from torch import Tensor


def attention_rows(q: Tensor, k: Tensor, visible: Tensor | None, scale: float | None) -> Tensor:
    """Softmax attention of R query rows over all keys, grouped-query heads included.

    Args:
        q: Queries after RoPE, [B, A, R, d].
        k: Keys after RoPE, [B, Akv, N, d]; A is a multiple of Akv.
        visible: Which key each row may attend to, bool [R, N], at least one per row; None: all.
        scale: Factor on the logits; None: 1 / sqrt(d).

    Returns:
        float32 [B, A, R, N].
    """
    batch, heads, rows, width = q.shape
    kv_heads = k.shape[1]
    grouped = q.float().reshape(batch, kv_heads, heads // kv_heads * rows, width)
    factor = 1 / math.sqrt(width) if scale is None else scale
    logits = (grouped @ k.float().transpose(-1, -2)).view(batch, heads, rows, -1) * factor
    if visible is not None:
        logits = logits.masked_fill(~visible, -math.inf)
    return torch.softmax(logits, dim=-1)


def text_to_vision_batched(
    q: Tensor,
    k: Tensor,
    visible: Tensor | None,
    vision: tuple[int, int],
    scale: float | None = None,
) -> Tensor:
    """Relevance of each vision token.

    Args:
        q: Queries of the text tokens after RoPE, [B, A, R, d].
        k: Keys of all tokens after RoPE, [B, Akv, N, d].
        visible: Which key each text row may attend to, bool [R, N]; None: all.
        vision: Slots (start, stop) of the vision tokens.
        scale: Factor on the logits; None: 1 / sqrt(d).

    Returns:
        float32 [B, V], V = stop - start. A row sums to the share of the text's attention that
        goes to vision. Differentiable, so that training can supervise it.
    """
    return attention_rows(q, k, visible, scale)[..., vision[0] : vision[1]].mean(dim=(1, 2))
