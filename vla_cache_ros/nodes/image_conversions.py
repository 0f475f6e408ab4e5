"""sensor_msgs/Image and CompressedImage <-> RGB arrays.

Images are read in place where their encoding allows (rgb8, rgba8): the array is a view of the
message's own memory, whatever its row step. All others are converted once, by OpenCV.

Reading goes by the fields alone: a recording is read by the same functions, without ROS.
"""

import array
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from numpy.typing import NDArray

from vla_cache_ros.core.errors import ObservationError
from vla_cache_ros.nodes.cameras.calibration import Calibration
from vla_cache_ros.nodes.image_files import MAX_PIXELS, check_rgb, decode_image, encode_image

if TYPE_CHECKING:
    from builtin_interfaces.msg import Time
    from sensor_msgs.msg import CameraInfo, CompressedImage, Image


@dataclass(frozen=True)
class Encoding:
    """How the pixels of one encoding lie in a message.

    Attributes:
        channels: Numbers per pixel.
        to_rgb: Makes RGB of [H, W, channels]; None where the first three numbers are RGB.
        bytes_per_number: 1 or 2.
        least_side_px: Smallest width and height that can be converted.
        even_width: Whether two pixels side by side share their colour.
    """

    channels: int
    to_rgb: Callable[[NDArray[Any]], Any] | None
    bytes_per_number: int = 1
    least_side_px: int = 1
    even_width: bool = False


def _by_opencv(code: int) -> Callable[[NDArray[Any]], Any]:
    return lambda pixels: cv2.cvtColor(pixels, code)


def _from_mono16(pixels: NDArray[np.uint16]) -> Any:
    """Scale: 65535 = 255 * 257 becomes 255."""
    return cv2.cvtColor(cv2.convertScaleAbs(pixels, alpha=1 / 257), cv2.COLOR_GRAY2RGB)


_BGR = Encoding(3, _by_opencv(cv2.COLOR_BGR2RGB))
_MONO = Encoding(1, _by_opencv(cv2.COLOR_GRAY2RGB))
_UYVY = Encoding(2, _by_opencv(cv2.COLOR_YUV2RGB_UYVY), even_width=True)
_YUYV = Encoding(2, _by_opencv(cv2.COLOR_YUV2RGB_YUY2), even_width=True)

ENCODINGS: dict[str, Encoding] = {
    'rgb8': Encoding(3, None),
    'bgr8': _BGR,
    'rgba8': Encoding(4, None),
    'bgra8': Encoding(4, _by_opencv(cv2.COLOR_BGRA2RGB)),
    'mono8': _MONO,
    'mono16': Encoding(1, _from_mono16, bytes_per_number=2),
    '8UC1': _MONO,
    '8UC3': _BGR,  # says nothing of colours; those who write it hand over OpenCV's own BGR
    'yuv422': _UYVY,
    'uyvy': _UYVY,
    'yuv422_yuy2': _YUYV,
    'yuyv': _YUYV,
    # ROS names the first two pixels of the first two rows.
    'bayer_rggb8': Encoding(1, _by_opencv(cv2.COLOR_BayerRGGB2RGB), least_side_px=3),
    'bayer_bggr8': Encoding(1, _by_opencv(cv2.COLOR_BayerBGGR2RGB), least_side_px=3),
    'bayer_gbrg8': Encoding(1, _by_opencv(cv2.COLOR_BayerGBRG2RGB), least_side_px=3),
    'bayer_grbg8': Encoding(1, _by_opencv(cv2.COLOR_BayerGRBG2RGB), least_side_px=3),
}
"""Valid image encodings."""


def image_to_rgb(message: 'Image') -> NDArray[np.uint8]:
    """Read an image message.

    Returns:
        uint8 [H, W, 3], RGB. For rgb8 and rgba8 a view of the message's memory.

    Raises:
        ObservationError: Unknown encoding, no pixels, or `step` or the data's length do not fit.
    """
    encoding = ENCODINGS.get(message.encoding)
    if encoding is None:
        raise ObservationError(
            f'image encoding {message.encoding!r} is unknown; valid: {", ".join(ENCODINGS)}.'
        )
    _check_size(message, encoding)
    pixel_bytes = encoding.channels * encoding.bytes_per_number
    row_bytes = message.width * pixel_bytes
    if message.step < row_bytes:
        raise ObservationError(
            f'image step {message.step} is shorter than a row; valid: at least width x bytes per '
            f'pixel = {message.width} x {pixel_bytes} = {row_bytes} bytes.'
        )
    # The last row need not be padded.
    needed = (message.height - 1) * message.step + row_bytes
    if len(message.data) < needed:
        raise ObservationError(
            f'image data hold {len(message.data)} bytes; valid: {message.height * message.step} '
            f'= height x step = {message.height} x {message.step}.'
        )
    byte_order = '>' if message.is_bigendian else '<'
    pixels = np.ndarray(
        (message.height, message.width, encoding.channels),
        dtype=f'{byte_order}u{encoding.bytes_per_number}',
        buffer=memoryview(message.data),
        strides=(message.step, pixel_bytes, encoding.bytes_per_number),
    )
    if encoding.to_rgb is None:
        return pixels[..., :3]
    if encoding.bytes_per_number > 1:  # OpenCV wants its own byte order and alignment
        pixels = np.ascontiguousarray(pixels, np.uint16)
    return encoding.to_rgb(pixels).astype(np.uint8, copy=False)


