"""The adaptive ensemble against its formula and its invariants."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from vla_cache_models.prismatic.action_ensemble import AdaptiveEnsemble, ensemble_weights
from vla_cache_ros.core.errors import ConfigError

chunk_counts = st.integers(1, 9)
horizons = st.integers(1, 8)
alphas = st.floats(0, 20)
seeds = st.integers(0, 10_000)


def make_chunks(count: int, seed: int, size: int = 8) -> list[NDArray[np.float64]]:
    """Random chunks [size, 7]."""
    return list(np.random.default_rng(seed).normal(size=(count, size, 7)))


def expected_action(chunks: list[NDArray], horizon: int, alpha: float) -> NDArray[np.float64]:
    """The formula with plain sums; chunks oldest first."""
    newest = chunks[-1][0]
    total, action = 0.0, np.zeros(7)
    for age in range(min(horizon, len(chunks))):
        prediction = chunks[-1 - age][age]
        lengths = math.sqrt(sum(newest**2)) * math.sqrt(sum(prediction**2))
        weight = math.exp(alpha * sum(newest * prediction) / lengths)
        total, action = total + weight, action + weight * prediction
    return action / total


@given(count=chunk_counts, horizon=horizons, alpha=alphas, seed=seeds)
def test_every_call_equals_the_formula(count: int, horizon: int, alpha: float, seed: int) -> None:
    ensemble = AdaptiveEnsemble(horizon, alpha)
    chunks = make_chunks(count, seed)
    for call, chunk in enumerate(chunks, start=1):
        np.testing.assert_allclose(
            ensemble.combine(chunk), expected_action(chunks[:call], horizon, alpha), atol=1e-5
        )


@given(count=chunk_counts, alpha=st.floats(0, 1e4), seed=seeds)
def test_weights_are_positive_shares_and_newest_has_the_most(
    count: int, alpha: float, seed: int
) -> None:
    weights = ensemble_weights(np.random.default_rng(seed).normal(size=(count, 7)), alpha)
    assert (weights >= 0).all()
    assert weights.sum() == pytest.approx(1)
    assert weights[0] == weights.max()


@given(count=chunk_counts, horizon=horizons, alpha=alphas, seed=seeds)
def test_chunks_that_agree_give_their_own_action(
    count: int, horizon: int, alpha: float, seed: int
) -> None:
    # One trajectory, seen from successive steps: each chunk is it, one step later.
    path = np.random.default_rng(seed).normal(size=(count + 8, 7))
    ensemble = AdaptiveEnsemble(horizon, alpha)
    for step in range(count):
        np.testing.assert_allclose(ensemble.combine(path[step : step + 8]), path[step], atol=1e-12)


@given(count=chunk_counts, alpha=alphas, seed=seeds)
def test_horizon_1_gives_the_newest(count: int, alpha: float, seed: int) -> None:
    ensemble = AdaptiveEnsemble(1, alpha)
    for chunk in make_chunks(count, seed):
        np.testing.assert_allclose(ensemble.combine(chunk), chunk[0], atol=1e-12)


def test_each_chunk_gives_the_row_of_its_age_and_leaves_after_the_horizon() -> None:
    ensemble = AdaptiveEnsemble(3, alpha=0.0)
    rows = 10.0 * np.arange(4)[:, None, None] + np.arange(5)[:, None] + np.ones(7)
    actions = [ensemble.combine(chunk)[0] for chunk in rows]
    # Chunk c predicts 10 c + row + 1: rows 0; 0, 1; 0, 1, 2; and then chunk 0 has left.
    assert actions == pytest.approx([1, (11 + 2) / 2, (21 + 12 + 3) / 3, (31 + 22 + 13) / 3])


def test_agreement_with_the_newest_raises_the_weight() -> None:
    newest = np.eye(7)[0]
    weights = ensemble_weights(np.stack([newest, newest, -newest, np.eye(7)[1]]), 0.1)
    assert weights[0] == weights[1]
    assert weights[1] / weights[3] == pytest.approx(math.exp(0.1), rel=1e-6)
    assert weights[3] / weights[2] == pytest.approx(math.exp(0.1), rel=1e-6)


def test_zero_actions_do_not_divide_by_zero() -> None:
    ensemble = AdaptiveEnsemble(2)
    ensemble.combine(np.zeros((4, 7)))
    np.testing.assert_array_equal(ensemble.combine(np.zeros((4, 7))), np.zeros(7))


def test_reset_forgets() -> None:
    ensemble = AdaptiveEnsemble(4)
    first, second = make_chunks(2, seed=0)
    ensemble.combine(first)
    ensemble.reset()
    np.testing.assert_allclose(ensemble.combine(second), second[0], atol=1e-12)


def test_chunk_is_copied_and_its_type_kept() -> None:
    ensemble = AdaptiveEnsemble(2, alpha=0.0)
    buffer = np.ones((4, 7), dtype=np.float32)
    ensemble.combine(buffer)
    buffer[:] = 3
    action = ensemble.combine(buffer)
    assert action.dtype == np.float32
    assert action == pytest.approx(np.full(7, 2.0))


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ({'horizon': 0}, 'horizon of the ensemble is 0; valid: at least 1'),
        ({'horizon': 2, 'alpha': -0.1}, 'alpha of the ensemble is -0.1'),
        ({'horizon': 2, 'alpha': float('nan')}, 'finite'),
        ({'horizon': 2, 'execute_steps': 4}, 'execute_steps is 4; valid: 1'),
    ],
)
def test_wrong_settings_are_refused(arguments: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        AdaptiveEnsemble(**arguments)


@pytest.mark.parametrize('shape', [(3, 7), (7,), (1, 16, 7)])
def test_chunk_that_does_not_reach_the_horizon_is_refused_at_once(shape: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match='T >= 4'):
        AdaptiveEnsemble(4).combine(np.zeros(shape))
