"""What one look at a camera's picture tells of its health: frozen, without contrast, resized."""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class FrameLimits:
    """What a healthy camera does.

    Attributes:
        frozen_after_ns: A picture that repeats, pixel by pixel, for longer than this is frozen; 0:
            never. A sensor's noise alone makes two pictures of a resting scene differ.
        least_contrast: Least standard deviation of the levels, of 255; 0: any picture is seen. A
            covered lens or a dead sensor gives next to none.
    """

    frozen_after_ns: int = 0
    least_contrast: float = 0.0


class FrameWatch:
    """Watches one camera."""

    def __init__(self, limits: FrameLimits) -> None:
        """Start with no picture seen."""
        self._limits = limits
        self._pixels: NDArray[np.uint8] | None = None
        self._since_ns = 0

    def look(self, pixels: NDArray[np.uint8], stamp_ns: int) -> tuple[str, str]:
        """Take one picture into account.

        Args:
            pixels: uint8 [H, W, 3]; kept until the next one.
            stamp_ns: Its capture time.

        Returns:
            What is wrong ('frozen_image', 'black_image', or empty) and what would be valid.
        """
        limits, before = self._limits, self._pixels
        self._pixels = pixels
        if limits.least_contrast > 0 and (contrast := _contrast(pixels)) < limits.least_contrast:
            return 'black_image', (
                f'contrast is {contrast:.1f} of 255 levels; valid: at least '
                f'{limits.least_contrast:g}. Is the lens covered, or the exposure wrong?'
            )
        if not limits.frozen_after_ns:
            return '', ''
        if before is None or stamp_ns < self._since_ns or not np.array_equal(pixels, before):
            self._since_ns = stamp_ns
        still_ns = stamp_ns - self._since_ns
        if still_ns <= limits.frozen_after_ns:
            return '', ''
        return 'frozen_image', (
            f'the same pixels for {still_ns / 1e9:.2f} s; valid: at most '
            f'{limits.frozen_after_ns / 1e9:g} s.'
        )

    def is_resized(self, pixels: NDArray[np.uint8]) -> bool:
        """Whether a picture has another size than the one before it; ask before `look`."""
        return self._pixels is not None and self._pixels.shape != pixels.shape


def _contrast(pixels: NDArray[np.uint8]) -> float:
    """Standard deviation of the levels, the greatest of the channels."""
    return float(cv2.meanStdDev(pixels)[1].max())
