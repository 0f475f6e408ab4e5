"""The only way between two DDS domains, for one graph in two of them; stopped, it is a cut cable.

    python benchmarks/node_graph/domain_relay.py ROBOT_DOMAIN POLICY_DOMAIN --ros-args

Sensors and instruction go from the robot's domain to the policy's, chunks, heartbeats and reports
back. It needs no privileges, unlike network namespaces.
"""

import sys
import threading
from typing import Any

import rclpy
from geometry_msgs.msg import PoseStamped
from rclpy.context import Context
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from sensor_msgs.msg import Image, JointState
from std_msgs.msg import String
from vla_cache_interfaces.msg import ActionChunk, Heartbeat, StepReport

from vla_cache_ros.nodes import qos

TO_POLICY = (
    (Image, 'camera/agentview/image_raw', qos.frame),
    (Image, 'camera/wrist/image_raw', qos.frame),
    (JointState, 'joint_states', qos.state),
    (PoseStamped, 'ee_pose', qos.state),
    (String, 'vla/instruction', qos.latched),
    (ActionChunk, 'vla/committed', qos.command),
)
TO_ROBOT = (
    (ActionChunk, 'vla/action_chunk', qos.command),
    (Heartbeat, 'policy_node/heartbeat', qos.heartbeat),
    (StepReport, 'policy_node/step_report', qos.report),
)


def relay(table: Any, source: Node, target: Node) -> None:
    """Pass on what comes on some topics."""
    for kind, topic, profile in table:
        publisher = target.create_publisher(kind, topic, profile())
        source.create_subscription(kind, topic, publisher.publish, profile())


def main() -> int:
    """Relay until told to stop."""
    nodes = []
    for domain in sys.argv[1:3]:
        context = Context()
        rclpy.init(context=context, domain_id=int(domain))
        nodes.append(Node('domain_relay', context=context))
    robot, policy = nodes
    relay(TO_POLICY, robot, policy)
    relay(TO_ROBOT, policy, robot)
    threading.Thread(target=_spin, args=(policy,), daemon=True).start()
    _spin(robot)
    return 0


def _spin(node: Node) -> None:
    executor = SingleThreadedExecutor(context=node.context)
    executor.add_node(node)
    executor.spin()


if __name__ == '__main__':
    sys.exit(main())
