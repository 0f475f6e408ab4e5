"""Proprioception as the network sees it: continuous rotation, scaled to about unit size."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

PROPRIOCEPTION_SIZE = 11


@dataclass(frozen=True)
class ProprioceptionScale:
    """Offsets and scales of the training data, part of the checkpoint.

    Attributes:
        position_mean_m: Mean end-effector position, [3].
        position_std_m: Its standard deviation, [3].
        gripper_open_m: Finger joint position when fully open, metres.
    """

    position_mean_m: tuple[float, float, float]
    position_std_m: tuple[float, float, float]
    gripper_open_m: float = 0.04

    def __post_init__(self) -> None:
        """Take lists, as JSON gives them, for tuples."""
        for name in ('position_mean_m', 'position_std_m'):
            object.__setattr__(self, name, tuple(getattr(self, name)))

    @classmethod
    def fit(cls, positions_m: NDArray[np.float32]) -> 'ProprioceptionScale':
        """Mean and standard deviation of positions [F, 3], the latter at least 1 cm."""
        x, y, z = positions_m.mean(0).tolist()
        sx, sy, sz = positions_m.std(0).clip(min=0.01).tolist()
        return cls((x, y, z), (sx, sy, sz))

    def normalise(self, state: NDArray[np.float32]) -> NDArray[np.float32]:
        """Scale raw states.

        The rotation becomes the first two columns of its matrix, which has no jump; axis-angle
        flips its sign near pi, where a gripper that points downwards sits.

        Args:
            state: [..., 9]: position (3), quaternion xyzw (4), finger positions (2).

        Returns:
            [..., 11]: position (3), rotation (6), finger positions (2).
        """
        position = (state[..., :3] - self.position_mean_m) / self.position_std_m
        x, y, z, w = np.moveaxis(state[..., 3:7], -1, 0)
        first = (1 - 2 * (y * y + z * z), 2 * (x * y + z * w), 2 * (x * z - y * w))
        second = (2 * (x * y - z * w), 1 - 2 * (x * x + z * z), 2 * (y * z + x * w))
        gripper = state[..., 7:9] / self.gripper_open_m
        rotation = np.stack((*first, *second), axis=-1)
        return np.concatenate((position, rotation, gripper), axis=-1).astype(np.float32)
