"""A robot's gripper, open or closed, is the trained one's, open or closed."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vla_cache_ros.core.errors import ConfigError
from vla_cache_ros.core.gripper import TRAINED_CLOSED_M, TRAINED_OPEN_M, GripperMap

POSITIONS = st.floats(-2, 2).map(lambda value: round(value, 3))


@given(POSITIONS, POSITIONS, POSITIONS, POSITIONS, st.booleans())
def test_open_is_open_closed_is_closed_and_half_is_half(open_0, closed_0, open_1, closed_1, both):
    if open_0 == closed_0 or open_1 == closed_1:
        return
    names = ('left', 'right') if both else ('finger',)
    opened = (open_0, open_1)[: len(names)]
    closed = (closed_0, closed_1)[: len(names)]
    gripper = GripperMap(names, opened, closed)
    half = [(a + b) / 2 for a, b in zip(opened, closed, strict=True)]
    np.testing.assert_allclose(gripper.fingers(opened), TRAINED_OPEN_M, atol=1e-6)
    np.testing.assert_allclose(gripper.fingers(closed), TRAINED_CLOSED_M, atol=1e-6)
    np.testing.assert_allclose(gripper.fingers(half), np.array(TRAINED_OPEN_M) / 2, atol=1e-6)


@given(st.floats(-0.05, 0.05), st.floats(-0.05, 0.05))
def test_the_trained_gripper_passes_bit_for_bit(left, right):
    fingers = GripperMap(('left', 'right')).fingers([left, right])
    assert np.array_equal(fingers, np.array([left, right], np.float32))


@pytest.mark.parametrize(
    ('names', 'opened', 'closed', 'message'),
    [
        ((), (), (), 'gripper_joint_names'),
        (('a', 'a'), (1.0, 1.0), (0.0, 0.0), 'gripper_joint_names'),
        (('a', 'b', 'c'), (1.0,) * 3, (0.0,) * 3, 'gripper_joint_names'),
        (('a',), (1.0, 1.0), (0.0,), 'one for each of a'),
        (('a',), (0.5,), (0.5,), 'different'),
        (('a',), (float('nan'),), (0.5,), 'finite'),
    ],
)
def test_a_gripper_that_cannot_be_mapped_is_refused(names, opened, closed, message):
    with pytest.raises(ConfigError, match=message):
        GripperMap(names, opened, closed)
