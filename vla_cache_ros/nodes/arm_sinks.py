"""The two ways of driving an arm: velocities for MoveIt Servo, targets for a joint controller.

An arm sink takes one delta per control step, and stops the arm when it is told to. Whether a delta
is to be taken at all is not its business (core/command_gate.py). Times are the monotonic clock's:
a jump of the wall's clock must not lengthen a motion.
"""

import time
from typing import Protocol

import numpy as np
from geometry_msgs.msg import TwistStamped
from numpy.typing import NDArray
from rclpy.duration import Duration
from sensor_msgs.msg import JointState
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

from vla_cache_ros.core.errors import RobotError
from vla_cache_ros.core.twist import DeltaScale, TwistStream
from vla_cache_ros.nodes import qos
from vla_cache_ros.nodes.managed_node import ManagedNode
from vla_cache_ros.nodes.parameter_tables.command_sink import SinkParameters
from vla_cache_ros.nodes.robot_description import DescribedArm
from vla_cache_ros.robot.inverse_kinematics import IkConfig
from vla_cache_ros.robot.joint_targets import JointTargets, TargetConfig


class RefusedError(RobotError):
    """A delta that the arm does not take.

    Attributes:
        reason: In one word, for counting.
    """

    def __init__(self, reason: str, message: str) -> None:
        """Say why."""
        super().__init__(message)
        self.reason = reason


class ArmSink(Protocol):
    """What drives an arm."""

    def take(self, action: NDArray[np.floating]) -> None:
        """Execute a command's delta within one control step.

        Raises:
            RefusedError: It cannot; the arm then rests.
        """
        ...

    def stop(self) -> None:
        """Bring the arm to rest. Idempotent."""
        ...

    def start(self) -> None:
        """Begin, at activation: forget what was before."""
        ...

    def finish(self) -> None:
        """Publish nothing any more, from deactivation on."""
        ...


class NoArmSink:
    """Drives no arm: the gripper alone."""

    def take(self, action: NDArray[np.floating]) -> None:
        """Do nothing."""

    def stop(self) -> None:
        """Do nothing."""

    def start(self) -> None:
        """Do nothing."""

    def finish(self) -> None:
        """Do nothing."""


class TwistSink:
    """Velocities, published again until the control step is over, then zero until the next one.

    Publishes:
        servo_node/delta_twist_cmds (geometry_msgs/TwistStamped), stamped when sent. The servo
            halts by itself after its incoming_command_timeout without one.
    """

    TOPIC = 'servo_node/delta_twist_cmds'

    def __init__(self, node: ManagedNode, parameters: SinkParameters, scale: DeltaScale) -> None:
        """Create publisher and timer."""
        self._node = node
        self._frame_id = parameters.frame_id
        self._scale = scale
        publish_period_s = 1 / parameters.publish_frequency_hz
        self._stream = TwistStream(scale.period_s, publish_period_s)
        self._publisher = node.publisher(
            TwistStamped, topic_name(self.TOPIC, parameters), qos.command()
        )
        self._timer = node.timer(publish_period_s, self._publish)
        self._timer.cancel()

    def start(self) -> None:
        """Begin to publish."""
        self._stream.stop()
        self._timer.reset()

    def take(self, action: NDArray[np.floating]) -> None:
        """Publish its velocity at once, then every publish period for one control step."""
        self._stream.load(self._scale.twist(action), time.monotonic())
        self._timer.reset()  # the publish periods begin with the control step
        self._publish()

    def stop(self) -> None:
        """Publish zero."""
        self._stream.stop()
        self._publish()

    def finish(self) -> None:
        """Cancel the timer."""
        self._timer.cancel()

    def _publish(self) -> None:
        twist = self._stream.sample(time.monotonic())
        message = TwistStamped()
        message.header.stamp = self._node.get_clock().now().to_msg()
        message.header.frame_id = self._frame_id
        linear, angular = message.twist.linear, message.twist.angular
        linear.x, linear.y, linear.z, angular.x, angular.y, angular.z = twist.tolist()
        self._publisher.publish(message)


