"""A lifecycle node without a robot: says on `said` what it does, and hangs when told to.

Run as a program: small_node.py --ros-args -r __node:=NAME ..
"""

import sys
import time

from rclpy.qos import QoSDurabilityPolicy, QoSProfile
from std_msgs.msg import String
from std_srvs.srv import Trigger

from vla_cache_ros.core.errors import RobotError
from vla_cache_ros.nodes.managed_node import ManagedNode
from vla_cache_ros.nodes.parameters import ManagedParameters, declare
from vla_cache_ros.nodes.running import run_nodes

SAID = QoSProfile(depth=100, durability=QoSDurabilityPolicy.TRANSIENT_LOCAL)
"""Of `said`: whoever listens hears all, however late it was discovered."""


class SmallNode(ManagedNode):
    def __init__(self) -> None:
        super().__init__('small_node')
        self.declare_parameter('refuses', '')
        self.supervise(declare(self, ManagedParameters))
        self.create_service(Trigger, '~/hang', self.hang)

    def allocate(self) -> None:
        if self.get_parameter('refuses').value == 'configure':
            raise RobotError('there is no robot; connect one.')
        self.said = self.publisher(String, '/said', SAID)

    def start(self) -> None:
        self.said.publish(String(data=f'{self.get_name()} start'))

    def stop(self) -> None:
        self.said.publish(String(data=f'{self.get_name()} stop'))

    def hang(self, *_) -> None:
        time.sleep(3600)


if __name__ == '__main__':
    sys.exit(run_nodes(SmallNode, args=sys.argv))
