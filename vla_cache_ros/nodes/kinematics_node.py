"""The tool's pose from joint states, for robots whose driver publishes none."""

from typing import Any

from geometry_msgs.msg import PoseStamped
from sensor_msgs.msg import JointState

from vla_cache_ros.core.errors import RobotError
from vla_cache_ros.nodes import qos
from vla_cache_ros.nodes.conversions import pose_message
from vla_cache_ros.nodes.managed_node import ManagedNode
from vla_cache_ros.nodes.parameter_tables.kinematics_node import KinematicsParameters
from vla_cache_ros.nodes.parameters import declare, read
from vla_cache_ros.nodes.robot_description import DescribedArm
from vla_cache_ros.nodes.running import run_nodes


class KinematicsNode(ManagedNode):
    """Publishes where the tool is.

    Subscribes (relative names, remappable):
        joint_states (sensor_msgs/JointState). A message without any joint of the arm, such as a
            gripper's own, is passed over; one with some of them only is reported.
        robot_description (std_msgs/String, transient local), where no file is named.
    Publishes:
        ee_pose (geometry_msgs/PoseStamped): tip_link in the frame of base_link, with the joint
            state's own stamp.
    """

    def __init__(self, node_name: str = 'kinematics_node', **node_arguments: Any) -> None:
        """Declare the parameters.

        Args:
            node_name: Name of the node.
            **node_arguments: Passed on to rclpy's Node.

        Raises:
            ConfigError: A parameter is out of its range.
        """
        super().__init__(node_name, **node_arguments)
        self.supervise(declare(self, KinematicsParameters))

    def allocate(self) -> None:
        """Read the description, or wait for it.

        Raises:
            RobotError: The file is no description with that chain.
            ConfigError: pinocchio is not installed.
        """
        self._settings = parameters = read(self, KinematicsParameters)
        self._arm = DescribedArm(self, parameters)
        self._publisher = self.publisher(PoseStamped, 'ee_pose', qos.state())
        self.subscription(JointState, 'joint_states', self._on_state, qos.state())

    def _on_state(self, message: JointState) -> None:
        if self.lifecycle_state != 'active':
            return
        arm = self._arm.kinematics
        if arm is None:
            self.get_logger().warning(f'no pose: {self._arm.problem}', throttle_duration_sec=5.0)
            return
        if set(arm.joint_names).isdisjoint(message.name):
            return
        try:
            pose = arm.pose(arm.ordered(message.name, message.position))
        except RobotError as error:
            self.get_logger().warning(f'no pose: {error}', throttle_duration_sec=1.0)
            return
        quaternion = arm.quaternion_xyzw(pose.rotation)
        stamped = pose_message(pose.position_m, quaternion, self._settings.base_link)
        stamped.header.stamp = message.header.stamp
        self._publisher.publish(stamped)


def main(args: list[str] | None = None) -> int:
    """Run the node on its own."""
    return run_nodes(KinematicsNode, args=args)
