"""What the evaluation needs of a simulator, wherever it runs."""

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from vla_cache_ros.core.protocols import Policy


class Environment(Protocol):
    """A simulated robot; the environments of vla_cache_sim satisfy it.

    An action is [7]: six end-effector deltas and the gripper (-1 opens, +1 closes), in the units
    of ActionChunk for the simulator's robot. An observation maps each camera's name to an upright
    RGB image, uint8 [H, W, 3], and holds ee_position_m [3], ee_quaternion_xyzw [4] and
    gripper_position_m [2].
    """

    @property
    def instruction(self) -> str:
        """The present task in words."""
        ...

    @property
    def control_frequency_hz(self) -> float:
        """Actions per second of simulated time."""
        ...

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Start the episode and return its first observation.

        Args:
            seed: Seeds whatever is random.
            options: 'task' and 'init_state', indices; 'condition', a name, where the episode is to
                be disturbed.
        """
        ...

    def advance(self, action: np.ndarray) -> tuple[float, bool, bool, dict[str, Any]]:
        """Advance one control step without rendering: reward, success, truncated, info."""
        ...

    def observe(self) -> dict[str, np.ndarray]:
        """Render the present state."""
        ...

    def close(self) -> None:
        """Free the simulator."""
        ...


EnvironmentFactory = Callable[[str, int, int], Environment]
"""Builds a simulator from (suite, task, image_size_px); picklable."""

PolicyFactory = Callable[[str], Policy]
"""Builds the policy of a reuse preset ('off', 'safe', ..); picklable."""
