"""Messages with arbitrary fields: an array of the right shape or an ObservationError, cheaply."""

import array
import contextlib
import math

import numpy as np
import pytest
from geometry_msgs.msg import PoseStamped
from hypothesis import given, settings
from hypothesis import strategies as st
from sensor_msgs.msg import CompressedImage, Image
from vla_cache_interfaces.msg import ActionChunk, GuardStatus, ShadowReport

from tests.fuzz.damage import damaged_bytes
from vla_cache_ros.core.errors import ObservationError
from vla_cache_ros.core.gripper import GripperMap
from vla_cache_ros.nodes.chunk_messages import AXES, message_to_chunk, message_to_command
from vla_cache_ros.nodes.conversions import to_proprioception
from vla_cache_ros.nodes.image_conversions import ENCODINGS, compressed_to_rgb, image_to_rgb
from vla_cache_ros.nodes.image_files import FORMATS, encode_image
from vla_cache_ros.nodes.report_messages import message_to_guard, message_to_shadow

pytestmark = pytest.mark.ros

UINT32 = st.integers(0, 2**32 - 1)
sizes = (
    st.integers(0, 12) | st.sampled_from([0, 1, 2, 2**16, 2**31 - 1, 2**31, 2**32 - 1]) | UINT32
)
encodings = st.sampled_from([*ENCODINGS, '16UC1', '32FC1', 'RGB8', 'nv12', '']) | st.text(
    max_size=9
)
numbers = st.floats(allow_nan=True, allow_infinity=True)
PICTURES = {name: encode_image(np.zeros((9, 7, 3), np.uint8), name) for name in FORMATS}


@st.composite
def images(draw: st.DrawFn) -> Image:
    """Any header; half of them with data that nearly fit."""
    height, width, step = draw(sizes), draw(sizes), draw(sizes)
    length = draw(st.integers(0, 300))
    if draw(st.booleans()) and height * step < 4000:
        length = max(0, height * step + draw(st.integers(-9, 9)))
    message = Image(height=height, width=width, step=step, is_bigendian=draw(st.integers(0, 255)))
    message.encoding = draw(encodings)
    message.data = array.array('B', bytes(length))
    return message


@settings(max_examples=200)
@given(images())
def test_any_image_gives_its_array_or_is_refused(message):
    try:
        pixels = image_to_rgb(message)
    except ObservationError as error:
        assert 'valid' in str(error)  # noqa: PT017  # the other outcome is valid, too
        return
    assert pixels.shape == (message.height, message.width, 3)
    assert pixels.dtype == np.uint8
    assert pixels.size <= 3 * len(message.data)  # nothing is larger than what was sent
    assert pixels.max() <= 255  # every pixel may be read


@settings(max_examples=100)
@given(
    st.one_of(*(damaged_bytes(whole) for whole in PICTURES.values())),
    st.sampled_from(['', 'jpeg', 'rgb8; jpeg compressed bgr8', '16UC1; compressedDepth'])
    | st.text(max_size=30),
)
def test_any_compressed_image_gives_an_array_or_is_refused(data, format_text):
    message = CompressedImage(format=format_text, data=array.array('B', data))
    with contextlib.suppress(ObservationError):
        pixels = compressed_to_rgb(message, max_pixels=1 << 16)
        assert pixels.dtype == np.uint8
        assert pixels.shape[2] == 3


@given(st.lists(numbers, min_size=9, max_size=9))
def test_any_state_is_finite_or_refused(values):
    pose = PoseStamped()
    point, orientation = pose.pose.position, pose.pose.orientation
    point.x, point.y, point.z = values[:3]
    orientation.x, orientation.y, orientation.z, orientation.w = values[3:7]
    joints: dict[str, float] = dict(zip(('left', 'right'), values[7:], strict=True))
    with np.errstate(over='ignore'), contextlib.suppress(ObservationError):
        arm = to_proprioception(joints, pose, GripperMap(('left', 'right')))
        assert np.isfinite(arm.ee_position_m).all()
        assert np.isfinite(arm.gripper_position_m).all()


@given(
    st.just(list(AXES)) | st.lists(st.text(max_size=4), max_size=9),
    st.lists(st.floats(width=32), max_size=22) | st.just([0.5] * 14),
    numbers,
    st.integers(0, 2**16 - 1) | st.integers(0, 3),
    st.text(max_size=9),
)
def test_any_chunk_is_whole_or_refused(axes, actions, rate_hz, prefix_steps, instruction):
    message = ActionChunk(axes=axes, actions=actions, control_frequency_hz=rate_hz)
    message.prefix_steps, message.instruction = prefix_steps, instruction
    with contextlib.suppress(ObservationError):
        chunk = message_to_chunk(message)
        assert chunk.actions.shape == (len(actions) // 7, 7)
        assert chunk.prefix_steps <= len(chunk.actions)
    with contextlib.suppress(ObservationError):
        assert np.isfinite(message_to_command(message)).all()


@given(
    st.lists(st.floats(width=32), min_size=7, max_size=7),
    st.integers(-(2**31), 2**31 - 1),
    st.integers(-(2**63), 2**63 - 1),
    st.sampled_from(['nominal', 'hold']) | st.text(max_size=9),
    st.lists(st.text(max_size=4), max_size=300),
)
def test_any_status_of_the_guard_is_sound_or_refused(action, index, at_ns, word, reasons):
    message = GuardStatus(action=action, index=index, published_ns=at_ns, degradation=word)
    message.reasons = reasons
    with contextlib.suppress(ObservationError):
        assert np.isfinite(message_to_guard(message).action).all()


@given(st.lists(numbers, min_size=6, max_size=6))
def test_any_shadow_report_is_sound_or_refused(values):
    names = ('mean_difference', 'max_difference', 'alarm_budget', 'off_budget')
    message = ShadowReport(**dict(zip(names, values, strict=False)))
    message.dense_ms, message.cached_ms = values[4:]
    with contextlib.suppress(ObservationError):
        result = message_to_shadow(message)
        assert all(math.isfinite(getattr(result, name)) for name in names)
