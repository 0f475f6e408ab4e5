"""Statistics of the training data: reading, choosing, scaling."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from vla_cache_models.prismatic.norm_stats import (
    Bounds,
    NormStats,
    choose_norm_stats,
    read_norm_stats,
)
from vla_cache_ros.core.errors import CheckpointError, ConfigError, UnknownNameError

MASK = [True] * 6 + [False]


def entry(**changes: Any) -> dict[str, Any]:
    """One dataset as the files have it; changes go into its action."""
    action = {'q01': [-0.5] * 6 + [0.0], 'q99': [0.25] * 6 + [1.0], 'mask': MASK, 'mean': [0] * 7}
    proprioception = {'q01': [-1.0] * 8, 'q99': [3.0] * 8}
    return {'action': action | changes, 'proprio': proprioception, 'num_transitions': 10}


def bounds(size: int = 7, low: float = -0.5, high: float = 0.25) -> Bounds:
    """Equal bounds; the last dimension is masked out."""
    mask = np.arange(size) < size - 1
    return Bounds(np.full(size, low), np.full(size, high), mask)


def stats(*keys: str) -> dict[str, NormStats]:
    """Statistics under some keys."""
    return {key: NormStats(key, bounds(), None) for key in keys}


@st.composite
def random_bounds(draw: st.DrawFn) -> Bounds:
    """Seven dimensions of any width between a micrometre and 2."""
    low = draw(arrays(np.float64, 7, elements=st.floats(-2, 2)))
    span = draw(arrays(np.float64, 7, elements=st.floats(1e-6, 2)))
    return Bounds(low, low + span, draw(arrays(np.bool_, 7)))


@given(random_bounds(), arrays(np.float64, (3, 7), elements=st.floats(0, 1)))
def test_normalising_and_back_is_the_identity_within_the_bounds(
    scale: Bounds, share: np.ndarray
) -> None:
    inside = np.where(scale.mask, scale.q01 + share * (scale.q99 - scale.q01), share)
    np.testing.assert_allclose(scale.denormalise(scale.normalise(inside)), inside, atol=2e-8)


@given(random_bounds(), arrays(np.float64, (3, 7), elements=st.floats(-1, 1)))
def test_denormalised_actions_stay_between_the_quantiles(
    scale: Bounds, actions: np.ndarray
) -> None:
    result = scale.denormalise(actions)
    assert (result >= scale.q01 - 1e-12)[:, scale.mask].all()
    assert (result <= scale.q99 + 1e-12)[:, scale.mask].all()
    np.testing.assert_array_equal(result[:, ~scale.mask], actions[:, ~scale.mask])


@given(random_bounds(), arrays(np.float64, 7, elements=st.floats(-1e6, 1e6)))
def test_normalised_states_are_clipped(scale: Bounds, state: np.ndarray) -> None:
    assert np.abs(scale.normalise(state)).max() <= 1


def test_ends_and_middle_of_the_range() -> None:
    actions = np.array([[-1.0] * 7, [0.0] * 7, [1.0] * 7])
    np.testing.assert_allclose(
        bounds().denormalise(actions)[:, [0, 6]], [[-0.5, -1], [-0.125, 0], [0.25, 1]]
    )
    np.testing.assert_allclose(
        bounds().normalise(np.array([-0.5, -0.125, 0.25, 9.0, -9.0, 0.0, 0.7])),
        [-1, 0, 1, 1, -1, 1 / 3, 0.7],
        atol=1e-6,
    )


@pytest.mark.parametrize('shape', [(2, 6), (8,), ()])
def test_other_lengths_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(CheckpointError, match='vectors of 7 numbers'):
        bounds().denormalise(np.zeros(shape))
    with pytest.raises(CheckpointError, match='vectors of 7 numbers'):
        bounds().normalise(np.zeros(shape))


def test_config_is_read_where_there_is_no_file(tmp_path: Path) -> None:
    read = read_norm_stats({'norm_stats': {'bridge_orig': entry()}}, tmp_path)['bridge_orig']
    assert read.key == 'bridge_orig'
    np.testing.assert_array_equal(read.action.q01, [-0.5] * 6 + [0])
    np.testing.assert_array_equal(read.action.q99, [0.25] * 6 + [1])
    np.testing.assert_array_equal(read.action.mask, MASK)
    assert read.proprioception is not None
    np.testing.assert_array_equal(read.proprioception.q99, [3.0] * 8)
    assert read.proprioception.mask.all()


def test_file_overrides_the_config(tmp_path: Path) -> None:
    tuned = entry()
    del tuned['proprio']
    (tmp_path / 'dataset_statistics.json').write_text(json.dumps({'mine': tuned}))
    read = read_norm_stats({'norm_stats': {'bridge_orig': entry()}}, tmp_path)
    assert list(read) == ['mine']
    assert read['mine'].proprioception is None


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'q01': None}, "'mine', action: field q01 is None"),
        ({'q01': []}, 'field q01'),
        ({'q99': [[1.0] * 7]}, 'field q99'),
        ({'q99': ['x'] * 7}, 'field q99'),
        ({'q99': [float('nan')] * 7}, 'list of finite numbers'),
        ({'q99': [1.0] * 6}, 'q01 has 7 numbers and q99 has 6'),
        ({'q99': [-1.0] * 7}, 'q01 is above q99 in dimension 0'),
        ({'mask': [True] * 6}, 'list of 7 booleans'),
        ({'mask': [1] * 7}, 'list of 7 booleans'),
        ({'mask': 'all'}, 'list of 7 booleans'),
    ],
)
def test_malformed_fields_are_named(tmp_path: Path, changes: dict, message: str) -> None:
    path = tmp_path / 'dataset_statistics.json'
    path.write_text(json.dumps({'mine': entry(**changes)}))
    with pytest.raises(CheckpointError, match=message) as caught:
        read_norm_stats({}, tmp_path)
    assert str(path) in str(caught.value)


def test_statistics_with_min_and_max_alone_are_refused(tmp_path: Path) -> None:
    extremes = {'mine': {'action': {'min': [-1.0] * 7, 'max': [1.0] * 7}}}
    with pytest.raises(CheckpointError, match='q01 is missing; given: min, max'):
        read_norm_stats({'norm_stats': extremes}, tmp_path)


@pytest.mark.parametrize('config', [{}, {'norm_stats': None}, {'norm_stats': {}}])
def test_checkpoint_without_statistics_is_refused(tmp_path: Path, config: dict) -> None:
    with pytest.raises(CheckpointError, match='copy the dataset_statistics.json'):
        read_norm_stats(config, tmp_path)


@pytest.mark.parametrize('broken', [7, {}, {'action': None}])
def test_datasets_without_actions_are_refused(tmp_path: Path, broken: Any) -> None:
    with pytest.raises(CheckpointError, match="'mine': field 'action' is missing"):
        read_norm_stats({'norm_stats': {'mine': broken}}, tmp_path)


def test_proprioception_that_is_no_object_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="field 'proprio' is no object"):
        read_norm_stats({'norm_stats': {'mine': entry() | {'proprio': [1]}}}, tmp_path)


def test_truncated_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / 'dataset_statistics.json').write_text('{"mine": ')
    with pytest.raises(CheckpointError, match='not readable JSON'):
        read_norm_stats({}, tmp_path)


@pytest.mark.parametrize(
    ('known', 'asked', 'chosen'),
    [
        (('a', 'b'), 'b', 'b'),
        (('libero_goal_no_noops', 'b'), 'libero_goal', 'libero_goal_no_noops'),
        (('libero_goal', 'b'), 'libero_goal_no_noops', 'libero_goal'),
        (('x', 'x_no_noops'), 'x', 'x'),
        (('only',), '', 'only'),
    ],
)
def test_keys_are_found_with_and_without_no_noops(
    known: tuple[str, ...], asked: str, chosen: str
) -> None:
    assert choose_norm_stats(stats(*known), asked).key == chosen


def test_unknown_key_lists_the_valid_ones_and_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match=r'bridge_orig, fractal.*Nearest: .bridge_orig'):
        choose_norm_stats(stats('fractal20220817_data', 'bridge_orig'), 'bridge')


def test_empty_key_is_refused_where_there_are_several() -> None:
    with pytest.raises(ConfigError, match='knows 2 datasets.*Valid: a, b'):
        choose_norm_stats(stats('b', 'a'))
