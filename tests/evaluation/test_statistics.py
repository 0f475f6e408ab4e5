from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from scipy.special import xlogy
from scipy.stats import multinomial

from vla_cache_ros.core.errors import ConfigError
from vla_cache_ros.evaluation.statistics import (
    bootstrap_mean_interval,
    compare_pairs,
    mcnemar_p,
    non_inferiority,
    paired_interval,
    pairs_needed,
    quantiles,
    wilson_rate,
)


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
    assert result.bootstrap_low <= result.difference + 1e-9
    assert result.bootstrap_high >= result.difference - 1e-9
    assert result.discordant_rate == sum(a != b for a, b in pairs) / len(pairs)
    assert 0.0 < result.p_value <= 1.0


def test_pairs_must_match():
    with pytest.raises(ConfigError, match='same number'):
        compare_pairs([True], [True, False])


def test_paired_interval_of_a_published_example():
    # Fagerland, Lydersen and Laake (2014), airway hyper-responsiveness of 21 children before and
    # after a transplantation: 1 in both, 1 only before, 7 only after, 12 never.
    low, high = paired_interval(only_first=7, only_second=1, pairs=21)
    assert low == pytest.approx(-0.517, abs=5e-4)
    assert high == pytest.approx(-0.026, abs=5e-4)


def test_paired_interval_without_discordant_pairs_has_the_closed_form():
    z = NormalDist().inv_cdf(0.975)
    low, high = paired_interval(0, 0, 220)
    assert high == pytest.approx(z**2 / (220 + z**2))
    assert low == -high


cells = st.tuples(st.integers(0, 30), st.integers(0, 30), st.integers(0, 200)).filter(any)


@given(cells, st.sampled_from((0.8, 0.95, 0.99)))
def test_paired_interval_holds_the_estimate_and_mirrors_when_the_arms_change_places(
    counts, confidence
):
    lost, gained, same = counts
    pairs = sum(counts)
    low, high = paired_interval(lost, gained, pairs, confidence)
    assert -1.0 <= low <= (gained - lost) / pairs <= high <= 1.0
    assert paired_interval(gained, lost, pairs, confidence) == pytest.approx((-high, -low))
    wider = paired_interval(lost, gained, pairs, 0.995)
    assert wider[0] <= low + 1e-12
    assert high <= wider[1] + 1e-12


@given(cells)
def test_bounds_are_where_the_likelihood_maximised_by_scipy_rejects(counts):
    lost, gained, same = counts
    pairs = sum(counts)
    z = NormalDist().inv_cdf(0.975)
    for bound in paired_interval(lost, gained, pairs):
        if not 1e-3 < abs(bound) < 1 - 1e-3:
            continue

        def minus_log_likelihood(q, bound=bound):
            rates = np.array([q + bound, q, 1 - 2 * q - bound])
            return -float(xlogy([gained, lost, same], np.maximum(rates, 1e-300)).sum())

        limits = (max(0.0, -bound), (1 - bound) / 2)
        found = minimize_scalar(
            minus_log_likelihood, bounds=limits, method='bounded', options={'xatol': 1e-12}
        )
        variance = 2 * found.x + bound * (1 - bound)
        score = (gained - lost - pairs * bound) / np.sqrt(pairs * variance)
        assert abs(score) == pytest.approx(z, abs=5e-3)


@pytest.mark.parametrize('rates', [(0.005, 0.005), (0.02, 0.01), (0.1, 0.15), (0.4, 0.3)])
def test_paired_interval_covers_the_difference_as_often_as_it_says(rates):
    # Exact: every table of n pairs weighed by its probability.
    n, (lost, gained) = 120, rates
    covered = 0.0
    for b in range(n + 1):
        for c in range(n + 1 - b):
            p = multinomial.pmf([b, c, n - b - c], n, [lost, gained, 1 - lost - gained])
            if p > 1e-5:
                low, high = paired_interval(b, c, n)
                covered += p * (low <= gained - lost <= high)
    assert 0.935 < covered < 0.998


@given(cells, st.floats(0.005, 0.3))
def test_verdict_is_what_the_bounds_and_the_p_value_say(counts, margin):
    lost, gained, _ = counts
    pairs = sum(counts)
    low, high = paired_interval(lost, gained, pairs)
    result = non_inferiority(lost, gained, pairs, margin)
    assume(abs(low + margin) > 1e-9)
    assert (result.verdict == 'non-inferior') == (low > -margin) == (result.p_value < 0.025)
    assert (result.verdict == 'inferior') == (high < -margin)
    assert result.ruled_out == -low


