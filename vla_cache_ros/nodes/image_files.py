"""JPEG, PNG and WebP in memory -> RGB arrays, and back; without ROS.

The size stands in a file's first bytes, so a picture that would unpack to gigabytes is refused
before it is unpacked.
"""

import struct
from collections.abc import Callable, Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from vla_cache_ros.core.errors import ConfigError, ObservationError

MAX_PIXELS = 1 << 25
"""Largest picture that is unpacked unless told otherwise: 8K video, 100 MB of RGB."""

FORMATS = ('jpeg', 'png', 'webp')
"""Formats that are read and written, told apart by their first bytes."""

_JPEG_END = b'\xff\xd9'
_JPEG_PARAMETERLESS = frozenset({0x01, *range(0xD0, 0xD8)})
_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_JPEG_SCAN_OR_END = frozenset({0xD8, 0xD9, 0xDA})


def decode_image(data: bytes | memoryview, max_pixels: int = MAX_PIXELS) -> NDArray[np.uint8]:
    """Unpack a picture.

    Its EXIF orientation is ignored: a camera's pixels are what the header's size describes.

    Args:
        data: A whole JPEG, PNG or WebP file.
        max_pixels: Largest width x height.

    Returns:
        uint8 [H, W, 3], RGB; alpha is dropped, 16 bit become 8, grey is repeated.

    Raises:
        ObservationError: Another format, a truncated or damaged file, or more than `max_pixels`.
    """
    name, width, height = image_size(data)
    if not 0 < width * height <= max_pixels:
        raise ObservationError(
            f'{name} picture says that it has {width}x{height} pixels; valid: 1 to {max_pixels} '
            'of them.'
        )
    if name == 'jpeg' and bytes(data[-1024:]).rfind(_JPEG_END) < 0:
        raise ObservationError(f'jpeg picture of {len(data)} bytes is truncated: no end marker.')
    packed = np.frombuffer(data, np.uint8)
    try:
        pixels = cv2.imdecode(packed, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error as error:
        raise ObservationError(f'{name} picture cannot be unpacked: {error.err}.') from error
    if pixels is None:
        raise ObservationError(f'{name} picture of {len(data)} bytes is truncated or damaged.')
    return cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB).astype(np.uint8, copy=False)


def encode_image(pixels: NDArray[np.uint8], name: str, quality: int = 90) -> bytes:
    """Pack an RGB picture.

    Args:
        pixels: uint8 [H, W, 3].
        name: One of `FORMATS`.
        quality: 1 to 100, for jpeg and webp.

    Raises:
        ConfigError: Unknown format.
        ObservationError: The array is not an RGB image, or is too large for the format.
    """
    options: dict[str, Sequence[int]] = {
        'jpeg': (cv2.IMWRITE_JPEG_QUALITY, quality),
        'png': (),
        'webp': (cv2.IMWRITE_WEBP_QUALITY, quality),
    }
    if name not in options:
        raise ConfigError(f'picture format {name!r}; valid: {", ".join(FORMATS)}.')
    check_rgb(pixels)
    bgr = cv2.cvtColor(np.ascontiguousarray(pixels), cv2.COLOR_RGB2BGR)
    try:
        done, packed = cv2.imencode(f'.{name}', bgr, options[name])
    except cv2.error as error:
        raise ObservationError(f'image {pixels.shape} as {name}: {error.err}.') from error
    if not done:
        raise ObservationError(f'image {pixels.shape} cannot be packed as {name}.')
    return packed.tobytes()


def check_rgb(pixels: NDArray[Any]) -> None:
    """Check that an array is an RGB image.

    Raises:
        ObservationError: It is not uint8 [H, W, 3] with at least one pixel.
    """
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
        raise ObservationError(
            f'image is {pixels.dtype} {pixels.shape}; valid: uint8 (height, width, 3).'
        )


def image_size(data: bytes | memoryview) -> tuple[str, int, int]:
    """Read a picture's size from its first bytes.

    Returns:
        Format, width, height; the latter two may be anything that the file claims.

    Raises:
        ObservationError: Another format, or the header is cut.
    """
    head = bytes(data[:16])
    readers: dict[str, tuple[bool, Callable[[bytes | memoryview], tuple[int, int]]]] = {
        'jpeg': (head[:3] == b'\xff\xd8\xff', _jpeg_size),
        'png': (head == b'\x89PNG\r\n\x1a\n\x00\x00\x00\x0dIHDR', _png_size),
        'webp': (head[:4] == b'RIFF' and head[8:15] == b'WEBPVP8', _webp_size),
    }
    for name, (matches, read) in readers.items():
        if matches:
            try:
                return name, *read(data)
            except (struct.error, IndexError) as error:
                raise ObservationError(
                    f'{name} picture of {len(data)} bytes is cut within its header.'
                ) from error
    raise ObservationError(
        f'picture of {len(data)} bytes begins with {head[:4].hex() or "nothing"}; '
        f'valid: {", ".join(FORMATS)}.'
    )


def _png_size(data: bytes | memoryview) -> tuple[int, int]:
    width, height = struct.unpack_from('>II', data, 16)
    return width, height


def _jpeg_size(data: bytes | memoryview) -> tuple[int, int]:
    """Walk the segments up to the frame header: marker, length, precision, height, width."""
    position = 2
    while True:
        if data[position] != 0xFF:
            raise IndexError('no marker where a segment should begin')
        marker = data[position + 1]
        if marker in _JPEG_FRAMES:
            height, width = struct.unpack_from('>HH', data, position + 5)
            return width, height
        if marker in _JPEG_SCAN_OR_END:
            raise IndexError('picture data before the frame header')
        if marker == 0xFF:  # a filling byte
            position += 1
        elif marker in _JPEG_PARAMETERLESS:
            position += 2
        else:
            position += 2 + struct.unpack_from('>H', data, position + 2)[0]


def _webp_size(data: bytes | memoryview) -> tuple[int, int]:
    """Lossy (VP8), lossless (VP8L) and extended (VP8X) files each say it in their own way."""
    kind = bytes(data[15:16])
    if kind == b' ':
        width, height = struct.unpack_from('<HH', data, 26)
        return width & 0x3FFF, height & 0x3FFF
    if kind == b'L':
        (bits,) = struct.unpack_from('<I', data, 21)
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    low = struct.unpack_from('<HBHB', data, 24)
    return (low[0] | low[1] << 16) + 1, (low[2] | low[3] << 16) + 1
