"""Who moves the robot while an episode is recorded: the noisy expert, or a policy in turns."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from vla_cache_ros.core.errors import ConfigError
from vla_cache_ros.core.protocols import Policy
from vla_cache_ros.core.types import Observation

Action = NDArray[np.float32]


@dataclass(frozen=True)
class NoiseConfig:
    """Noise on the executed actions, in action units (translation 1 = 0.05 m of set-point).

    Attributes:
        max_std: Each episode draws its standard deviation from [0, max_std].
        rotation_scale: Rotation noise relative to translation noise.
        correlation: rho, correlation from one control step to the next.
        burst_probability: Chance per control step that a perturbation burst begins.
        burst_steps: Shortest and longest burst, control steps.
        burst_size: Smallest and largest constant push of a burst.
        slip_probability: Chance that a burst also turns the gripper's command round.
    """

    max_std: float = 0.35
    rotation_scale: float = 0.3
    correlation: float = 0.8
    burst_probability: float = 0.012
    burst_steps: tuple[int, int] = (4, 12)
    burst_size: tuple[float, float] = (0.3, 1.0)
    slip_probability: float = 0.1


class ActionNoise:
    """Temporally correlated noise with occasional bursts; new statistics for every episode."""

    def __init__(self, config: NoiseConfig, rng: np.random.Generator) -> None:
        """Draw the episode's standard deviation."""
        self.config = config
        self._rng = rng
        std = rng.uniform(0, config.max_std)
        self._std = std * np.array([1.0] * 3 + [config.rotation_scale] * 3)
        self._noise = self._std * rng.standard_normal(6)
        self._burst = np.zeros(6)
        self._burst_steps_left = 0
        self._slips = False

    def apply(self, action: Action) -> Action:
        """The action to execute in place of `action`, clipped to [-1, 1]."""
        config, rng = self.config, self._rng
        rho = config.correlation
        fresh = self._std * rng.standard_normal(6)
        self._noise = rho * self._noise + np.sqrt(1 - rho**2) * fresh
        if self._burst_steps_left == 0 and rng.random() < config.burst_probability:
            self._burst_steps_left = int(rng.integers(*config.burst_steps, endpoint=True))
            self._burst = rng.uniform(*config.burst_size) * _random_direction(rng)
            self._burst[3:] *= config.rotation_scale
            self._slips = bool(rng.random() < config.slip_probability)
        executed = action.astype(np.float64)
        executed[:6] += self._noise
        if self._burst_steps_left > 0:
            self._burst_steps_left -= 1
            executed[:6] += self._burst
            executed[6] *= -1 if self._slips else 1
        return np.clip(executed, -1, 1).astype(np.float32)


class Driver(Protocol):
    """Who moves the robot."""

    def begin(self, rng: np.random.Generator) -> None:
        """Forget the last episode."""
        ...

    def drive(self, label: Action, observe: Callable[[], Observation]) -> tuple[Action, bool]:
        """Choose the action to execute in this control step.

        Args:
            label: The expert's action in this state.
            observe: Renders this state (once, however often it is called).

        Returns:
            The action [7], and whether it is a policy's.
        """
        ...


class ExpertDriver:
    """The expert under noise."""

    def __init__(self, noise: NoiseConfig | None = None) -> None:
        """Keep the configuration; `begin` draws from it."""
        self.noise = noise or NoiseConfig()

    def begin(self, rng: np.random.Generator) -> None:
        """Draw the episode's noise."""
        self._action_noise = ActionNoise(self.noise, rng)

    def drive(self, label: Action, observe: Callable[[], Observation]) -> tuple[Action, bool]:
        """The expert's action plus noise."""
        del observe
        return self._action_noise.apply(label), False


class DaggerDriver:
    """A policy drives for random stretches, the expert (under noise) between them.

    The last stretch ends where the expert can still finish, so that most episodes succeed.
    """

    def __init__(
        self,
        policy: Policy,
        replan_steps: int = 4,
        policy_stretch: tuple[int, int] = (8, 60),
        expert_stretch: tuple[int, int] = (4, 40),
        policy_share_of_steps: int = 160,
        noise: NoiseConfig | None = None,
    ) -> None:
        """Set the mixture.

        Args:
            policy: Whose states are to be visited.
            replan_steps: Control steps between two of its chunks; even numbers reuse the frames
                that are rendered for the dataset anyway.
            policy_stretch: Shortest and longest stretch of the policy, control steps.
            expert_stretch: The same for the expert.
            policy_share_of_steps: Control step after which the expert drives for good.
            noise: Noise while the expert drives.

        Raises:
            ConfigError: The policy's chunk is shorter than `replan_steps`.
        """
        if not 1 <= replan_steps <= policy.chunk_size:
            raise ConfigError(
                f'replan_steps is {replan_steps}; valid: 1..{policy.chunk_size}, the chunk size.'
            )
        self.policy = policy
        self.replan_steps = replan_steps
        self.policy_stretch = policy_stretch
        self.expert_stretch = expert_stretch
        self.policy_share_of_steps = policy_share_of_steps
        self.expert = ExpertDriver(noise)

    def begin(self, rng: np.random.Generator) -> None:
        """Draw who drives first."""
        self._rng = rng
        self._step = -1
        self._policy_drives = bool(rng.random() < 0.5)
        self._stretch_left = self._draw_stretch()
        self._queue: list[Action] = []
        self.policy.reset('episode')
        self.expert.begin(rng)

    def drive(self, label: Action, observe: Callable[[], Observation]) -> tuple[Action, bool]:
        """The action of whoever drives in this stretch."""
        self._step += 1
        if self._stretch_left == 0:
            self._policy_drives = not self._policy_drives
            self._stretch_left = self._draw_stretch()
            self._queue = []  # a chunk computed before the expert's stretch is stale
        self._stretch_left -= 1
        if not self._policy_drives or self._step >= self.policy_share_of_steps:
            return self.expert.drive(label, observe)
        if not self._queue:
            chunk = self.policy.act(observe())
            self._queue = list(chunk.actions[: self.replan_steps])
        return np.clip(self._queue.pop(0), -1, 1).astype(np.float32), True

    def _draw_stretch(self) -> int:
        bounds = self.policy_stretch if self._policy_drives else self.expert_stretch
        # Even lengths keep the policy's chunks on the control steps that are rendered anyway.
        return max(2, int(self._rng.integers(*bounds, endpoint=True)) // 2 * 2)


def _random_direction(rng: np.random.Generator) -> NDArray[np.float64]:
    direction = rng.standard_normal(6)
    return direction / np.linalg.norm(direction[:3])