class JointTrajectorySink:
    """Joint targets, each one control step ahead: without the next one the arm stops there.

    "Hold" is the last target, which the arm reaches within one control step: a motion that has
    begun is finished, and neither extended nor taken back.

    Subscribes:
        joint_states (sensor_msgs/JointState), robot_description (std_msgs/String).
    Publishes:
        joint_trajectory_controller/joint_trajectory (trajectory_msgs/JointTrajectory) of one
            point, stamped when sent: the controller drops one that arrives a control step late.
    """

    TOPIC = 'joint_trajectory_controller/joint_trajectory'

    def __init__(self, node: ManagedNode, parameters: SinkParameters, scale: DeltaScale) -> None:
        """Create publisher and subscriptions.

        Raises:
            ConfigError: A value is out of its range.
            RobotError: The file is no description with that chain.
        """
        self._node = node
        self._settings = parameters
        self._scale = scale
        self._config = TargetConfig(
            period_s=scale.period_s,
            delta_frame=parameters.delta_frame,
            limit_margin=parameters.joint_limit_margin_rad,
            max_speed=parameters.max_joint_speed_rad_s,
            max_following_error=parameters.max_following_error_rad,
            ik=IkConfig(
                parameters.position_tolerance_m,
                parameters.rotation_tolerance_rad,
                parameters.rotation_weight_m,
            ),
        )
        self._arm = DescribedArm(node, parameters)
        self._targets: JointTargets | None = None
        self._taken_s = -np.inf
        self._state: JointState | None = None
        self._state_s = -np.inf
        node.subscription(JointState, 'joint_states', self._on_state, qos.state())
        self._publisher = node.publisher(
            JointTrajectory, topic_name(self.TOPIC, parameters), qos.command()
        )

    @property
    def problem(self) -> str:
        """Why there are no kinematics yet, in words; empty when there are."""
        return self._arm.problem

    def start(self) -> None:
        """Begin where the arm is, with the first command."""

    def take(self, action: NDArray[np.floating]) -> None:
        """Publish the target that a delta leads to; a null one repeats the last target."""
        displacement = self._scale.displacement(action)
        targets, measured = self._started(), self._measured()
        if targets.joints is None or self._paused():
            targets.anchor(measured)
        self._taken_s = time.monotonic()
        lag = targets.lag(measured)
        if lag > self._config.max_following_error:
            targets.anchor(measured)
            raise RefusedError(
                'not_following',
                f'a joint is {lag:.3f} rad from its target, more than max_following_error_rad '
                f'{self._config.max_following_error:g}: blocked, moved by somebody else, or its '
                'controller is not active. Targets begin anew where the arm is.',
            )
        if displacement.any():
            try:
                targets.advance(displacement)
            except RobotError as error:
                raise RefusedError('out_of_reach', str(error)) from error
        self._publish(targets)

    def stop(self) -> None:
        """Repeat the last target, unless it is so old that the arm may be elsewhere by now."""
        targets = self._targets
        if targets is not None and targets.joints is not None and not self._paused():
            self._publish(targets)

    def finish(self) -> None:
        """Forget the target: at the next activation the arm may be elsewhere."""
        self._targets = None

    def _paused(self) -> bool:
        """Whether commands have ceased for so long that the last target says nothing any more."""
        return time.monotonic() - self._taken_s > self._settings.command_timeout_s

    def _on_state(self, message: JointState) -> None:
        arm = self._arm.kinematics
        # Grippers publish joint states of their own on the same topic.
        if arm is not None and not set(arm.joint_names).isdisjoint(message.name):
            self._state, self._state_s = message, time.monotonic()

    def _started(self) -> JointTargets:
        if self._targets is None:
            if self._arm.kinematics is None:
                raise RefusedError('no_description', self._arm.problem)
            self._targets = JointTargets(self._arm.kinematics, self._config)
        return self._targets

    def _measured(self) -> NDArray[np.float64]:
        """Where the arm is, [N]."""
        age_s = time.monotonic() - self._state_s
        if self._state is None or age_s > self._settings.state_timeout_s:
            raise RefusedError(
                'no_state',
                f'the newest joint state is {age_s:.2f} s old; valid: state_timeout_s '
                f'{self._settings.state_timeout_s:g} s. Is the joint_state_broadcaster active?',
            )
        assert self._arm.kinematics is not None  # _started() came first
        try:
            return self._arm.kinematics.ordered(self._state.name, self._state.position)
        except RobotError as error:
            raise RefusedError('bad_state', str(error)) from error

    def _publish(self, targets: JointTargets) -> None:
        assert targets.joints is not None  # callers checked
        message = JointTrajectory()
        message.header.stamp = self._node.get_clock().now().to_msg()
        message.joint_names = list(targets.kinematics.joint_names)
        message.points = [
            JointTrajectoryPoint(
                positions=targets.joints.tolist(),
                time_from_start=Duration(seconds=self._config.period_s).to_msg(),
            )
        ]
        self._publisher.publish(message)


def topic_name(topic: str, parameters: SinkParameters) -> str:
    """Where a message goes: to the robot, or in a dry run beside it."""
    return f'~/dry_run/{topic}' if parameters.dry_run else topic
