"""Action tokens and the ways to get them wrong unnoticed."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from vla_cache_models.prismatic.action_tokens import ActionTokens
from vla_cache_ros.core.errors import CheckpointError

CODEC = ActionTokens(32064, 64)


@given(arrays(np.float64, (2, 7), elements=st.floats(-1, 1)))
def test_decoded_actions_are_within_half_a_bin(actions: np.ndarray) -> None:
    ids = CODEC.encode(actions)
    np.testing.assert_allclose(CODEC.decode(ids), actions, atol=1 / 255 + 1e-12)
    assert CODEC.num_out_of_range(ids) == 0


@given(st.integers(31744 + 1, 31999))
def test_every_bin_decodes_to_a_number_of_that_bin(token: int) -> None:
    ids = np.array([token])
    np.testing.assert_array_equal(CODEC.encode(CODEC.decode(ids)), ids)


def test_known_ids() -> None:
    centre = 1 / 255
    ids = np.array([31999, 31998, 31872, 31746, 31745, 31744])
    expected = [-1 + centre, -1 + 3 * centre, 0, 1 - 3 * centre, 1 - centre, 1 - centre]
    np.testing.assert_allclose(CODEC.decode(ids), expected, atol=1e-12)
    np.testing.assert_array_equal(CODEC.encode(np.array([-1.0, 0.0, 1.0])), [31999, 31872, 31744])


def test_actions_out_of_range_are_clipped_before_encoding() -> None:
    actions = np.array([-7.0, 7.0])
    np.testing.assert_array_equal(CODEC.encode(actions), CODEC.encode(actions.clip(-1, 1)))


def test_foreign_ids_go_to_the_nearer_end_and_are_counted() -> None:
    ids = np.array([[2, 29871, 31743], [31744, 31999, 32000]])
    high, low = 254 / 255, -254 / 255
    np.testing.assert_allclose(CODEC.decode(ids), [[high] * 3, [high, low, low]])
    assert CODEC.num_out_of_range(ids) == 4


@pytest.mark.parametrize(
    ('rows', 'multiple', 'shift'), [(32000, 64, 64), (32064, 32, 32), (32001, 64, 63)]
)
def test_vocabulary_that_would_shift_every_bin_is_refused(
    rows: int, multiple: int, shift: int
) -> None:
    with pytest.raises(CheckpointError, match=f'read {shift} bins off. Valid'):
        ActionTokens(rows, multiple)


def test_vocabulary_must_be_that_of_the_tokenizer_file() -> None:
    assert ActionTokens(1088, 64, tokenizer_size=1024).base == 1024
    with pytest.raises(CheckpointError, match='the tokenizer has 31999 ids'):
        ActionTokens(32064, 64, tokenizer_size=31999)


@pytest.mark.parametrize('bins', [-1, 1, 32000])
def test_impossible_numbers_of_bins_are_refused(bins: int) -> None:
    with pytest.raises(CheckpointError, match='n_action_bins'):
        ActionTokens(32064, 64, bins)
