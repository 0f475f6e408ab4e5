"""States and stamps, there and back."""

import numpy as np
import pytest
from geometry_msgs.msg import PoseStamped
from hypothesis import given
from hypothesis import strategies as st
from sensor_msgs.msg import JointState

from vla_cache_ros.core.errors import ObservationError
from vla_cache_ros.nodes.conversions import (
    ns_to_stamp,
    stamp_to_ns,
    to_proprioception,
)

pytestmark = pytest.mark.ros


@given(st.integers(0, 2**31 * 1_000_000_000 - 1))
def test_stamp_there_and_back(stamp_ns):
    assert stamp_to_ns(ns_to_stamp(stamp_ns)) == stamp_ns


def state(**changes):
    joints = JointState(name=['arm', 'left', 'right'], position=[9.0, 0.04, -0.04])
    pose = PoseStamped()
    pose.pose.position.x, pose.pose.orientation.w = 0.5, 1.0
    if 'position' in changes:
        joints.position = changes['position']
    if 'x' in changes:
        pose.pose.position.x = changes['x']
    return joints, pose


def test_proprioception_is_read_by_joint_name():
    arm = to_proprioception(*state(), ('right', 'left'))
    np.testing.assert_allclose(arm.gripper_position_m, [-0.04, 0.04])
    np.testing.assert_allclose(arm.ee_position_m, [0.5, 0, 0])
    np.testing.assert_allclose(arm.ee_quaternion_xyzw, [0, 0, 0, 1])


@pytest.mark.parametrize(
    ('changes', 'named'),
    [
        ({'x': float('nan')}, 'ee_position_m'),
        ({'position': [9.0, float('inf'), 0.0]}, 'gripper_position_m'),
        ({'position': [9.0, 0.04]}, 'they hold: arm, left'),
    ],
)
def test_bad_state_is_refused_by_name(changes, named):
    with pytest.raises(ObservationError, match=named):
        to_proprioception(*state(**changes), ('left', 'right'))