def compressed_to_rgb(
    message: 'CompressedImage', max_pixels: int = MAX_PIXELS
) -> NDArray[np.uint8]:
    """Read a compressed image: JPEG, PNG or WebP, whatever `format` calls it.

    `format` is e.g. 'jpeg' or, from image_transport, 'rgb8; jpeg compressed bgr8': the encoding
    before, and the order of colours in which the encoder, which expects BGR, was handed them. So
    'compressed rgb8' says that red and blue have changed places within the file.

    Args:
        message: The message.
        max_pixels: Largest picture that is unpacked.

    Returns:
        uint8 [H, W, 3], RGB.

    Raises:
        ObservationError: A depth image, another format, a truncated or damaged picture, or one
            of too many pixels.
    """
    if 'compressedDepth' in message.format:
        raise ObservationError(
            f'compressed image of format {message.format!r} holds depth; valid: colour or grey '
            'as jpeg, png or webp.'
        )
    pixels = decode_image(memoryview(message.data), max_pixels)
    if 'compressed rgb' in message.format:
        return np.ascontiguousarray(pixels[..., ::-1])
    return pixels


def rgb_to_image(pixels: NDArray[np.uint8], stamp: 'Time', frame_id: str) -> 'Image':
    """Build an rgb8 message with one copy of the pixels.

    Args:
        pixels: uint8 [H, W, 3].
        stamp: Capture time.
        frame_id: The camera's optical frame.

    Raises:
        ObservationError: The array is not an RGB image.
    """
    from sensor_msgs.msg import Image

    check_rgb(pixels)
    message = Image()
    message.header.stamp = stamp
    message.header.frame_id = frame_id
    message.height, message.width = pixels.shape[:2]
    message.encoding = 'rgb8'
    message.step = 3 * message.width
    message.data = _as_array(np.ascontiguousarray(pixels).data.cast('B'))
    return message


def rgb_to_compressed(
    pixels: NDArray[np.uint8], stamp: 'Time', frame_id: str, name: str = 'jpeg', quality: int = 90
) -> 'CompressedImage':
    """Build a compressed message, with the format string that image_transport writes.

    Args:
        pixels: uint8 [H, W, 3].
        stamp: Capture time.
        frame_id: The camera's optical frame.
        name: jpeg, png or webp.
        quality: 1 to 100, for jpeg and webp.

    Raises:
        ConfigError: Unknown format.
        ObservationError: The array is not an RGB image.
    """
    from sensor_msgs.msg import CompressedImage

    message = CompressedImage()
    message.header.stamp = stamp
    message.header.frame_id = frame_id
    message.format = f'rgb8; {name} compressed bgr8'
    message.data = _as_array(encode_image(pixels, name, quality))
    return message


def calibration_to_info(calibration: Calibration, stamp: 'Time', frame_id: str) -> 'CameraInfo':
    """Build the message of a calibration, for the picture of that stamp."""
    from sensor_msgs.msg import CameraInfo

    message = CameraInfo()
    message.header.stamp = stamp
    message.header.frame_id = frame_id
    message.width, message.height = calibration.size_px
    message.distortion_model = calibration.distortion_model
    message.d = list(calibration.d)
    message.k, message.r, message.p = calibration.k, calibration.r, calibration.p
    return message


def _check_size(message: 'Image', encoding: Encoding) -> None:
    least = encoding.least_side_px
    if message.height < least or message.width < least:
        what = 'empty' if 0 in (message.height, message.width) else 'too small'
        raise ObservationError(
            f'{message.encoding} image is {what}: {message.width}x{message.height} pixels; '
            f'valid: at least {least}x{least}.'
        )
    if encoding.even_width and message.width % 2:
        raise ObservationError(
            f'{message.encoding} image is {message.width} pixels wide; valid: an even number, '
            'because two pixels share their colour.'
        )


def _as_array(data: bytes | memoryview) -> 'array.array[int]':
    """Copy once: rclpy takes an array.array as it is, and checks bytes one by one."""
    copied = array.array('B')
    copied.frombytes(data)
    return copied
