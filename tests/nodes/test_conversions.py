"""States and stamps, there and back."""

import numpy as np
import pytest
from geometry_msgs.msg import PoseStamped
from hypothesis import given
from hypothesis import strategies as st

from vla_cache_ros.core.errors import ObservationError
from vla_cache_ros.core.gripper import GripperMap
from vla_cache_ros.nodes.conversions import (
    ns_to_stamp,
    stamp_to_ns,
    to_proprioception,
)

pytestmark = pytest.mark.ros


@given(st.integers(0, 2**31 * 1_000_000_000 - 1))
def test_stamp_there_and_back(stamp_ns):
    assert stamp_to_ns(ns_to_stamp(stamp_ns)) == stamp_ns


FINGERS = GripperMap(('right', 'left'), (-0.04, 0.04), (0.0, 0.0))


def state(x=0.5, left=0.02):
    pose = PoseStamped()
    pose.pose.position.x, pose.pose.orientation.w = x, 1.0
    return {'arm': 9.0, 'left': left, 'right': -0.04}, pose


def test_proprioception_is_read_by_joint_name():
    arm = to_proprioception(*state(), FINGERS)
    np.testing.assert_allclose(arm.gripper_position_m, [0.04, -0.02])
    np.testing.assert_allclose(arm.ee_position_m, [0.5, 0, 0])
    np.testing.assert_allclose(arm.ee_quaternion_xyzw, [0, 0, 0, 1])


@pytest.mark.parametrize(
    ('changes', 'named'),
    [
        ({'x': float('nan')}, 'ee_position_m'),
        ({'left': float('inf')}, 'gripper_position_m'),
    ],
)
def test_bad_state_is_refused_by_name(changes, named):
    with pytest.raises(ObservationError, match=named):
        to_proprioception(*state(**changes), FINGERS)
