"""Faults of cameras and robot state, made on purpose: what a stream looks like when it is broken.

A fault is named; what it does to one camera's stream is decided here, on arrays, so that a robot
in dry run, a benchmark and a test all break in the same way.
"""

from collections import deque

import numpy as np
from numpy.typing import NDArray

from vla_cache_ros.core.errors import UnknownNameError

NO_FAULT = 'none'
IMAGE_FAULTS = ('unplugged', 'frozen', 'black', 'torn', 'rotated', 'resized')
STREAM_FAULTS = ('delayed', 'clock_forward', 'clock_backward')
STATE_FAULTS = ('nan_state',)
FAULTS = (NO_FAULT, *IMAGE_FAULTS, *STREAM_FAULTS, *STATE_FAULTS)
"""Names of all faults of inputs."""

TORN_FRAMES = 5
"""The lower half of a torn image is so many frames old."""


class FrameFaults:
    """One camera's images, whole or broken. Keeps the last few of them."""

    def __init__(self) -> None:
        """Start with no image seen."""
        self._history: deque[NDArray[np.uint8]] = deque(maxlen=TORN_FRAMES + 1)

    def apply(self, pixels: NDArray[np.uint8], fault: str) -> NDArray[np.uint8] | None:
        """Break an image, or let it pass.

        Args:
            pixels: What the camera saw, uint8 [H, W, C]; kept, so it must not change afterwards.
            fault: A name of FAULTS; those that do not concern pixels let the image pass.

        Returns:
            What is seen instead; None: nothing, the camera is silent.

        Raises:
            UnknownNameError: There is no such fault.
        """
        if fault not in FAULTS:
            raise UnknownNameError('fault', fault, FAULTS)
        if fault == 'frozen':  # what came before the fault stays the newest image
            if not self._history:
                self._history.append(pixels)
            return self._history[-1]
        self._history.append(pixels)
        if fault == 'unplugged':
            return None
        if fault == 'black':
            return np.zeros_like(pixels)
        if fault == 'torn':
            return _torn(pixels, self._history[0])
        if fault == 'rotated':
            return np.ascontiguousarray(pixels[::-1, ::-1])
        if fault == 'resized':
            return np.ascontiguousarray(pixels[::2, ::2])
        return pixels


def stamp_offset_s(fault: str, jump_s: float) -> float:
    """How far the stamps of all sensors are from the truth under a fault, seconds."""
    return {'clock_forward': jump_s, 'clock_backward': -jump_s}.get(fault, 0.0)


def _torn(pixels: NDArray[np.uint8], older: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Upper half of one image, lower half of another; the new one alone where sizes differ."""
    if older.shape != pixels.shape:
        return pixels
    half = pixels.shape[0] // 2
    return np.concatenate((pixels[:half], older[half:]))
