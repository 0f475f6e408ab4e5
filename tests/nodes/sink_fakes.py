"""What stands around a command sink in tests: a guard, MoveIt Servo, a joint controller."""

import time
from pathlib import Path

import numpy as np
from geometry_msgs.msg import TwistStamped
from rclpy.node import Node
from rclpy.parameter import Parameter
from scipy.spatial.transform import Rotation
from sensor_msgs.msg import JointState
from std_msgs.msg import String
from trajectory_msgs.msg import JointTrajectory
from vla_cache_interfaces.msg import ActionChunk as ActionChunkMessage
from vla_cache_interfaces.msg import Heartbeat

from vla_cache_ros.core.types import ActionChunk
from vla_cache_ros.nodes import qos
from vla_cache_ros.nodes.chunk_messages import chunk_to_message
from vla_cache_ros.nodes.conversions import stamp_to_ns
from vla_cache_ros.nodes.running import steady_timer

ROBOTS = Path(__file__).parents[1] / 'robot'
SEVEN = ROBOTS / 'seven_joints.urdf'
READY = [0.0, -0.785, 0.0, -2.356, 0.0, 1.571, 0.785]
BEAT_S = 0.02


def overrides(**values) -> list[Parameter]:
    return [Parameter(name, value=value) for name, value in values.items()]


class FakeGuard(Node):
    """Beats, and sends what it is told to."""

    def __init__(self, **node_arguments) -> None:
        super().__init__('command_guard', **node_arguments)
        self.state = 'active'
        self.rate_hz = 20.0
        self.beats = self.create_publisher(Heartbeat, 'command_guard/heartbeat', qos.heartbeat())
        self.commands = self.create_publisher(ActionChunkMessage, 'vla/action', qos.command())
        steady_timer(self, BEAT_S, self.beat)

    def beat(self) -> None:
        if self.state != 'dead':
            self.beats.publish(Heartbeat(node='command_guard', state=self.state))

    def send(self, *numbers: float, gripper: float = -1.0, age_s: float = 0.0) -> int:
        """Publish a command of so many first numbers; returns its stamp."""
        action = np.zeros((1, 7), np.float32)
        action[0, : len(numbers)] = numbers
        action[0, 6] = gripper
        return self.send_actions(action, age_s)

    def send_actions(self, actions: np.ndarray, age_s: float = 0.0) -> int:
        stamp_ns = self.get_clock().now().nanoseconds - round(age_s * 1e9)
        self.send_at(actions, stamp_ns)
        return stamp_ns

    def send_at(self, actions: np.ndarray, stamp_ns: int) -> None:
        self.commands.publish(
            chunk_to_message(ActionChunk(actions, stamp_ns), self.rate_hz, stamp_ns)
        )


class FakeServo(Node):
    """Moves by the newest twist in every tick of its own, and halts after 0.1 s of silence."""

    PERIOD_S = 0.002
    TIMEOUT_S = 0.1

    def __init__(self) -> None:
        super().__init__('servo_node')
        self.received: list[tuple[float, TwistStamped]] = []
        self.position_m = np.zeros(3)
        self.orientation = Rotation.identity()
        self.create_subscription(TwistStamped, 'servo_node/delta_twist_cmds', self._on_twist, 10)
        steady_timer(self, self.PERIOD_S, self._tick)

    @property
    def twists(self) -> np.ndarray:
        """All that came, [messages, 6]."""
        return np.array([to_array(message) for _, message in self.received]).reshape(-1, 6)

    def _on_twist(self, message: TwistStamped) -> None:
        self.received.append((time.monotonic(), message))

    def _tick(self) -> None:
        if not self.received:
            return
        message = self.received[-1][1]
        age_ns = self.get_clock().now().nanoseconds - stamp_to_ns(message.header.stamp)
        if age_ns < self.TIMEOUT_S * 1e9:
            twist = to_array(message)
            self.position_m = self.position_m + twist[:3] * self.PERIOD_S
            self.orientation = Rotation.from_rotvec(twist[3:] * self.PERIOD_S) * self.orientation


class FakeController(Node):
    """Goes to each target at once, unless it is blocked, and says where it is at 100 Hz."""

    def __init__(self, names: list[str], positions: list[float]) -> None:
        super().__init__('joint_trajectory_controller')
        self.names = names
        self.positions = list(positions)
        self.targets: list[JointTrajectory] = []
        self.is_blocked = False
        self.is_silent = False
        self.create_subscription(
            JointTrajectory, 'joint_trajectory_controller/joint_trajectory', self._on_target, 10
        )
        self.states = self.create_publisher(JointState, 'joint_states', qos.state())
        self.descriptions = self.create_publisher(String, 'robot_description', qos.latched())
        steady_timer(self, 0.01, self._tick)

    def _on_target(self, message: JointTrajectory) -> None:
        self.targets.append(message)
        if not self.is_blocked:
            self.positions = list(message.points[-1].positions)

    def _tick(self) -> None:
        if self.is_silent:
            return
        # In another order than the chain's, with a joint that is not the arm's.
        message = JointState(
            name=['finger_joint1', *self.names[::-1]], position=[0.02, *self.positions[::-1]]
        )
        message.header.stamp = self.get_clock().now().to_msg()
        self.states.publish(message)


def to_array(message: TwistStamped) -> np.ndarray:
    linear, angular = message.twist.linear, message.twist.angular
    return np.array([linear.x, linear.y, linear.z, angular.x, angular.y, angular.z])
