"""sensor_msgs/Image <-> RGB arrays.

Images are read in place where their encoding allows (rgb8, rgba8): the array is a view of the
message's own memory, whatever its row step.
"""

import array

import cv2
import numpy as np
from builtin_interfaces.msg import Time
from numpy.typing import NDArray
from sensor_msgs.msg import Image

from vla_cache_ros.core.errors import ObservationError

CHANNELS = {'rgb8': 3, 'bgr8': 3, 'rgba8': 4, 'bgra8': 4, 'mono8': 1}
"""Valid image encodings -> bytes per pixel."""

_TO_RGB = {
    'bgr8': cv2.COLOR_BGR2RGB,
    'bgra8': cv2.COLOR_BGRA2RGB,
    'mono8': cv2.COLOR_GRAY2RGB,
}


def image_to_rgb(message: Image) -> NDArray[np.uint8]:
    """Read an image message.

    Returns:
        uint8 [H, W, 3], RGB. For rgb8 and rgba8 a view of the message's memory.

    Raises:
        ObservationError: Unknown encoding, no pixels, or `step` or the data's length do not fit.
    """
    channels = CHANNELS.get(message.encoding)
    if channels is None:
        raise ObservationError(
            f'image encoding {message.encoding!r} is unknown; valid: {", ".join(CHANNELS)}.'
        )
    if message.height == 0 or message.width == 0:
        raise ObservationError(
            f'image is empty: {message.width}x{message.height} pixels; valid: at least 1x1.'
        )
    row_bytes = message.width * channels
    if message.step < row_bytes:
        raise ObservationError(
            f'image step {message.step} is shorter than a row; valid: at least width x channels '
            f'= {message.width} x {channels} = {row_bytes} bytes.'
        )
    # The last row need not be padded.
    needed = (message.height - 1) * message.step + row_bytes
    if len(message.data) < needed:
        raise ObservationError(
            f'image data hold {len(message.data)} bytes; valid: {message.height * message.step} '
            f'= height x step = {message.height} x {message.step}.'
        )
    pixels = np.ndarray(
        (message.height, message.width, channels),
        dtype=np.uint8,
        buffer=memoryview(message.data),
        strides=(message.step, channels, 1),
    )
    if message.encoding in _TO_RGB:
        return cv2.cvtColor(pixels, _TO_RGB[message.encoding]).astype(np.uint8, copy=False)
    return pixels[..., :3]


def rgb_to_image(pixels: NDArray[np.uint8], stamp: Time, frame_id: str) -> Image:
    """Build an rgb8 message with one copy of the pixels.

    Args:
        pixels: uint8 [H, W, 3].
        stamp: Capture time.
        frame_id: The camera's optical frame.

    Raises:
        ObservationError: The array is not an RGB image.
    """
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
        raise ObservationError(
            f'image is {pixels.dtype} {pixels.shape}; valid: uint8 (height, width, 3).'
        )
    message = Image()
    message.header.stamp = stamp
    message.header.frame_id = frame_id
    message.height, message.width = pixels.shape[:2]
    message.encoding = 'rgb8'
    message.step = 3 * message.width
    # rclpy copies an array.array in one go; a list or bytes it checks element by element.
    data = array.array('B')
    data.frombytes(np.ascontiguousarray(pixels).data.cast('B'))
    message.data = data
    return message
