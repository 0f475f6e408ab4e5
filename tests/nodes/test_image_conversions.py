"""Images of every encoding with known pixels, there and back; every bad image by name."""

import array

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from sensor_msgs.msg import CompressedImage, Image

from vla_cache_ros.core.errors import ObservationError
from vla_cache_ros.nodes.conversions import ns_to_stamp
from vla_cache_ros.nodes.image_conversions import (
    ENCODINGS,
    compressed_to_rgb,
    image_to_rgb,
    rgb_to_compressed,
    rgb_to_image,
)

pytestmark = pytest.mark.ros

RGB = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
GREY = np.repeat(RGB[..., :1], 3, axis=2)
RED, GREEN, BLUE = (250, 0, 0), (0, 250, 0), (0, 0, 250)

# Y, U, V of the primary colours (BT.601, 16 to 235), by hand.
YUV = {RED: (82, 90, 240), GREEN: (145, 54, 34), BLUE: (41, 240, 110)}

rgb_images = npst.arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9), st.just(3)))


def message_of(rows: np.ndarray, encoding: str, width: int, padding: int = 0) -> Image:
    """Build a message from rows of bytes, with `padding` unused bytes after each."""
    padded = np.pad(rows, ((0, 0), (0, padding)), constant_values=77)
    return Image(
        height=len(rows),
        width=width,
        encoding=encoding,
        step=padded.shape[1],
        data=array.array('B', padded.tobytes()),
    )


def encode(rgb: np.ndarray, encoding: str, padding: int = 0) -> Image:
    """Build a message by hand in one of the encodings that lose nothing (grey: red alone)."""
    alpha = np.full((*rgb.shape[:2], 1), 255, np.uint8)
    red = rgb[..., 0]
    pixels = {
        'rgb8': rgb,
        'bgr8': rgb[..., ::-1],
        '8UC3': rgb[..., ::-1],
        'rgba8': np.concatenate((rgb, alpha), axis=2),
        'bgra8': np.concatenate((rgb[..., ::-1], alpha), axis=2),
        'mono8': red,
        '8UC1': red,
        'mono16': (257 * red.astype(np.uint16)).view(np.uint8),
    }[encoding]
    return message_of(pixels.reshape(len(pixels), -1), encoding, rgb.shape[1], padding)


def encode_yuv(colours: list[tuple[int, int, int]], encoding: str, padding: int) -> Image:
    """Two rows of pairs of equal pixels, one pair per colour."""
    row = []
    for y, u, v in (YUV[colour] for colour in colours):
        row += [u, y, v, y] if encoding in ('yuv422', 'uyvy') else [y, u, y, v]
    return message_of(np.array([row, row], np.uint8), encoding, 2 * len(colours), padding)


COLOUR = ('rgb8', 'bgr8', 'rgba8', 'bgra8', '8UC3')
GREYS = ('mono8', '8UC1', 'mono16')
YUVS = ('yuv422', 'uyvy', 'yuv422_yuy2', 'yuyv')
BAYERS = ('bayer_rggb8', 'bayer_bggr8', 'bayer_gbrg8', 'bayer_grbg8')


def test_every_valid_encoding_is_covered_here():
    assert set(ENCODINGS) == {*COLOUR, *GREYS, *YUVS, *BAYERS}


@pytest.mark.parametrize('padding', [0, 5])
@pytest.mark.parametrize('encoding', COLOUR)
def test_every_colour_encoding_gives_rgb(encoding, padding):
    np.testing.assert_array_equal(image_to_rgb(encode(RGB, encoding, padding)), RGB)


@pytest.mark.parametrize('padding', [0, 3])
@pytest.mark.parametrize('encoding', GREYS)
def test_grey_is_repeated_over_the_channels(encoding, padding):
    np.testing.assert_array_equal(image_to_rgb(encode(RGB, encoding, padding)), GREY)


@pytest.mark.parametrize('big', [False, True])
def test_mono16_is_scaled_in_either_byte_order(big):
    values = np.array([[0, 128, 129, 257, 32768, 65535]], '>u2' if big else '<u2')
    message = message_of(values.view(np.uint8), 'mono16', 6)
    message.is_bigendian = big
    np.testing.assert_array_equal(image_to_rgb(message)[0, :, 1], [0, 0, 1, 1, 128, 255])


@pytest.mark.parametrize('padding', [0, 3])
@pytest.mark.parametrize('encoding', YUVS)
def test_yuv_gives_the_primary_colours(encoding, padding):
    pixels = image_to_rgb(encode_yuv([RED, GREEN, BLUE], encoding, padding)).astype(int)
    assert pixels.shape == (2, 6, 3)
    expected = np.repeat([RED, GREEN, BLUE], 2, axis=0)
    np.testing.assert_allclose(pixels, [expected, expected], atol=8)


@pytest.mark.parametrize('padding', [0, 3])
@pytest.mark.parametrize('colour', [RED, GREEN, BLUE])
@pytest.mark.parametrize('encoding', BAYERS)
def test_bayer_gives_the_colour_that_its_filters_let_through(encoding, colour, padding):
    filters = encoding.removeprefix('bayer_').removesuffix('8')
    seen = [colour['rgb'.index(name)] for name in filters]
    mosaic = np.tile(np.array(seen, np.uint8).reshape(2, 2), (4, 4))
    pixels = image_to_rgb(message_of(mosaic, encoding, 8, padding))
    np.testing.assert_array_equal(pixels, np.broadcast_to(colour, (8, 8, 3)))


