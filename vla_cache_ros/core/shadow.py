r"""Shadow mode: cached actions beside the dense ones of the same observation, and when to stop.

With d_i the mean absolute difference of the executed deltas in comparison i, over the last w:

    running = mean(d_i)
    alarm:  running > alarm_budget, or a gripper command of another sign in the newest comparison
    off:    running > off_budget, after at least `least_comparisons`

A gripper that differs alarms at once: it drops what it holds. What was switched off stays off
until it is reset, because a cache that is off no longer differs and would soon look well.
"""

import math
from collections import deque
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vla_cache_ros.core.errors import ConfigError


@dataclass(frozen=True)
class Divergence:
    """How a cached chunk differs from the dense chunk of the same observation.

    Over the executed actions, in action units.

    Attributes:
        mean: Mean absolute difference of the six deltas.
        max: Greatest of them.
        gripper_flips: Actions whose gripper command has another sign.
    """

    mean: float
    max: float
    gripper_flips: int


def compare_actions(actions: NDArray[np.float32], dense: NDArray[np.float32]) -> Divergence | None:
    """Compare the actions that will be executed, [n, 7], with as many of a dense chunk.

    Returns:
        None where either holds NaN or infinity: there is no distance to speak of.
    """
    reference = dense[: len(actions)]
    if not (np.isfinite(actions).all() and np.isfinite(reference).all()):
        return None
    difference = np.abs(actions[:, :6] - reference[:, :6])
    flips = np.sign(actions[:, 6]) != np.sign(reference[:, 6])
    return Divergence(float(difference.mean()), float(difference.max()), int(flips.sum()))


@dataclass(frozen=True)
class ShadowConfig:
    """When to compare, and what is too much.

    Attributes:
        every_steps: A comparison is due every so many policy steps; 0: by `when_idle` alone.
        when_idle: Whether one is made whenever no observation waits.
        gives_way: Whether a comparison that is due waits until no observation does.
        alarm_budget: Running difference beyond which there is an alarm, action units.
        off_budget: Running difference beyond which the reuse is switched off, >= alarm_budget.
        window: w, comparisons that the running difference is taken over.
        least_comparisons: Comparisons before anything is switched off.
    """

    every_steps: int = 0
    when_idle: bool = False
    gives_way: bool = True
    alarm_budget: float = 0.04
    off_budget: float = 0.08
    window: int = 10
    least_comparisons: int = 3

    def __post_init__(self) -> None:
        """Check ranges.

        Raises:
            ConfigError: A value is out of its range.
        """
        if self.every_steps < 0 or self.window < 1 or self.least_comparisons < 1:
            raise ConfigError(
                f'every_steps is {self.every_steps}, window {self.window}, least_comparisons '
                f'{self.least_comparisons}; valid: at least 0, 1 and 1.'
            )
        if not (math.isfinite(self.off_budget) and 0 < self.alarm_budget <= self.off_budget):
            raise ConfigError(
                f'alarm_budget is {self.alarm_budget} and off_budget {self.off_budget}; valid: '
                '0 < alarm_budget <= off_budget.'
            )

    @property
    def enabled(self) -> bool:
        """Whether there is anything to compare."""
        return self.every_steps > 0 or self.when_idle


@dataclass(frozen=True)
class ShadowVerdict:
    """What follows from a comparison.

    Attributes:
        running: Mean difference over the window, action units.
        alarm: Whether somebody should look.
        off: Whether the reuse is to be switched off.
    """

    running: float
    alarm: bool
    off: bool


class Shadow:
    """Says when to compare, and judges the comparisons."""

    def __init__(self, config: ShadowConfig) -> None:
        """Start with no comparison made."""
        self.config = config
        self._since_steps = 0
        self._recent: deque[float] = deque(maxlen=config.window)
        self._is_off = False

    def reset(self) -> None:
        """Forget the comparisons; what was switched off may be on again."""
        self._since_steps = 0
        self._recent.clear()
        self._is_off = False

    def due(self, is_cached: bool, is_idle: bool) -> bool:
        """Say, once after each step, whether to compare it.

        Args:
            is_cached: Whether the step reused anything; the others are dense already.
            is_idle: Whether no newer observation waits.
        """
        self._since_steps += 1
        if not is_cached:
            return False
        is_turn = 0 < self.config.every_steps <= self._since_steps
        wanted = is_turn and (is_idle or not self.config.gives_way)
        if not wanted and not (self.config.when_idle and is_idle):
            return False
        self._since_steps = 0
        return True

    def record(self, divergence: Divergence) -> ShadowVerdict:
        """Judge by one more comparison."""
        self._recent.append(divergence.mean)
        running = math.fsum(self._recent) / len(self._recent)
        enough = len(self._recent) >= min(self.config.least_comparisons, self.config.window)
        self._is_off |= enough and running > self.config.off_budget
        alarm = self._is_off or running > self.config.alarm_budget or divergence.gripper_flips > 0
        return ShadowVerdict(running, alarm, self._is_off)
