"""The arm's kinematics for a node: from a file, or from robot_state_publisher's topic."""

from std_msgs.msg import String

from vla_cache_ros.core.errors import VlaCacheError
from vla_cache_ros.nodes import qos
from vla_cache_ros.nodes.managed_node import ManagedNode
from vla_cache_ros.nodes.parameter_tables.arm import ArmParameters
from vla_cache_ros.robot.kinematics import Kinematics, read_urdf

TOPIC = 'robot_description'


class DescribedArm:
    """Holds the kinematics once the description is there.

    Subscribes:
        robot_description (std_msgs/String, transient local), where no file is named.

    Attributes:
        kinematics: None as long as there is none.
        problem: Why there is none, in words.
    """

    def __init__(self, node: ManagedNode, parameters: ArmParameters) -> None:
        """Read the file, or wait for the topic.

        Raises:
            RobotError: The file is no description with that chain.
            ConfigError: pinocchio is not installed.
        """
        self._node = node
        self._parameters = parameters
        self.kinematics: Kinematics | None = None
        self.problem = f'nothing was received on {TOPIC}; is robot_state_publisher running?'
        if parameters.urdf_path:
            self._build(read_urdf(parameters.urdf_path))
        else:
            node.subscription(String, TOPIC, self._on_description, qos.latched())

    def _on_description(self, message: String) -> None:
        """Take a description; an arm that has one keeps it until it is configured again."""
        if self.kinematics is not None:
            return
        try:
            self._build(message.data)
        except VlaCacheError as error:
            self.problem = str(error)
            self._node.get_logger().error(f'{TOPIC}: {error}')

    def _build(self, urdf: str) -> None:
        arm = self._parameters
        names = [name for name in arm.joint_names if name]
        self.kinematics = Kinematics(urdf, arm.base_link, arm.tip_link, names)
        self.problem = ''
        self._node.get_logger().info(
            f'kinematics from {arm.base_link} to {arm.tip_link}: '
            f'{", ".join(self.kinematics.joint_names)}'
        )
