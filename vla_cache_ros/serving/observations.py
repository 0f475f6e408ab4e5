"""From the words of a protocol to an Observation."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vla_cache_ros.core.errors import ObservationError
from vla_cache_ros.core.types import Observation, Proprioception

STATE_SIZE = 8
MAX_INSTRUCTION_CHARACTERS = 2000
NO_STATE = Proprioception(
    np.zeros(3, np.float32), np.array([0, 0, 0, 1], np.float32), np.zeros(2, np.float32)
)

ORIENTATIONS: Mapping[str, Callable[[NDArray[np.uint8]], NDArray[np.uint8]]] = {
    'upright': lambda image: image,
    # OpenGL's bottom-up rows rotated by 180 degrees, as in LIBERO's published clients.
    'mirrored': lambda image: image[:, ::-1],
    'bottom_up': lambda image: image[::-1],
}
"""How clients hold their images -> how to make them upright."""


@dataclass(frozen=True)
class Conventions:
    """What the policy needs and how clients send it.

    Attributes:
        cameras: The policy's cameras.
        images: One of ORIENTATIONS.
        needs_state: Whether the policy reads the arm's state; if not, it may be left out.
        image_side_px: Longest side of an image.
    """

    cameras: tuple[str, ...]
    images: str = 'upright'
    needs_state: bool = True
    image_side_px: int = 2048

    def observation(
        self, wire: Mapping[str, Any], keys: Mapping[str, str], state_key: str, words_key: str
    ) -> Observation:
        """Read an observation.

        Args:
            wire: Key -> value, decoded.
            keys: Camera name -> its key.
            state_key: Key of the arm's state: position [3] in metres, rotation vector [3],
                finger positions [2].
            words_key: Key of the instruction.

        Raises:
            ObservationError: Something is missing or cannot be used; the message has the keys.
        """
        words = wire.get(words_key)
        if not isinstance(words, str) or not 0 < len(words) <= MAX_INSTRUCTION_CHARACTERS:
            raise ObservationError(
                f'{words_key!r} must be the task in words, of at most '
                f'{MAX_INSTRUCTION_CHARACTERS} characters; got {words!r:.60}.'
            )
        return Observation(
            {name: self._image(wire, keys.get(name, name)) for name in self.cameras},
            self._proprioception(wire.get(state_key), state_key),
            words,
            time.time_ns(),
        )

    def _image(self, wire: Mapping[str, Any], key: str) -> NDArray[np.uint8]:
        image = wire.get(key)
        if image is None:
            raise ObservationError(
                f'{key!r} is missing: the policy needs the camera{"s" * (len(self.cameras) > 1)} '
                f'{", ".join(self.cameras)}.'
            )
        if (
            not isinstance(image, np.ndarray)
            or image.dtype != np.uint8
            or image.ndim != 3
            or image.shape[2] != 3
            or max(image.shape) > self.image_side_px
        ):
            got = (
                f'{image.dtype} {list(image.shape)}'
                if isinstance(image, np.ndarray)
                else type(image).__name__
            )
            raise ObservationError(
                f'{key!r} is {got}; valid: an RGB image, uint8 [H, W, 3], of at most '
                f'{self.image_side_px} pixels a side.'
            )
        return np.ascontiguousarray(ORIENTATIONS[self.images](image))

    def _proprioception(self, state: object, key: str) -> Proprioception:
        if state is None and not self.needs_state:
            return NO_STATE
        if state is None:
            raise ObservationError(
                f'{key!r} is missing: the policy reads the state of the arm, position [3], '
                'rotation vector [3] and finger positions [2].'
            )
        numbers = _numbers(state)
        if numbers is None or numbers.shape != (STATE_SIZE,) or not np.isfinite(numbers).all():
            raise ObservationError(
                f'{key!r} must be {STATE_SIZE} finite numbers: position [3] in metres, rotation '
                'vector [3] in radians, finger positions [2] in metres.'
            )
        position_m, gripper_m = (x.astype(np.float32) for x in (numbers[:3], numbers[6:]))
        return Proprioception(position_m, to_quaternion(numbers[3:6]), gripper_m)


def to_quaternion(rotation_vector: NDArray[np.floating]) -> NDArray[np.float32]:
    """Quaternion x, y, z, w of a rotation vector.

    With the angle a = |v|:  q = (v sin(a / 2) / a, cos(a / 2)). Angles beyond pi, which
    robosuite's conversion gives where w < 0, come back with w < 0: no sign is lost.
    """
    angle = np.linalg.norm(rotation_vector)
    # numpy's sinc(x) is sin(pi x) / (pi x), and finite at 0.
    scale = 0.5 * np.sinc(angle / (2 * np.pi))
    return np.append(scale * rotation_vector, np.cos(angle / 2)).astype(np.float32)


def _numbers(value: object) -> NDArray[np.float64] | None:
    if isinstance(value, np.ndarray) and value.dtype.kind in 'iuf':
        return value.astype(np.float64)
    if isinstance(value, list | tuple) and all(isinstance(x, int | float) for x in value):
        return np.array([float(x) if abs(x) < 1e9 else np.nan for x in value])
    return None
