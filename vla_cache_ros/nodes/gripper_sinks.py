"""The ways of driving a gripper that knows open and closed: a trajectory, or an action.

Each is told when something changes, and says whether it got through; until then it is told again.
"""

import importlib
import time
from collections.abc import Callable
from typing import Any, Protocol

from rclpy.action.client import ActionClient
from rclpy.duration import Duration
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

from vla_cache_ros.core.errors import ConfigError
from vla_cache_ros.nodes import qos
from vla_cache_ros.nodes.arm_sinks import topic_name
from vla_cache_ros.nodes.managed_node import ManagedNode
from vla_cache_ros.nodes.parameter_tables.command_sink import SinkParameters

ACTIONS = {
    'gripper_command': 'GripperCommand',
    'parallel_gripper_command': 'ParallelGripperCommand',
}
"""Kind of gripper -> its action in control_msgs."""

ANSWER_TIMEOUT_S = 1.0
"""Wall time after which a goal without an answer counts as lost."""


class GripperSink(Protocol):
    """What drives a gripper."""

    def send(self, close: bool) -> bool:
        """Tell it to close or to open.

        Returns:
            Whether it is on its way.
        """
        ...

    def has_lost(self) -> bool:
        """Whether what was sent last was refused, or not answered in time. Says so once."""
        ...


def make_gripper(node: ManagedNode, parameters: SinkParameters) -> GripperSink | None:
    """Build the gripper that the parameters choose; None for none.

    Raises:
        ConfigError: Names and positions do not match, or control_msgs is not installed.
    """
    if parameters.gripper == 'none':
        return None
    names = parameters.gripper_joint_names
    opened, closed = parameters.gripper_open_position, parameters.gripper_closed_position
    if not len(names) == len(opened) == len(closed) or '' in names:
        raise ConfigError(
            f'{len(names)} gripper_joint_names with {len(opened)} open and {len(closed)} closed '
            'positions; valid: a name and one of each for every joint.'
        )
    if parameters.gripper == 'joint_trajectory':
        return TrajectoryGripper(node, parameters)
    return ActionGripper(node, parameters)


class TrajectoryGripper:
    """A gripper behind a joint_trajectory_controller.

    Publishes:
        gripper_controller/joint_trajectory (trajectory_msgs/JointTrajectory) of one point.
    """

    TOPIC = 'gripper_controller/joint_trajectory'

    def __init__(self, node: ManagedNode, parameters: SinkParameters) -> None:
        """Create the publisher."""
        self._node = node
        self._settings = parameters
        self._publisher = node.publisher(
            JointTrajectory, topic_name(self.TOPIC, parameters), qos.command()
        )

    def send(self, close: bool) -> bool:
        """Publish; it counts as sent when a controller listens."""
        message = JointTrajectory()
        message.header.stamp = self._node.get_clock().now().to_msg()
        message.joint_names = list(self._settings.gripper_joint_names)
        message.points = [
            JointTrajectoryPoint(
                positions=_positions(self._settings, close),
                time_from_start=Duration(seconds=self._settings.gripper_travel_time_s).to_msg(),
            )
        ]
        self._publisher.publish(message)
        return self._settings.dry_run or self._publisher.get_subscription_count() > 0

    def has_lost(self) -> bool:
        """Never: a reliable topic brings it."""
        return False


class ActionGripper:
    """A gripper behind an action of control_msgs."""

    def __init__(
        self,
        node: ManagedNode,
        parameters: SinkParameters,
        make_client: Callable[..., Any] = ActionClient,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Create the action client.

        Args:
            node: The node that sends.
            parameters: Its parameters.
            make_client: Stands in for rclpy's client in tests.
            clock: Seconds, monotonic; injected in tests.

        Raises:
            ConfigError: control_msgs is not installed, or too old for the action.
        """
        self._node = node
        self._settings = parameters
        self._clock = clock
        self._action = _action_type(parameters.gripper)
        self._client = node.own(
            make_client(node, self._action, parameters.gripper_action),
            lambda client: client.destroy(),
        )
        self._goal = 0  # number of the newest goal: answers to older ones say nothing any more
        self._asked_s: float | None = None
        self._is_lost = False

    def send(self, close: bool) -> bool:
        """Send a goal; a newer one replaces the one before it."""
        if self._settings.dry_run:
            self._node.get_logger().info(f'dry run: gripper {"closes" if close else "opens"}')
            return True
        if not self._client.server_is_ready():
            self._node.get_logger().warning(
                f'gripper: no action server {self._settings.gripper_action}; '
                'see `ros2 action list`.',
                throttle_duration_sec=5.0,
            )
            return False
        self._goal += 1
        number = self._goal
        self._asked_s = self._clock()
        self._is_lost = False
        answer = self._client.send_goal_async(self._message(close))
        answer.add_done_callback(lambda done: self._on_answer(number, done))
        return True

    def has_lost(self) -> bool:
        """Whether the newest goal was refused, or not answered in time."""
        if self._asked_s is not None and self._clock() - self._asked_s > ANSWER_TIMEOUT_S:
            self._lose('was not answered')
        is_lost, self._is_lost = self._is_lost, False
        return is_lost

    def _message(self, close: bool) -> Any:
        goal = self._action.Goal()
        positions, effort = _positions(self._settings, close), self._settings.gripper_max_effort
        if self._settings.gripper == 'gripper_command':
            goal.command.position = positions[0]
            goal.command.max_effort = effort
            return goal
        goal.command.name = list(self._settings.gripper_joint_names)
        goal.command.position = positions
        if effort > 0:
            goal.command.effort = [effort] * len(positions)
        return goal

    def _on_answer(self, number: int, done: Any) -> None:
        if number != self._goal:
            return
        self._asked_s = None
        handle = None if done.exception() else done.result()
        if handle is None or not handle.accepted:
            self._lose('was refused')

    def _lose(self, what: str) -> None:
        self._asked_s = None
        self._is_lost = True
        self._node.get_logger().warning(
            f'gripper: a goal for {self._settings.gripper_action} {what}; it is sent again.',
            throttle_duration_sec=5.0,
        )


def _positions(parameters: SinkParameters, close: bool) -> list[float]:
    chosen = parameters.gripper_closed_position if close else parameters.gripper_open_position
    return list(chosen)


def _action_type(kind: str) -> Any:
    name = ACTIONS[kind]
    try:
        return getattr(importlib.import_module('control_msgs.action'), name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f'gripper {kind} needs control_msgs with {name} ({error}): '
            'apt install ros-$ROS_DISTRO-control-msgs, or choose gripper joint_trajectory.'
        ) from error
