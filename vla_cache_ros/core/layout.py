"""Where each token of the sequence sits, and which tokens it may attend to.

Token spans come from a model's layout object, never from constants in the code. The sequence is
[vision of camera 1][vision of camera 2]..[proprioception][text][action slots]; slot = sequence
position = RoPE position.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vla_cache_ros.core.errors import ConfigError, UnknownNameError

ATTENTION_RULES = ('all', 'vision_isolated', 'camera_isolated')


@dataclass(frozen=True)
class CameraSpan:
    """The vision tokens of one camera: a rows x cols grid of patches, row-major, from `start`."""

    name: str
    start: int
    rows: int
    cols: int

    @property
    def size(self) -> int:
        """Number of patches P."""
        return self.rows * self.cols

    @property
    def stop(self) -> int:
        """One past the camera's last slot."""
        return self.start + self.size


@dataclass(frozen=True)
class TokenLayout:
    """Spans of one sequence.

    Attributes:
        cameras: Vision spans, contiguous, in slot order. They need not begin at slot 0
            (OpenVLA puts a BOS token first).
        text: Slots (start, stop) of the instruction's own tokens, padding excluded.
        actions: Slots (start, stop) of the action slots; empty for autoregressive models.
        num_tokens: N.
        attention: 'all' (bidirectional, OpenVLA-OFT), 'vision_isolated' (vision tokens attend to
            vision tokens only) or 'camera_isolated' (vision tokens attend to their own camera's
            tokens only); all other tokens attend to everything. The isolated rules keep the
            vision tokens' K/V free of proprioception and text, so their reuse is nearer to exact.
        causal: Whether a token attends to its own and earlier positions only.
    """

    cameras: tuple[CameraSpan, ...]
    text: tuple[int, int]
    actions: tuple[int, int]
    num_tokens: int
    attention: str = 'all'
    causal: bool = False

    def __post_init__(self) -> None:
        """Check that the spans are contiguous, ordered and inside the sequence.

        Raises:
            ConfigError: They are not.
        """
        if self.attention not in ATTENTION_RULES:
            raise UnknownNameError('attention rule', self.attention, ATTENTION_RULES)
        if not self.cameras:
            raise ConfigError('a layout needs at least one camera span.')
        for left, right in zip(self.cameras, self.cameras[1:], strict=False):
            if left.stop != right.start:
                raise ConfigError(
                    f'camera spans must be contiguous: {left.name} ends at slot {left.stop}, '
                    f'{right.name} begins at {right.start}.'
                )
        for name, (start, stop) in (('text', self.text), ('actions', self.actions)):
            if not 0 <= start <= stop <= self.num_tokens:
                raise ConfigError(
                    f'{name} span ({start}, {stop}) lies outside 0..{self.num_tokens}.'
                )

    @property
    def vision(self) -> tuple[int, int]:
        """Slots (start, stop) of all vision tokens."""
        return self.cameras[0].start, self.cameras[-1].stop

    @property
    def num_vision(self) -> int:
        """Vision tokens of all cameras together."""
        return sum(camera.size for camera in self.cameras)

    @property
    def always_recomputed(self) -> NDArray[np.int64]:
        """Slots of the tokens that are never reused: everything but vision."""
        start, stop = self.vision
        return np.r_[0:start, stop : self.num_tokens].astype(np.int64)

    def visible(self) -> NDArray[np.bool_]:
        """Which key each query may attend to.

        Returns:
            [N, N] bool, True where the row's token may attend to the column's.
        """
        mask = np.ones((self.num_tokens, self.num_tokens), dtype=bool)
        start, stop = self.vision
        if self.attention != 'all':
            mask[start:stop] = False
            mask[start:stop, start:stop] = self.attention == 'vision_isolated'
            for camera in self.cameras:
                mask[camera.start : camera.stop, camera.start : camera.stop] = True
        return np.tril(mask) if self.causal else mask

    def __iter__(self) -> Iterator[CameraSpan]:
        """Iterate over the cameras."""
        return iter(self.cameras)
