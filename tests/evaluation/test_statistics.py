import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vla_cache_ros.evaluation.statistics import (
    bootstrap_mean_interval,
    compare_pairs,
    mcnemar_p,
    quantiles,
    wilson_rate,
)
from vla_cache_ros.core.errors import ConfigError


def test_wilson_of_a_textbook_case():
    # z = 1.96, p = 0.8, n = 50: centre (p + z^2/2n) / (1 + z^2/n), half-width by hand.
    rate = wilson_rate(40, 50)
    assert rate.value == 0.8
    assert rate.low == pytest.approx(0.6696, abs=1e-4)
    assert rate.high == pytest.approx(0.8876, abs=1e-4)
    assert str(rate) == '40/50 = 80.0 % [67.0, 88.8]'


@given(st.integers(0, 60), st.integers(0, 60))
def test_wilson_contains_the_rate_and_stays_in_the_unit_interval(successes, failures):
    rate = wilson_rate(successes, successes + failures)
    assert 0.0 <= rate.low <= rate.high <= 1.0
    if rate.trials:
        assert rate.low - 1e-12 <= rate.value <= rate.high + 1e-12


def test_wilson_refuses_more_successes_than_trials():
    with pytest.raises(ConfigError, match=r'0\.\.3'):
        wilson_rate(4, 3)


def test_mcnemar_is_the_exact_binomial_tail():
    assert mcnemar_p(0, 0) == 1.0
    assert mcnemar_p(5, 0) == pytest.approx(2 * 0.5**5)
    assert mcnemar_p(1, 4) == mcnemar_p(4, 1) == pytest.approx(2 * (1 + 5) * 0.5**5)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=40))
def test_cells_and_difference_of_pairs_agree_with_counting(pairs):
    first, second = zip(*pairs, strict=True)
    result = compare_pairs(first, second)
    assert result.pairs == len(pairs)
    assert result.difference == pytest.approx((sum(second) - sum(first)) / len(pairs))
    assert result.low <= result.difference + 1e-9
    assert result.high >= result.difference - 1e-9
    assert 0.0 < result.p_value <= 1.0


def test_pairs_must_match():
    with pytest.raises(ConfigError, match='same number'):
        compare_pairs([True], [True, False])


def test_bootstrap_matches_the_normal_interval_of_a_large_sample():
    values = np.random.default_rng(0).normal(3.0, 2.0, size=400)
    low, high = bootstrap_mean_interval(values.tolist())
    half_width = 1.96 * values.std() / 20
    assert low == pytest.approx(values.mean() - half_width, abs=0.03)
    assert high == pytest.approx(values.mean() + half_width, abs=0.03)


def test_quantiles_of_a_known_sample():
    q = quantiles([float(i) for i in range(101)])
    assert (q.count, q.p50, q.p95, q.p99, q.max) == (101, 50.0, 95.0, 99.0, 100.0)
    with pytest.raises(ConfigError):
        quantiles([])
