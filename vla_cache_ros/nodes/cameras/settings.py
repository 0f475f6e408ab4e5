"""What a source of images is: one protocol for cameras, streams, video files and folders.

    open -> what was asked of the device and what it does
    read -> the next picture and when it was taken; None after the last one; waits for its turn
    close

A source belongs to one thread. It raises CameraError as soon as something is wrong, and leaves
trying again to `CameraReader`.
"""

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from vla_cache_ros.core.errors import ConfigError

# Seconds that OpenCV's V4L2 driver waits for a picture; read once, when it is loaded.
os.environ.setdefault('OPENCV_VIDEOIO_V4L_SELECT_TIMEOUT', '2')
import cv2  # noqa: E402  # after the setting that it reads


@dataclass(frozen=True)
class CameraSettings:
    """What is asked of a source; 0 or empty asks for nothing in particular.

    Attributes:
        width_px: Width of its pictures.
        height_px: Height of its pictures.
        frame_rate_hz: Pictures per second. A video's own rate where 0, and 30 of a folder.
        exposure: In the device's own unit (V4L2: 100 microseconds); automatic where 0.
        fourcc: Four letters of the pixel format on the wire, e.g. MJPG.
        loop: Whether a file or folder begins anew after its last picture.
    """

    width_px: int = 0
    height_px: int = 0
    frame_rate_hz: float = 0.0
    exposure: float = 0.0
    fourcc: str = ''
    loop: bool = True

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            ConfigError: A number is negative, or fourcc is not four letters.
        """
        for name in ('width_px', 'height_px', 'frame_rate_hz', 'exposure'):
            if not 0 <= getattr(self, name) < float('inf'):
                raise ConfigError(
                    f'{name} is {getattr(self, name)}; valid: a positive number, or 0 for the '
                    "source's own."
                )
        if self.fourcc and not re.fullmatch(r'[ -~]{4}', self.fourcc):
            raise ConfigError(
                f'fourcc {self.fourcc!r}; valid: four characters, e.g. MJPG or YUYV, or empty.'
            )


@dataclass(frozen=True)
class Frame:
    """One picture.

    Attributes:
        pixels: uint8 [H, W, 3], RGB.
        captured_ns: When it was taken, nanoseconds of the clock that the source was given.
    """

    pixels: NDArray[np.uint8]
    captured_ns: int


@dataclass(frozen=True)
class Opened:
    """What a source does once it is open.

    Attributes:
        refused: Setting -> 'asked X, got Y', for those that it does not meet.
        rate_hz: Rate that it says it has; 0 where it does not say.
    """

    refused: Mapping[str, str] = field(default_factory=dict[str, str])
    rate_hz: float = 0.0


class Source(Protocol):
    """See the module's head."""

    def open(self) -> Opened:
        """Open it; once per object. Raises CameraError."""
        ...

    def read(self) -> Frame | None:
        """Wait for the next picture. Raises CameraError; PictureError where it may go on."""
        ...

    def close(self) -> None:
        """Give everything back; idempotent, also after a failed `open`."""
        ...


Clock = Callable[[], int]
Pause = Callable[[float], Any]
SourceFactory = Callable[[Clock, Pause], Source]
"""Makes a new source, given nanoseconds of a monotonic clock and a sleep that may be cut short."""


def size_refused(width_px: int, height_px: int, settings: CameraSettings) -> dict[str, str]:
    """What a source that has one size does not meet."""
    refused: dict[str, str] = {}
    if settings.width_px not in (0, width_px):
        refused['width_px'] = f'asked {settings.width_px}, got {width_px}'
    if settings.height_px not in (0, height_px):
        refused['height_px'] = f'asked {settings.height_px}, got {height_px}'
    return refused


def opened_size_refused(capture: Any, settings: CameraSettings) -> dict[str, str]:
    """As `size_refused`, of what OpenCV has opened."""
    width = round(capture.get(cv2.CAP_PROP_FRAME_WIDTH))
    height = round(capture.get(cv2.CAP_PROP_FRAME_HEIGHT))
    return size_refused(width, height, settings)


def without_password(text: str) -> str:
    """A source's name as it may be shown and logged."""
    return re.sub(r'://[^/@]*@', '://***@', text)
