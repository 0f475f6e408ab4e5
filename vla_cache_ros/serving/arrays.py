"""Messages, arrays and pictures out of other people's bytes.

Nothing is trusted: an array is made from a plain number type alone, and only where shape times
item size is the number of bytes. There is no pickle anywhere.
"""

import io
import math
import re
from collections.abc import Callable
from typing import Any

import msgpack
import numpy as np
from numpy.typing import NDArray

from vla_cache_ros.core.errors import FrameError

NUMBER_TYPE = re.compile(r'[<>=|]?(b1|[iu][1248]|f[248])')
MAX_DIMENSIONS = 4
PICTURE_FORMATS = ('PNG', 'JPEG')


def make_array(data: object, dtype: object, shape: object) -> NDArray[np.generic]:
    """Make an array from its three parts, without a copy.

    Args:
        data: The numbers, in C order.
        dtype: Number type as numpy writes it, e.g. '<f4'.
        shape: Sizes, none of them 0.

    Raises:
        FrameError: One of them is not valid, or they do not fit together.
    """
    if not isinstance(data, bytes):
        raise FrameError(f"an array's data are {type(data).__name__}; valid: bytes.")
    if not isinstance(dtype, str) or not NUMBER_TYPE.fullmatch(dtype):
        raise FrameError(
            f"an array's number type is {dtype!r:.40}; valid: booleans, integers and floats of up "
            "to 64 bits, as numpy's dtype.str writes them ('|u1', '<f4', ..)."
        )
    if (
        not isinstance(shape, list | tuple)
        or len(shape) > MAX_DIMENSIONS
        or not all(type(size) is int and size > 0 for size in shape)
    ):
        raise FrameError(
            f"an array's shape is {shape!r:.60}; valid: up to {MAX_DIMENSIONS} positive integers."
        )
    kind = np.dtype(dtype)
    if math.prod(shape) * kind.itemsize != len(data):
        raise FrameError(
            f'an array of shape {list(shape)!r:.60} and type {dtype} has '
            f'{math.prod(shape) * kind.itemsize} bytes; the message holds {len(data)}.'
        )
    return np.frombuffer(data, kind).reshape(shape)


def decode_picture(data: object, max_side_px: int) -> NDArray[np.uint8]:
    """Decode a PNG or JPEG picture, RGB or gray, of at most `max_side_px` a side.

    Returns:
        [H, W, 3], or [H, W] for a gray one.

    Raises:
        FrameError: It is neither, is damaged, or is too large; a large one is not unpacked.
    """
    from PIL import Image

    if not isinstance(data, bytes):
        raise FrameError(f"a picture's data are {type(data).__name__}; valid: bytes.")
    try:
        with Image.open(io.BytesIO(data), formats=PICTURE_FORMATS) as picture:
            if max(picture.size) > max_side_px:
                raise FrameError(
                    f'a picture of {picture.size[0]} x {picture.size[1]} pixels; at most '
                    f'{max_side_px} a side.'
                )
            return np.array(picture)
    except FrameError:
        raise
    except Exception as error:  # a decoder of damaged bytes raises anything
        raise FrameError(f'a picture cannot be read: {error}') from error


def unpack(frame: bytes, object_hook: Callable[[dict[Any, Any]], Any]) -> Any:
    """Unpack msgpack.

    Args:
        frame: The bytes.
        object_hook: Called with each map; its FrameError goes through.

    Raises:
        FrameError: The bytes are not msgpack.
    """
    try:
        return msgpack.unpackb(frame, object_hook=object_hook)
    except FrameError:
        raise
    except Exception as error:  # damaged bytes raise a dozen kinds
        raise FrameError(
            f'the message is not msgpack: {type(error).__name__}: {error}'[:300]
        ) from error


def pack(message: object, default: Callable[[Any], Any]) -> bytes:
    """Pack msgpack; `default` turns what it does not know into what it knows."""
    packed = msgpack.packb(message, default=default)
    assert packed is not None
    return packed
