"""Video files and folders of pictures as sources, each picture in its turn."""

import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vla_cache_ros.core.errors import CameraError, ObservationError, PictureError
from vla_cache_ros.nodes.cameras.settings import (
    CameraSettings,
    Clock,
    Frame,
    Opened,
    Pause,
    cv2,
    opened_size_refused,
    size_refused,
)
from vla_cache_ros.nodes.image_files import MAX_PIXELS, decode_image

FOLDER_RATE_HZ = 30.0
SUFFIXES = ('.jpeg', '.jpg', '.png', '.webp')
"""Files of an image folder."""

_MAX_FILE_BYTES = 1 << 28


class _Pace:
    """Gives each picture of a file its turn."""

    def __init__(self, rate_hz: float, clock: Clock, pause: Pause) -> None:
        self._period_ns = round(1e9 / rate_hz)
        self._clock = clock
        self._pause = pause
        self._due_ns: int | None = None

    def wait(self) -> int:
        """Wait for the next turn; return the time, nanoseconds. Late ones are not made up for."""
        now_ns = self._clock()
        if self._due_ns is not None and self._due_ns > now_ns:
            self._pause((self._due_ns - now_ns) / 1e9)
            now_ns = self._clock()
        due_ns = now_ns if self._due_ns is None else self._due_ns
        self._due_ns = max(due_ns + self._period_ns, now_ns)
        return now_ns


class VideoSource:
    """A video file, at its own rate or at the one asked for."""

    def __init__(
        self, path: Path, settings: CameraSettings, clock: Clock, pause: Pause = time.sleep
    ) -> None:
        """Remember what to open. See `SourceFactory`."""
        self._path = path
        self._settings = settings
        self._clock = clock
        self._pause = pause
        self._capture: Any = None
        self._frames = 0

    def open(self) -> Opened:
        """Open the file.

        Raises:
            CameraError: No such file, or not a video.
        """
        if not self._path.is_file():  # a named pipe would block for ever
            raise CameraError(
                f'there is no video file {self._path}; valid: a file, or a folder with '
                f'{", ".join(SUFFIXES)}.'
            )
        self._rewind()
        own_hz = float(self._capture.get(cv2.CAP_PROP_FPS))
        rate_hz = self._settings.frame_rate_hz or (own_hz if 0.1 < own_hz < 1000 else 30.0)
        self._pace = _Pace(rate_hz, self._clock, self._pause)
        return Opened(opened_size_refused(self._capture, self._settings), rate_hz)

    def read(self) -> Frame | None:
        """Wait for the next picture's turn; None after the last one.

        Raises:
            CameraError: No picture can be decoded.
        """
        done, bgr = self._capture.read()
        if not done and self._frames and self._settings.loop:
            self._rewind()
            done, bgr = self._capture.read()
        if not done:
            if self._frames:
                return None
            raise CameraError(f'no picture of {self._path} can be decoded.')
        self._frames += 1
        pixels = cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB).astype(np.uint8, copy=False)
        return Frame(pixels, self._pace.wait())

    def close(self) -> None:
        """Close the file."""
        if self._capture is not None:
            self._capture.release()
            self._capture = None

    def _rewind(self) -> None:
        self.close()
        self._frames = 0
        self._capture = cv2.VideoCapture(str(self._path), cv2.CAP_FFMPEG)
        if not self._capture.isOpened():
            raise CameraError(f'{self._path} is not a video that can be decoded.')
        # A header may claim any size; the decoder allocates by it.
        width = int(self._capture.get(cv2.CAP_PROP_FRAME_WIDTH))
        height = int(self._capture.get(cv2.CAP_PROP_FRAME_HEIGHT))
        if not 0 < width * height <= MAX_PIXELS:
            raise CameraError(
                f'{self._path} has {width}x{height} pixels; valid: 1 to {MAX_PIXELS} of them.'
            )


class FolderSource:
    """The pictures of a folder, in the order of their names."""

    def __init__(
        self, path: Path, settings: CameraSettings, clock: Clock, pause: Pause = time.sleep
    ) -> None:
        """Remember what to open. See `SourceFactory`."""
        self._path = path
        self._settings = settings
        self._paths: list[Path] = []
        self._next = 0
        rate_hz = settings.frame_rate_hz or FOLDER_RATE_HZ
        self._rate_hz = rate_hz
        self._pace = _Pace(rate_hz, clock, pause)

    def open(self) -> Opened:
        """List the pictures and find the first that can be read.

        Raises:
            CameraError: There is none.
        """
        try:
            listed = sorted(path for path in self._path.iterdir() if path.is_file())
        except OSError as error:
            raise CameraError(f'folder {self._path} cannot be listed: {error}.') from error
        self._paths = [path for path in listed if path.suffix.lower() in SUFFIXES]
        damage: PictureError | None = None
        for path in self._paths:
            try:
                height, width = self._load(path).shape[:2]
            except PictureError as error:
                damage = damage or error
            else:
                return Opened(size_refused(width, height, self._settings), self._rate_hz)
        raise CameraError(
            f'folder {self._path} holds no picture that can be read; valid: '
            f'{", ".join(SUFFIXES)}.{"" if damage is None else f" {damage}"}'
        ) from damage

    def read(self) -> Frame | None:
        """Wait for the next picture's turn; None after the last one.

        Raises:
            PictureError: It cannot be read; the next call goes on behind it.
        """
        if self._next == len(self._paths):
            if not self._settings.loop:
                return None
            self._next = 0
        path = self._paths[self._next]
        self._next += 1
        return Frame(self._load(path), self._pace.wait())

    def close(self) -> None:
        """Forget the list."""
        self._paths = []
        self._next = 0

    def _load(self, path: Path) -> NDArray[np.uint8]:
        try:
            if path.stat().st_size > _MAX_FILE_BYTES:
                raise ObservationError(f'longer than {_MAX_FILE_BYTES} bytes.')
            return decode_image(path.read_bytes())
        except (ObservationError, OSError) as error:
            raise PictureError(f'{path}: {error}') from error