def test_few_pairs_decide_nothing_and_many_without_a_loss_do():
    assert non_inferiority(2, 1, 110, margin=0.01).verdict == 'undecided'
    assert non_inferiority(0, 0, 380, margin=0.01).verdict == 'undecided'
    assert non_inferiority(0, 0, 381, margin=0.01).verdict == 'non-inferior'
    assert non_inferiority(40, 2, 200, margin=0.01).verdict == 'inferior'


def test_pairs_needed_without_discordant_pairs_are_those_that_the_interval_asks_for():
    needed = pairs_needed(0.01, discordant_rate=0.0)
    assert needed == 381
    assert non_inferiority(0, 0, needed, 0.01).verdict == 'non-inferior'
    assert non_inferiority(0, 0, needed - 1, 0.01).verdict == 'undecided'


@pytest.mark.parametrize(
    ('margin', 'discordant', 'difference'), [(0.1, 0.1, 0.0), (0.1, 0.2, 0.02), (0.15, 0.2, -0.03)]
)
def test_pairs_needed_give_the_power_that_they_promise(margin, discordant, difference):
    # Exact power by enumeration of all tables; Nam's formula is asymptotic.
    n = pairs_needed(margin, discordant, difference)
    gained, lost = (discordant + difference) / 2, (discordant - difference) / 2
    power = 0.0
    for b in range(n + 1):
        for c in range(n + 1 - b):
            p = multinomial.pmf([b, c, n - b - c], n, [lost, gained, 1 - discordant])
            if p > 1e-6:
                power += p * (non_inferiority(b, c, n, margin).verdict == 'non-inferior')
    assert power == pytest.approx(0.8, abs=0.05)


@given(st.floats(0.01, 0.2), st.floats(0.0, 0.5), st.floats(0.55, 0.95))
def test_more_pairs_are_needed_for_less_margin_more_discordance_and_more_power(
    margin, discordant, power
):
    needed = pairs_needed(margin, discordant, power=power)
    assert pairs_needed(margin / 2, discordant, power=power) >= needed
    assert pairs_needed(margin, discordant + 0.1, power=power) >= needed
    assert pairs_needed(margin, discordant, power=power + 0.04) >= needed


def test_what_no_number_of_pairs_can_show_is_refused():
    with pytest.raises(ConfigError, match='no number of pairs'):
        pairs_needed(0.01, 0.1, difference=-0.02)
    with pytest.raises(ConfigError, match='discordant rate'):
        pairs_needed(0.01, 0.01, difference=0.05)
    with pytest.raises(ConfigError, match='margin'):
        non_inferiority(0, 0, 10, margin=1.0)
    with pytest.raises(ConfigError, match='at least one pair'):
        paired_interval(0, 0, 0)


def test_bootstrap_matches_the_normal_interval_of_a_large_sample():
    values = np.random.default_rng(0).normal(3.0, 2.0, size=400)
    low, high = bootstrap_mean_interval(values.tolist())
    half_width = 1.96 * values.std() / 20
    assert low == pytest.approx(values.mean() - half_width, abs=0.03)
    assert high == pytest.approx(values.mean() + half_width, abs=0.03)


def test_differences_between_strata_are_no_chance():
    values = [0.0] * 20 + [1.0] * 20
    easy_and_hard = ['hard'] * 20 + ['easy'] * 20
    assert bootstrap_mean_interval(values, strata=easy_and_hard) == (0.5, 0.5)
    low, high = bootstrap_mean_interval(values)
    assert high - low > 0.25


def test_small_strata_keep_their_variance():
    # Three values per stratum: drawing three of them would make the interval a fifth too narrow.
    rng = np.random.default_rng(1)
    values = rng.normal(0.0, 1.0, size=600)
    low, high = bootstrap_mean_interval(values.tolist(), strata=[i // 3 for i in range(600)])
    assert high - low == pytest.approx(2 * 1.96 / np.sqrt(600), rel=0.08)


def test_strata_of_one_value_are_pooled():
    values = [0.0, 1.0, 0.0, 1.0]
    low, high = bootstrap_mean_interval(values, strata=list('abcd'))
    assert low < 0.5 < high
    with pytest.raises(ConfigError, match='4 values need as many strata'):
        bootstrap_mean_interval(values, strata=['a'])


def test_quantiles_of_a_known_sample():
    q = quantiles([float(i) for i in range(101)])
    assert (q.count, q.p50, q.p95, q.p99, q.max) == (101, 50.0, 95.0, 99.0, 100.0)
    with pytest.raises(ConfigError):
        quantiles([])
