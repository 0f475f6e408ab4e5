"""What is committed for an observation begins at its stamp and lasts as long as the inference."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from vla_cache_ros.core.commitment import committed_actions

PERIOD_NS = 50


def numbered(count: int) -> np.ndarray:
    return np.repeat(np.arange(count, dtype=np.float32)[:, None], 7, axis=1)


@given(st.integers(0, 20), st.integers(-500, 1500), st.integers(0, 1000))
def test_the_first_is_due_with_the_observation_and_the_last_ends_with_the_inference(
    count, offset_ns, expected_ns
):
    chosen = committed_actions(numbered(count), 10_000, PERIOD_NS, 10_000 + offset_ns, expected_ns)
    if chosen is None:
        assert (
            offset_ns < -PERIOD_NS / 2 or round(offset_ns / PERIOD_NS) >= count or expected_ns == 0
        )
        return
    first = int(chosen[0, 0])
    assert abs(first * PERIOD_NS - offset_ns) <= PERIOD_NS / 2
    assert np.array_equal(chosen, numbered(count)[first : first + len(chosen)])
    assert (len(chosen) - 1) * PERIOD_NS < expected_ns
    reaches = len(chosen) * PERIOD_NS >= expected_ns
    assert reaches or first + len(chosen) == count


def test_nothing_is_committed_from_numbers_that_are_none():
    actions = numbered(4)
    actions[1, 3] = np.nan
    assert committed_actions(actions, 0, PERIOD_NS, 0, 100) is None
    assert committed_actions(actions, 0, PERIOD_NS, 0, 50) is not None
