"""From delta poses to joint targets: where the arm was sent, and where the next delta sends it.

A delta is added to the target before it, not to where the arm is measured to be. So nothing drifts
when the arm lags or sags, and "hold" means the last target. The target itself follows the arm in
two cases: at the start, and where the arm is so far from it that somebody else must have moved or
stopped it; the next delta would otherwise begin with a jump.
"""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from vla_cache_ros.core.errors import ConfigError, RobotError, UnknownNameError
from vla_cache_ros.core.twist import FRAMES
from vla_cache_ros.robot.inverse_kinematics import IkConfig, solve
from vla_cache_ros.robot.kinematics import Kinematics, Pose


@dataclass(frozen=True)
class TargetConfig:
    """Limits of joint targets.

    Attributes:
        period_s: Duration of a control step, seconds.
        delta_frame: Frame whose axes a delta is given in, from FRAMES.
        limit_margin: Distance kept from the joints' limits, radians or metres.
        max_speed: Greatest speed of a joint beside the description's own, per second.
        max_following_error: Greatest distance between a joint and its target, radians or metres.
        ik: When the tool has arrived.
    """

    period_s: float
    delta_frame: str = 'base'
    limit_margin: float = 0.02
    max_speed: float = 1.0
    max_following_error: float = 0.2
    ik: IkConfig = field(default_factory=IkConfig)

    def __post_init__(self) -> None:
        """Check the names and that limits are positive.

        Raises:
            ConfigError: A value is out of its range.
        """
        if self.delta_frame not in FRAMES:
            raise UnknownNameError('delta frame', self.delta_frame, FRAMES)
        values = (self.period_s, self.max_speed, self.max_following_error)
        if not (all(value > 0 for value in values) and self.limit_margin >= 0):
            raise ConfigError(
                'control period, joint speed and following error must be above 0 and the margin '
                f'not below; got {values} and {self.limit_margin}.'
            )


class JointTargets:
    """Keeps the arm's target; one delta moves it by one step."""

    def __init__(self, kinematics: Kinematics, config: TargetConfig) -> None:
        """Start without a target.

        Args:
            kinematics: The arm.
            config: Limits.
        """
        self.kinematics = kinematics
        self.config = config
        self._joints: NDArray[np.float64] | None = None
        self._pose: Pose | None = None

    @property
    def joints(self) -> NDArray[np.float64] | None:
        """The target, [N]; None before the first `anchor`."""
        return self._joints

    def anchor(self, measured: NDArray[np.float64]) -> None:
        """Make the arm's present place the target.

        Args:
            measured: Joints, [N].
        """
        self._joints = measured.copy()
        self._pose = self.kinematics.pose(self._joints)

    def lag(self, measured: NDArray[np.float64]) -> float:
        """Greatest distance between a joint and its target, radians or metres; 0 without one."""
        return 0.0 if self._joints is None else float(np.abs(measured - self._joints).max())

    def advance(self, displacement: NDArray[np.float64]) -> NDArray[np.float64]:
        """Move the target by one control step; a target that cannot be reached stays as it was.

        Args:
            displacement: [6], metres, then axis-angle, radians; see core/twist.py.

        Returns:
            The new target, [N]; each joint moves no further than its speed allows in one step.

        Raises:
            RobotError: Out of reach, or there is no target to start from.
        """
        if self._joints is None or self._pose is None:
            raise RobotError('no joint state has been received: where the arm is is not known.')
        target = self._displaced(self._pose, displacement)
        arm, config = self.kinematics, self.config
        reach = np.minimum(arm.max_speed, config.max_speed) * config.period_s
        # An arm that rests on its limits may leave them, but not go further.
        lower = np.minimum(arm.lower + config.limit_margin, self._joints)
        upper = np.maximum(arm.upper - config.limit_margin, self._joints)
        joints = solve(
            arm,
            self._joints,
            target,
            np.maximum(lower, self._joints - reach),
            np.minimum(upper, self._joints + reach),
            config.ik,
        )
        self._joints, self._pose = joints, target
        if config.ik.rotation_tolerance_rad >= np.pi:
            # What could not be turned now is not made up for later.
            self._pose = Pose(target.position_m, arm.pose(joints).rotation)
        return joints

    def _displaced(self, pose: Pose, displacement: NDArray[np.float64]) -> Pose:
        turn = self.kinematics.exp(displacement[3:])
        if self.config.delta_frame == 'tool':
            return Pose(pose.position_m + pose.rotation @ displacement[:3], pose.rotation @ turn)
        return Pose(pose.position_m + displacement[:3], turn @ pose.rotation)
