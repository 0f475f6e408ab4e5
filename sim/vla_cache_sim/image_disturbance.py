"""Disturbances of the images themselves: noise, compression, loss; for every simulator alike.

>>> disturbance = ImageDisturbance(find_condition('noise'), episode_key(seed, task, state))
>>> images = disturbance.apply(images, env.elapsed_steps)
"""

from collections.abc import Mapping, Sequence

import cv2
import numpy as np

from vla_cache_sim.conditions import Condition, Dropped, Noise

_NOISE_STREAM, _DROP_STREAM = 1, 2


class ImageDisturbance:
    """What one episode's camera does to the images."""

    def __init__(self, condition: Condition, key: Sequence[int]) -> None:
        """Start an episode.

        Args:
            condition: What disturbs; its scene parts are somebody else's.
            key: Seeds all that is random, see `conditions.episode_key`.
        """
        self._condition = condition
        self._key = tuple(key)
        self._losses = condition.dropped and LossChain(condition.dropped, self._key)
        self._arrived: dict[str, np.ndarray] | None = None

    def apply(self, images: Mapping[str, np.ndarray], step: int) -> dict[str, np.ndarray]:
        """Disturb the images of a control step; asked twice for a step, it answers the same.

        Args:
            images: Camera name -> uint8 [H, W, 3]; not changed.
            step: Control steps since the episode's start.

        Returns:
            The same cameras; never the arrays that were returned before.
        """
        if self._losses is not None and self._arrived is not None and self._losses.lost(step):
            return {name: image.copy() for name, image in self._arrived.items()}
        seen = {
            name: self._seen(image, (*self._key, _NOISE_STREAM, step, index))
            for index, (name, image) in enumerate(images.items())
        }
        if self._losses is not None:
            self._arrived = {name: image.copy() for name, image in seen.items()}
        return seen

    def _seen(self, image: np.ndarray, key: tuple[int, ...]) -> np.ndarray:
        if self._condition.noise is not None:
            image = add_noise(image, self._condition.noise, np.random.default_rng(key))
        if self._condition.jpeg_quality is not None:
            image = compress(image, self._condition.jpeg_quality)
        return image


class LossChain:
    """Which control steps lose their frame; a function of the key and the step.

        P(lost | arrived) = share / (1 - share) / burst,  P(arrived | lost) = 1 / burst

    so that a share of all steps is lost, in runs of `burst` steps on average. Step 0 arrives.
    """

    def __init__(self, dropped: Dropped, key: Sequence[int]) -> None:
        """Draw nothing yet."""
        self._rng = np.random.default_rng((*key, _DROP_STREAM))
        self._begin = min(1.0, dropped.share / (1 - dropped.share) / dropped.burst_steps)
        self._end = 1 / dropped.burst_steps
        self._lost = [False]

    def lost(self, step: int) -> bool:
        """Whether the frame of a control step is lost."""
        while len(self._lost) <= step:
            draw = self._rng.random()
            self._lost.append(draw >= self._end if self._lost[-1] else draw < self._begin)
        return self._lost[step]


def add_noise(image: np.ndarray, noise: Noise, rng: np.random.Generator) -> np.ndarray:
    """Add Gaussian noise whose variance grows with brightness; uint8 [H, W, 3] -> the same."""
    level = image.astype(np.float32)
    sigma = np.sqrt(np.float32(noise.read_levels**2) + np.float32(noise.shot_levels) * level)
    noisy = level + sigma * rng.standard_normal(image.shape, dtype=np.float32)
    return np.clip(np.rint(noisy), 0, 255).astype(np.uint8)


def compress(image: np.ndarray, quality: int) -> np.ndarray:
    """Encode as JPEG and decode; RGB uint8 [H, W, 3] -> the same."""
    _, encoded = cv2.imencode('.jpg', image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
    decoded = cv2.imdecode(encoded, cv2.IMREAD_COLOR)
    assert decoded is not None  # it has just been encoded
    return np.ascontiguousarray(decoded[..., ::-1])