@pytest.mark.parametrize('padding', [0, 2])
@pytest.mark.parametrize('encoding', ['rgb8', 'rgba8'])
def test_rgb_is_read_in_place(encoding, padding):
    message = encode(RGB, encoding, padding)
    pixels = image_to_rgb(message)
    assert np.shares_memory(pixels, np.frombuffer(message.data, np.uint8))
    message.data[0] = 200
    assert pixels[0, 0, 0] == 200


@pytest.mark.parametrize('encoding', sorted({*COLOUR, *GREYS}))
def test_last_row_needs_no_padding(encoding):
    message = encode(RGB, encoding, padding=4)
    message.data = message.data[:-4]
    expected = RGB if encoding in COLOUR else GREY
    np.testing.assert_array_equal(image_to_rgb(message), expected)


@given(rgb_images, st.sampled_from([*COLOUR, *GREYS]), st.integers(0, 9))
def test_every_size_and_step_gives_the_same_pixels(rgb, encoding, padding):
    expected = rgb if encoding in COLOUR else np.repeat(rgb[..., :1], 3, axis=2)
    np.testing.assert_array_equal(image_to_rgb(encode(rgb, encoding, padding)), expected)


@pytest.mark.parametrize(
    ('changes', 'named'),
    [
        ({'encoding': '16UC1'}, 'rgb8, bgr8, rgba8, bgra8, mono8'),
        ({'encoding': ''}, 'rgb8, bgr8'),
        ({'height': 0}, 'at least 1x1'),
        ({'width': 0}, 'at least 1x1'),
        ({'step': 17}, '= 18 bytes'),
        ({'height': 9}, '= 9 x 18'),
        ({'data': array.array('B')}, 'hold 0 bytes'),
        ({'encoding': 'yuv422', 'width': 5}, 'even number'),
        ({'encoding': 'bayer_rggb8', 'height': 2}, 'at least 3x3'),
    ],
)
def test_bad_image_is_refused_and_told_what_is_valid(changes, named):
    message = encode(RGB, 'rgb8')
    for name, value in changes.items():
        setattr(message, name, value)
    with pytest.raises(ObservationError, match=named):
        image_to_rgb(message)


@given(rgb_images)
def test_image_there_and_back(pixels):
    message = rgb_to_image(pixels, ns_to_stamp(5), 'camera')
    np.testing.assert_array_equal(image_to_rgb(message), pixels)
    assert message.header.frame_id == 'camera'


def test_image_of_a_flipped_view_there_and_back():
    flipped = RGB[::-1]
    message = rgb_to_image(flipped, ns_to_stamp(0), '')
    np.testing.assert_array_equal(image_to_rgb(message), flipped)


@pytest.mark.parametrize(
    'pixels', [RGB.astype(np.float32), RGB[..., 0], RGB[..., :2], np.empty((0, 3, 3), np.uint8)]
)
@pytest.mark.parametrize('build', [rgb_to_image, rgb_to_compressed])
def test_array_that_is_no_image_is_refused(pixels, build):
    with pytest.raises(ObservationError, match='valid: uint8'):
        build(pixels, ns_to_stamp(0), '')


@given(rgb_images)
def test_png_there_and_back(pixels):
    message = rgb_to_compressed(pixels, ns_to_stamp(5), 'camera', 'png')
    np.testing.assert_array_equal(compressed_to_rgb(message), pixels)
    assert message.header.frame_id == 'camera'
    assert message.header.stamp.nanosec == 5


@pytest.mark.parametrize('name', ['jpeg', 'webp'])
def test_lossy_there_and_back_keeps_the_colours(name):
    pixels = np.broadcast_to(np.array([200, 100, 20], np.uint8), (16, 24, 3))
    message = rgb_to_compressed(pixels, ns_to_stamp(0), '', name, quality=95)
    assert message.format == f'rgb8; {name} compressed bgr8'
    np.testing.assert_allclose(compressed_to_rgb(message).astype(int), pixels, atol=4)


@pytest.mark.parametrize(
    ('written', 'format_text'),
    [
        ('bgr8', 'jpeg'),
        ('bgr8', 'png'),
        ('bgr8', 'rgb8; jpeg compressed bgr8'),
        ('bgr8', 'bgr8; png compressed bgr8'),
        ('rgb8', 'rgb8; png compressed rgb8'),
    ],
)
def test_format_strings_of_image_transport(written, format_text):
    """The encoder takes what it is handed for BGR; the format says what it was handed."""
    handed_over = RGB[..., ::-1] if written == 'bgr8' else RGB
    packed = cv2.imencode('.png', handed_over)[1].tobytes()
    message = CompressedImage(format=format_text, data=array.array('B', packed))
    np.testing.assert_array_equal(compressed_to_rgb(message), RGB)


def test_depth_is_refused_by_name():
    packed = cv2.imencode('.png', np.ones((4, 4), np.uint16))[1].tobytes()
    message = CompressedImage(format='16UC1; compressedDepth png', data=array.array('B', packed))
    with pytest.raises(ObservationError, match='holds depth'):
        compressed_to_rgb(message)


def test_largest_picture_may_be_chosen():
    message = rgb_to_compressed(RGB, ns_to_stamp(0), '', 'png')
    assert compressed_to_rgb(message, max_pixels=24).shape == RGB.shape
    with pytest.raises(ObservationError, match='6x4 pixels; valid: 1 to 23'):
        compressed_to_rgb(message, max_pixels=23)
