"""A policy's delta pose per control step as a velocity in SI units.

    v = f s_t d_t        w = f s_r d_r

d_t, d_r: the action's translation and rotation, the rotation as an axis-angle vector; s_t metres
and s_r radians per unit; f control steps per second. A robot that moves with v and turns with w
for one period 1 / f is displaced by s_t d_t and turned by exp([s_r d_r]x): the delta, once.

The delta's axes are those of a frame, the robot's base or its tool; both act at the tool's point.
A velocity says its frame by name and is not rotated here. For a pose (p, R) in the base frame:

    base:  p' = p + s_t d_t      R' = exp([s_r d_r]x) R
    tool:  p' = p + R s_t d_t    R' = R exp([s_r d_r]x)
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vla_cache_ros.core.errors import ConfigError, ObservationError

FRAMES = ('base', 'tool')
"""Frames whose axes a delta may be given in."""


@dataclass(frozen=True)
class DeltaScale:
    """What one unit of an action is worth on this robot.

    Attributes:
        translation_m: Metres per unit of x, y, z.
        rotation_rad: Radians per unit of rx, ry, rz.
        control_frequency_hz: Control steps per second; a delta is executed for one of them.
    """

    translation_m: float
    rotation_rad: float
    control_frequency_hz: float

    def __post_init__(self) -> None:
        """Check that all are positive.

        Raises:
            ConfigError: One is not.
        """
        values = (self.translation_m, self.rotation_rad, self.control_frequency_hz)
        if not all(math.isfinite(value) and value > 0 for value in values):
            raise ConfigError(
                f'position_scale_m, rotation_scale_rad and control_frequency_hz are {values}; '
                'valid: finite and above 0.'
            )

    @property
    def period_s(self) -> float:
        """Duration of one control step, seconds."""
        return 1 / self.control_frequency_hz

    def displacement(self, action: NDArray[np.floating]) -> NDArray[np.float64]:
        """Where one control step leads.

        Args:
            action: [6] or [7], the first six being the delta pose.

        Returns:
            [6]: translation, metres, then rotation as an axis-angle vector, radians.

        Raises:
            ObservationError: It holds NaN or infinity, or fewer than six numbers.
        """
        delta = np.asarray(action, dtype=np.float64)[:6]
        if delta.shape != (6,) or not np.isfinite(delta).all():
            raise ObservationError(
                f'a delta pose is six finite numbers; got {delta.tolist()}: nothing is sent.'
            )
        return delta * np.repeat((self.translation_m, self.rotation_rad), 3)

    def twist(self, action: NDArray[np.floating]) -> NDArray[np.float64]:
        """The velocity that executes an action within one control step.

        Returns:
            [6]: linear, metres per second, then angular, radians per second.

        Raises:
            ObservationError: As in `displacement`.
        """
        return self.control_frequency_hz * self.displacement(action)


class TwistStream:
    """Hands out the velocity of the newest action for as long as its control step lasts.

    A receiver holds what it was told until it is told something else. The last value within the
    control step is therefore scaled by what is left of it, so that

        sum over the values u_k handed out, each held for one publish period h:  h u_k = T u

    for a control step T, whether or not h divides it. A newer action replaces the old one at once;
    what was left of the old one is dropped, so that the speed is never above the commanded one.
    """

    def __init__(self, period_s: float, publish_period_s: float) -> None:
        """Start at rest.

        Args:
            period_s: Duration of a control step, seconds.
            publish_period_s: How long each value is held, seconds.

        Raises:
            ConfigError: One is not positive.
        """
        if not (period_s > 0 and publish_period_s > 0):
            raise ConfigError(
                f'control step and publish period are {period_s} and {publish_period_s} s; '
                'valid: above 0.'
            )
        self.period_s = period_s
        self.publish_period_s = publish_period_s
        self._twist = np.zeros(6)
        self._end_s = -math.inf

    def load(self, twist: NDArray[np.float64], now_s: float) -> None:
        """Begin a control step.

        Args:
            twist: [6], finite.
            now_s: Seconds of a monotonic clock: a jump of the wall's clock must not lengthen it.
        """
        self._twist = twist
        self._end_s = now_s + self.period_s

    def stop(self) -> None:
        """Drop what is left of the control step."""
        self._end_s = -math.inf

    def sample(self, now_s: float) -> NDArray[np.float64]:
        """The velocity to hold for the next publish period, [6]; zero once the step is over."""
        share = min(1.0, (self._end_s - now_s) / self.publish_period_s)
        # A share of rounding errors is none: it would be a last value of nearly nothing.
        return share * self._twist if share > 1e-6 else np.zeros(6)
