import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vla_cache_ros.core.errors import ConfigError, UnknownNameError
from vla_cache_ros.core.relevance import attention_rows
from vla_cache_ros.core.schedule import ZERO_NATS, attention_entropy, reuse_ratios

entropies = st.lists(st.floats(0, 10), min_size=1, max_size=40)


@given(st.integers(1, 9), st.integers(1, 10), st.booleans(), st.integers(0, 2**31))
def test_chunked_entropy_agrees_with_the_full_map(rows, chunk_rows, masked, seed):
    generator = torch.Generator().manual_seed(seed)
    q = torch.randn(2, 4, rows, 4, generator=generator)
    k = torch.randn(2, 2, 9, 4, generator=generator)
    visible = torch.rand(rows, 9, generator=generator) < 0.5 if masked else None
    if visible is not None:
        visible[:, 0] = True
    p = attention_rows(q, k, visible, None).double().mean(dim=1)
    logs = torch.where(p > 0, p, 1).log()
    expected = -(p * logs).sum(dim=-1).mean().float()
    entropy = attention_entropy(q, k, visible, chunk_rows=chunk_rows)
    assert entropy.shape == ()
    torch.testing.assert_close(entropy, expected)


def test_entropy_is_log_n_where_attention_is_uniform_and_0_where_it_is_certain():
    q, k = torch.zeros(1, 2, 5, 4), torch.randn(1, 2, 8, 4)
    assert attention_entropy(q, k, None).item() == pytest.approx(math.log(8), rel=1e-6)
    only_self = torch.eye(5, 8, dtype=torch.bool)
    assert attention_entropy(q, k, only_self).item() == 0


def plain_code_rule(entropy: list[float]) -> list[float]:
    low, high = min(entropy), max(entropy)
    if low == high:
        return [1.0] * len(entropy)
    ratios = [1 - (e - low) / (high - low) for e in entropy]
    for i in range(1, len(ratios)):
        if ratios[i] > ratios[i - 1]:
            ratios[i] = ratios[i - 1] + 0.55 * (ratios[i] - ratios[i - 1])
    return ratios


def plain_paper_rule(entropy: list[float], gain: float) -> list[float]:
    ratios, total = [0.0], 0.0
    for before, now in zip(entropy, entropy[1:], strict=False):
        total += (before - now) / before if before > ZERO_NATS else 0.0
        ratios.append(min(max(gain * total, 0.0), 1.0))
    return ratios


@given(entropies, st.floats(0, 3))
def test_both_rules_agree_with_their_plain_form(entropy, gain):
    np.testing.assert_allclose(reuse_ratios(entropy, 'code'), plain_code_rule(entropy), atol=1e-9)
    np.testing.assert_allclose(
        reuse_ratios(entropy, 'paper', gain=gain), plain_paper_rule(entropy, gain), atol=1e-9
    )


@given(entropies, st.sampled_from(['code', 'paper']))
def test_ratios_are_shares(entropy, rule):
    ratios = reuse_ratios(entropy, rule)
    assert ratios.shape == (len(entropy),)
    assert ((ratios >= 0) & (ratios <= 1)).all()


@pytest.mark.parametrize('entropy', [[2.0], [2.0, 2.0, 2.0], [0.0, 0.0]])
def test_equal_entropies_are_defined(entropy):
    assert (reuse_ratios(entropy, 'code') == 1).all()
    assert (reuse_ratios(entropy, 'paper') == 0).all()


def test_a_layer_after_zero_entropy_adds_nothing():
    assert reuse_ratios([2.0, 0.0, 1.0], 'paper').tolist() == [0, 1, 1]


@pytest.mark.parametrize('entropy', [[], [[1.0]], [1.0, math.nan], [math.inf], [-1.0]])
def test_entropies_that_mean_nothing_are_refused(entropy):
    with pytest.raises(ConfigError, match='finite and >= 0'):
        reuse_ratios(entropy)


def test_an_unknown_rule_names_the_valid_ones():
    with pytest.raises(UnknownNameError, match='valid: code, paper'):
        reuse_ratios([1.0, 2.0], 'linear')
