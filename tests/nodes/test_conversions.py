"""States, chunks and stamps, there and back."""

import numpy as np
import pytest
from geometry_msgs.msg import PoseStamped
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from sensor_msgs.msg import JointState

from vla_cache_ros.core.errors import ObservationError
from vla_cache_ros.nodes.conversions import (
    actions_to_trajectory,
    ns_to_stamp,
    stamp_to_ns,
    to_proprioception,
    trajectory_to_actions,
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


@given(
    npst.arrays(
        np.float32,
        st.tuples(st.integers(0, 9), st.just(7)),
        elements=st.floats(width=32, allow_nan=True, allow_infinity=True),
    )
)
def test_actions_there_and_back_whatever_they_hold(actions):
    message = actions_to_trajectory(actions, 12, 20.0)
    np.testing.assert_array_equal(trajectory_to_actions(message), actions)
    assert stamp_to_ns(message.header.stamp) == 12


def test_actions_are_due_one_period_after_another():
    message = actions_to_trajectory(np.zeros((25, 7), np.float32), 0, 20.0)
    due_ns = [stamp_to_ns(point.time_from_start) for point in message.points]
    assert due_ns == [50_000_000 * index for index in range(25)]


def test_trajectory_of_other_joints_is_refused():
    message = actions_to_trajectory(np.zeros((1, 7), np.float32), 0)
    message.joint_names = [f'panda_joint{index}' for index in range(1, 8)]
    with pytest.raises(ObservationError, match='valid: ee_x'):
        trajectory_to_actions(message)


def test_point_of_wrong_length_is_refused():
    message = actions_to_trajectory(np.zeros((2, 7), np.float32), 0)
    message.points[1].positions = [0.0] * 6
    with pytest.raises(ObservationError, match='action 1 holds 6'):
        trajectory_to_actions(message)
