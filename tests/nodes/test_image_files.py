"""Pictures in memory: sizes read from headers, bombs and damage refused before unpacking."""

import contextlib
import struct
import zlib

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vla_cache_ros.core.errors import ConfigError, ObservationError
from vla_cache_ros.nodes import image_files
from vla_cache_ros.nodes.image_files import FORMATS, decode_image, encode_image, image_size

PIXELS = np.random.default_rng(0).integers(0, 255, (30, 44, 3), np.uint8)
LOSSLESS_WEBP = cv2.imencode('.webp', PIXELS, (cv2.IMWRITE_WEBP_QUALITY, 101))[1].tobytes()
PACKED = {name: encode_image(PIXELS, name) for name in FORMATS} | {'webp lossless': LOSSLESS_WEBP}


def png(width: int, height: int) -> bytes:
    """A PNG file that claims a size, with a correct checksum, and holds next to nothing."""
    head = b'IHDR' + struct.pack('>IIBBBBB', width, height, 8, 2, 0, 0, 0)
    body = b'IDAT' + zlib.compress(b'\0' * 1000)
    chunks = (
        struct.pack('>I', len(chunk) - 4) + chunk + struct.pack('>I', zlib.crc32(chunk))
        for chunk in (head, body, b'IEND')
    )
    return b'\x89PNG\r\n\x1a\n' + b''.join(chunks)


def extended_webp(width: int, height: int) -> bytes:
    canvas = b'\0\0\0\0' + (width - 1).to_bytes(3, 'little') + (height - 1).to_bytes(3, 'little')
    chunk = b'VP8X' + struct.pack('<I', len(canvas)) + canvas
    return b'RIFF' + struct.pack('<I', 4 + len(chunk)) + b'WEBP' + chunk


@pytest.mark.parametrize('name', PACKED)
def test_size_is_read_from_the_header(name):
    assert image_size(PACKED[name]) == (name.split()[0], 44, 30)


def test_size_of_a_grey_and_of_a_progressive_jpeg():
    for options in ((cv2.IMWRITE_JPEG_PROGRESSIVE, 1), (cv2.IMWRITE_JPEG_RST_INTERVAL, 1)):
        packed = cv2.imencode('.jpg', PIXELS[..., 0], options)[1].tobytes()
        assert image_size(packed) == ('jpeg', 44, 30)
        assert decode_image(packed).shape == PIXELS.shape


def test_size_of_an_extended_webp():
    assert image_size(extended_webp(70000, 300)) == ('webp', 70000, 300)


@pytest.mark.parametrize(
    'bomb',
    [png(60_000, 60_000), png(2**31 - 1, 1), png(0, 5), extended_webp(2**24, 2**24)],
)
def test_bomb_is_refused_before_it_is_unpacked(bomb, monkeypatch):
    monkeypatch.setattr(image_files.cv2, 'imdecode', lambda *_: pytest.fail('unpacked'))
    with pytest.raises(ObservationError, match='valid: 1 to 33554432'):
        decode_image(bomb)


def test_jpeg_of_65535_pixels_a_side_is_refused(monkeypatch):
    at = PACKED['jpeg'].index(b'\xff\xc0')
    bomb = PACKED['jpeg'][: at + 5] + b'\xff\xff\xff\xff' + PACKED['jpeg'][at + 9 :]
    monkeypatch.setattr(image_files.cv2, 'imdecode', lambda *_: pytest.fail('unpacked'))
    with pytest.raises(ObservationError, match='65535x65535'):
        decode_image(bomb)


@pytest.mark.parametrize('name', PACKED)
@given(st.floats(0, 1, exclude_max=True))
def test_cut_picture_is_refused_wherever_it_is_cut(name, share):
    whole = PACKED[name]
    with pytest.raises(ObservationError):
        decode_image(whole[: int(share * len(whole))])


@pytest.mark.parametrize('name', PACKED)
@given(st.data())
def test_damaged_picture_gives_a_picture_of_its_size_or_is_refused(name, data):
    damaged = bytearray(PACKED[name])
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    try:
        pixels = decode_image(bytes(damaged), max_pixels=1 << 20)
    except ObservationError:
        return
    _, width, height = image_size(bytes(damaged))
    assert pixels.shape == (height, width, 3)
    assert pixels.dtype == np.uint8


@given(st.binary(max_size=200), st.sampled_from([b'', b'\xff\xd8\xff', *(PACKED.values())]))
def test_any_bytes_give_a_picture_or_are_refused(noise, begin):
    with contextlib.suppress(ObservationError):
        pixels = decode_image(begin[:40] + noise, max_pixels=1 << 20)
        assert pixels.dtype == np.uint8
        assert pixels.shape[2] == 3


def test_orientation_tag_does_not_turn_the_picture():
    exif = b'Exif\0\0MM\0\x2a\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0'
    tagged = PACKED['jpeg'][:2] + b'\xff\xe1' + struct.pack('>H', len(exif) + 2) + exif
    assert decode_image(tagged + PACKED['jpeg'][2:]).shape == (30, 44, 3)


def test_alpha_and_16_bit_and_grey_become_rgb():
    alpha = cv2.imencode('.png', np.full((3, 4, 4), 9, np.uint8))[1].tobytes()
    deep = cv2.imencode('.png', np.full((3, 4, 3), 0x0909, np.uint16))[1].tobytes()
    grey = cv2.imencode('.png', np.full((3, 4), 9, np.uint8))[1].tobytes()
    for packed in (alpha, deep, grey):
        np.testing.assert_array_equal(decode_image(packed), np.full((3, 4, 3), 9))


def test_unknown_format_is_refused_by_name():
    with pytest.raises(ConfigError, match='jpeg, png, webp'):
        encode_image(PIXELS, 'exe')


def test_picture_too_large_for_its_format_is_refused():
    with pytest.raises(ObservationError, match='webp'):
        encode_image(np.zeros((1, 16400, 3), np.uint8), 'webp')
