r"""From a robot's gripper to the two fingers that the policies were trained on.

    finger = trained_closed + (q - closed) (trained_open - trained_closed) / (open - closed)

LIBERO's Panda has one finger at q in [0, 0.04] m and one at [-0.04, 0] m, open at +-0.04. A real
Panda has both positive; a Robotiq has one joint, open at 0 rad and closed near 0.8 rad, which then
gives both fingers.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vla_cache_ros.core.errors import ConfigError

TRAINED_OPEN_M = (0.04, -0.04)
TRAINED_CLOSED_M = (0.0, 0.0)


@dataclass(frozen=True)
class GripperMap:
    """The gripper's joints, open and closed.

    Attributes:
        joint_names: One joint for both fingers, or one for each.
        open_position: Position of each joint when open, metres or radians.
        closed_position: The same when closed.
    """

    joint_names: tuple[str, ...]
    open_position: tuple[float, ...] = TRAINED_OPEN_M
    closed_position: tuple[float, ...] = TRAINED_CLOSED_M

    def __post_init__(self) -> None:
        """Check that every joint has two finite positions that differ.

        Raises:
            ConfigError: It has not.
        """
        count = len(self.joint_names)
        if count not in (1, 2) or len(set(self.joint_names)) != count or not all(self.joint_names):
            raise ConfigError(
                f'gripper_joint_names are {self.joint_names}; valid: one joint for both fingers, '
                'or two different ones.'
            )
        pairs = list(zip(self.open_position, self.closed_position, strict=False))
        if len(self.open_position) != count or len(self.closed_position) != count:
            raise ConfigError(
                f'gripper_open_position holds {len(self.open_position)} and '
                f'gripper_closed_position {len(self.closed_position)} positions; valid: one for '
                f'each of {", ".join(self.joint_names)}.'
            )
        if any(not math.isfinite(end) for pair in pairs for end in pair) or any(
            opened == closed for opened, closed in pairs
        ):
            raise ConfigError(
                f'gripper_open_position is {self.open_position} and gripper_closed_position '
                f'{self.closed_position}; valid: finite, and different for each joint.'
            )

    def fingers(self, positions: Sequence[float]) -> NDArray[np.float32]:
        """Where the trained gripper's fingers would be, [2], metres.

        Args:
            positions: Of the joints, in the order of their names.
        """
        return np.array([self._finger(finger, positions) for finger in (0, 1)], np.float32)

    def _finger(self, finger: int, positions: Sequence[float]) -> float:
        joint = finger % len(self.joint_names)
        closed = self.closed_position[joint]
        trained_m = TRAINED_OPEN_M[finger] - TRAINED_CLOSED_M[finger]
        # The quotient first: 1 exactly where the robot's gripper is the trained one.
        scale = trained_m / (self.open_position[joint] - closed)
        return TRAINED_CLOSED_M[finger] + (positions[joint] - closed) * scale
