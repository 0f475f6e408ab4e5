"""Images, there and back; every bad image by name."""

import array

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from sensor_msgs.msg import Image

from vla_cache_ros.core.errors import ObservationError
from vla_cache_ros.nodes.conversions import ns_to_stamp
from vla_cache_ros.nodes.image_conversions import CHANNELS, image_to_rgb, rgb_to_image

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
