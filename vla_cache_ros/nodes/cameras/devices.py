"""Cameras of this machine (Video4Linux2) and of the network, through OpenCV."""

import os
import stat
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vla_cache_ros.core.errors import CameraError, PictureError
from vla_cache_ros.nodes.cameras.settings import (
    CameraSettings,
    Clock,
    Frame,
    Opened,
    cv2,
    opened_size_refused,
    without_password,
)

_STREAM_TIMEOUT_MS = 5000
_TOLERANCE = 2e-3  # 29.97 is 30

# Video4Linux2: 1 = manual, 3 = automatic (aperture priority).
_V4L2_EXPOSURE_MANUAL, _V4L2_EXPOSURE_AUTO = 1, 3
_MAX_BUFFER_AGE_NS = 1_000_000_000


class DeviceSource:
    """A camera of Video4Linux2, through OpenCV."""

    def __init__(
        self,
        path: str,
        settings: CameraSettings,
        clock: Clock = time.monotonic_ns,
        capture: Callable[..., Any] = cv2.VideoCapture,
    ) -> None:
        """Remember what to open.

        Args:
            path: The device, or a link to it, followed anew at each open.
            settings: What is asked of it.
            clock: Nanoseconds; the kernel stamps pictures by CLOCK_MONOTONIC.
            capture: Stands in for OpenCV's in tests.
        """
        self._path = path
        self._settings = settings
        self._clock = clock
        self._make_capture = capture
        self._capture: Any = None

    def open(self) -> Opened:
        """Open the device and make the settings.

        Raises:
            CameraError: No such device, or it cannot be opened.
        """
        device = os.path.realpath(self._path)
        if not os.path.exists(device) or not stat.S_ISCHR(os.stat(device).st_mode):
            raise CameraError(
                f'there is no camera device {self._path}; plug the camera in, or see '
                '`vla-cache doctor` for those that are.'
            )
        if not os.access(device, os.R_OK | os.W_OK):
            raise CameraError(
                f'no permission for {device}; add the user to its group: '
                'sudo usermod -aG video $USER, then log in anew.'
            )
        self._capture = self._make_capture(device, cv2.CAP_V4L2)
        if not self._capture.isOpened():
            raise CameraError(
                f'{device} cannot be opened: another program holds it (see: fuser {device}), or '
                'it is not a camera.'
            )
        return Opened(self._set(), float(self._capture.get(cv2.CAP_PROP_FPS)))

    def read(self) -> Frame | None:
        """Wait for the next picture.

        Raises:
            CameraError: It gives none.
        """
        if not self._capture.grab():
            raise CameraError(f'{self._path} gives no picture; unplugged, or it hangs.')
        captured_ns = self._captured_ns()
        return Frame(_retrieve(self._capture, self._path), captured_ns)

    def close(self) -> None:
        """Release the device."""
        if self._capture is not None:
            self._capture.release()
            self._capture = None

    def _set(self) -> dict[str, str]:
        """Make every setting, then read back what came of it."""
        capture, asked = self._capture, self._settings
        wanted: dict[str, tuple[int, float, Any]] = {}
        if asked.fourcc:  # first: it decides which sizes and rates there are
            code = cv2.VideoWriter.fourcc(*asked.fourcc)
            wanted['fourcc'] = (cv2.CAP_PROP_FOURCC, code, asked.fourcc)
        if asked.width_px:
            wanted['width_px'] = (cv2.CAP_PROP_FRAME_WIDTH, asked.width_px, asked.width_px)
        if asked.height_px:
            wanted['height_px'] = (cv2.CAP_PROP_FRAME_HEIGHT, asked.height_px, asked.height_px)
        if asked.frame_rate_hz:
            wanted['frame_rate_hz'] = (cv2.CAP_PROP_FPS, asked.frame_rate_hz, asked.frame_rate_hz)
        if asked.exposure:
            manual = _V4L2_EXPOSURE_MANUAL
            wanted['exposure_mode'] = (cv2.CAP_PROP_AUTO_EXPOSURE, manual, manual)
            wanted['exposure'] = (cv2.CAP_PROP_EXPOSURE, asked.exposure, asked.exposure)
        else:
            capture.set(cv2.CAP_PROP_AUTO_EXPOSURE, _V4L2_EXPOSURE_AUTO)
        for number, value, _ in wanted.values():
            capture.set(number, value)
        capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)  # the newest picture, not the oldest of four
        refused: dict[str, str] = {}
        for name, (number, value, shown) in wanted.items():
            got = float(capture.get(number))
            if name == 'fourcc' and got != value:
                refused[name] = f'asked {shown}, got {_fourcc_text(got)}'
            elif abs(got - value) > _TOLERANCE * value:
                refused[name] = f'asked {shown:g}, got {got:g}'
        return refused

    def _captured_ns(self) -> int:
        """The kernel's stamp of the picture where it has a plausible one, else now."""
        now_ns = self._clock()
        stamped_ns = round(1e6 * self._capture.get(cv2.CAP_PROP_POS_MSEC))
        return stamped_ns if 0 <= now_ns - stamped_ns < _MAX_BUFFER_AGE_NS else now_ns


class StreamSource:
    """A camera in the network (RTSP, MJPEG over HTTP), through OpenCV's FFmpeg."""

    def __init__(
        self,
        url: str,
        settings: CameraSettings,
        clock: Clock = time.monotonic_ns,
        capture: Callable[..., Any] = cv2.VideoCapture,
    ) -> None:
        """Remember what to open. See `DeviceSource`."""
        self._url = url
        self._shown = without_password(url)
        self._settings = settings
        self._clock = clock
        self._make_capture = capture
        self._capture: Any = None

    def open(self) -> Opened:
        """Connect.

        Raises:
            CameraError: No answer, or nothing that can be decoded.
        """
        limits = [
            cv2.CAP_PROP_OPEN_TIMEOUT_MSEC,
            _STREAM_TIMEOUT_MS,
            cv2.CAP_PROP_READ_TIMEOUT_MSEC,
            _STREAM_TIMEOUT_MS,
        ]
        self._capture = self._make_capture(self._url, cv2.CAP_FFMPEG, limits)
        if not self._capture.isOpened():
            raise CameraError(f'{self._shown} cannot be opened: no answer, or no video there.')
        refused = opened_size_refused(self._capture, self._settings)
        return Opened(refused, float(self._capture.get(cv2.CAP_PROP_FPS)))

    def read(self) -> Frame | None:
        """Wait for the next picture; its stamp is that of its arrival.

        Raises:
            CameraError: It gives none.
        """
        if not self._capture.grab():
            raise CameraError(f'{self._shown} gives no picture; the stream has ended or hangs.')
        captured_ns = self._clock()
        return Frame(_retrieve(self._capture, self._shown), captured_ns)

    def close(self) -> None:
        """Disconnect."""
        if self._capture is not None:
            self._capture.release()
            self._capture = None


def _retrieve(capture: Any, shown: str) -> NDArray[np.uint8]:
    """Decode the picture that was grabbed."""
    done, bgr = capture.retrieve()
    if not done or bgr is None:
        raise PictureError(f'{shown} gave a picture that cannot be decoded.')
    code = cv2.COLOR_GRAY2RGB if bgr.ndim == 2 else cv2.COLOR_BGR2RGB
    return cv2.cvtColor(bgr, code).astype(np.uint8, copy=False)


def _fourcc_text(value: float) -> str:
    return (int(value) & 0xFFFFFFFF).to_bytes(4, 'little').decode('ascii', 'replace')
