import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vla_cache_ros.core.relevance import text_to_vision_batched


def plain_attention(q, k, visible, scale):
    """Softmax attention, head by head and row by row in float64."""
    batch, heads, rows, width = q.shape
    group = heads // k.shape[1]
    out = torch.zeros(batch, heads, rows, k.shape[2], dtype=torch.float64)
    for b in range(batch):
        for head in range(heads):
            for row in range(rows):
                logits = k[b, head // group].double() @ q[b, head, row].double()
                weights = torch.exp(logits * (scale or 1 / math.sqrt(width)))
                if visible is not None:
                    weights = weights * visible[row]
                out[b, head, row] = weights / weights.sum()
    return out


@given(
    st.sampled_from([(1, 1), (2, 1), (4, 2), (3, 3)]),
    st.integers(1, 4),
    st.sampled_from([None, 0.3]),
    st.booleans(),
    st.integers(0, 2**31),
)
def test_agrees_with_the_full_attention_map(heads, rows, scale, masked, seed):
    generator = torch.Generator().manual_seed(seed)
    q = torch.randn(2, heads[0], rows, 4, generator=generator)
    k = torch.randn(2, heads[1], 9, 4, generator=generator)
    visible = torch.rand(rows, 9, generator=generator) < 0.6 if masked else None
    if visible is not None:
        visible[:, 8] = True
    expected = plain_attention(q, k, visible, scale)[..., 2:7].mean(dim=(1, 2)).float()
    torch.testing.assert_close(text_to_vision_batched(q, k, visible, (2, 7), scale), expected)


def test_sums_to_the_share_of_attention_that_goes_to_vision():
    q, k = torch.randn(1, 2, 3, 4), torch.randn(1, 2, 9, 4)
    assert text_to_vision_batched(q, k, None, (0, 9)).sum().item() == pytest.approx(1)
    visible = torch.zeros(3, 9, dtype=torch.bool)
    visible[:, :4] = True
    assert text_to_vision_batched(q, k, visible, (4, 9)).abs().max() == 0


def test_is_differentiable_in_queries_and_keys():
    q = torch.randn(1, 4, 2, 4, requires_grad=True)
    k = torch.randn(1, 2, 6, 4, requires_grad=True)
    text_to_vision_batched(q, k, None, (0, 3))[0, 1].backward()
    assert q.grad is not None
    assert k.grad is not None
    assert q.grad.abs().sum() > 0
    assert k.grad.abs().sum() > 0


def test_bfloat16_inputs_give_float32():
    q, k = torch.randn(1, 2, 2, 4).bfloat16(), torch.randn(1, 2, 6, 4).bfloat16()
    assert text_to_vision_batched(q, k, None, (0, 6)).dtype == torch.float32
