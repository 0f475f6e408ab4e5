"""Images, states, chunks and stamps, there and back; every bad image by name."""

import array

import numpy as np
import pytest
from geometry_msgs.msg import PoseStamped
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from sensor_msgs.msg import Image, JointState

from vla_cache_ros.core.errors import ObservationError
from vla_cache_ros.nodes.conversions import (
    CHANNELS,
    actions_to_trajectory,
    image_to_rgb,
    ns_to_stamp,
    rgb_to_image,
    stamp_to_ns,
    to_proprioception,
    trajectory_to_actions,
)

pytestmark = pytest.mark.ros

RGB = np.arange(4 * 5 * 3, dtype=np.uint8).reshape(4, 5, 3)


def encode(rgb: np.ndarray, encoding: str, padding: int = 0) -> Image:
    """Build a message by hand, with `padding` unused bytes after each row."""
    alpha = np.full((*rgb.shape[:2], 1), 255, np.uint8)
    pixels = {
        'rgb8': rgb,
        'bgr8': rgb[..., ::-1],
        'rgba8': np.concatenate((rgb, alpha), axis=2),
        'bgra8': np.concatenate((rgb[..., ::-1], alpha), axis=2),
        'mono8': rgb[..., :1],
    }[encoding]
    rows = pixels.reshape(len(pixels), -1)
    padded = np.pad(rows, ((0, 0), (0, padding)), constant_values=77)
    return Image(
        height=rgb.shape[0],
        width=rgb.shape[1],
        encoding=encoding,
        step=padded.shape[1],
        data=array.array('B', padded.tobytes()),
    )


@pytest.mark.parametrize('padding', [0, 5])
@pytest.mark.parametrize('encoding', ['rgb8', 'bgr8', 'rgba8', 'bgra8'])
def test_every_colour_encoding_gives_rgb(encoding, padding):
    np.testing.assert_array_equal(image_to_rgb(encode(RGB, encoding, padding)), RGB)


@pytest.mark.parametrize('padding', [0, 3])
def test_mono_is_repeated_over_the_channels(padding):
    expected = np.repeat(RGB[..., :1], 3, axis=2)
    np.testing.assert_array_equal(image_to_rgb(encode(RGB, 'mono8', padding)), expected)


def test_every_declared_encoding_is_covered_here():
    assert set(CHANNELS) == {'rgb8', 'bgr8', 'rgba8', 'bgra8', 'mono8'}


@pytest.mark.parametrize('encoding', ['rgb8', 'rgba8'])
def test_rgb_is_read_in_place(encoding):
    message = encode(RGB, encoding, padding=2)
    pixels = image_to_rgb(message)
    message.data[0] = 200
    assert pixels[0, 0, 0] == 200


def test_last_row_needs_no_padding():
    message = encode(RGB, 'rgb8', padding=4)
    message.data = message.data[:-4]
    np.testing.assert_array_equal(image_to_rgb(message), RGB)


@pytest.mark.parametrize(
    ('changes', 'named'),
    [
        ({'encoding': '16UC1'}, 'rgb8, bgr8, rgba8, bgra8, mono8'),
        ({'encoding': ''}, 'rgb8, bgr8'),
        ({'height': 0}, 'at least 1x1'),
        ({'width': 0}, 'at least 1x1'),
        ({'step': 14}, '= 15 bytes'),
        ({'height': 9}, '= 9 x 15'),
        ({'data': array.array('B')}, 'hold 0 bytes'),
    ],
)
def test_bad_image_is_refused_and_told_what_is_valid(changes, named):
    message = encode(RGB, 'rgb8')
    for name, value in changes.items():
        setattr(message, name, value)
    with pytest.raises(ObservationError, match=named):
        image_to_rgb(message)


@given(npst.arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9), st.just(3))))
def test_image_there_and_back(pixels):
    message = rgb_to_image(pixels, ns_to_stamp(5), 'camera')
    np.testing.assert_array_equal(image_to_rgb(message), pixels)
    assert message.header.frame_id == 'camera'


def test_image_of_a_flipped_view_there_and_back():
    flipped = RGB[::-1]
    message = rgb_to_image(flipped, ns_to_stamp(0), '')
    np.testing.assert_array_equal(image_to_rgb(message), flipped)


@pytest.mark.parametrize('pixels', [RGB.astype(np.float32), RGB[..., 0], RGB[..., :2]])
def test_array_that_is_no_image_is_refused(pixels):
    with pytest.raises(ObservationError, match='valid: uint8'):
        rgb_to_image(pixels, ns_to_stamp(0), '')


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
