"""The emergency stop's switch: two services and a topic, in every state of the node."""

from collections.abc import Callable
from typing import Any

from rclpy.node import Node
from rclpy.qos import QoSDurabilityPolicy, QoSProfile, QoSReliabilityPolicy
from std_msgs.msg import Bool
from std_srvs.srv import Trigger


class EmergencyStop:
    """Latches; released by its service alone, and not while a button is still pressed.

    It outlives deactivate and cleanup; a process that is started again begins released, and is
    stopped at once where a button publishes a latched (transient local) true.

    Attributes:
        latched: Whether the robot must not move.
    """

    def __init__(self, node: Node, stopped: Callable[[], None], released: Callable[[], None]):
        """Serve ~/e_stop and ~/release_e_stop (std_srvs/Trigger), read vla/e_stop (std_msgs/Bool).

        Args:
            node: The node that the robot's commands come from.
            stopped: Called each time it is asked for, also when it is latched already.
            released: Called when it was latched and no longer is.
        """
        self.latched = False
        self._pressed = False
        self._stopped, self._released = stopped, released
        self._node = node
        node.create_service(Trigger, '~/e_stop', self._on_stop)
        node.create_service(Trigger, '~/release_e_stop', self._on_release)
        # Whatever QoS a button publishes with must be heard: best effort and volatile matches all,
        # transient local also plays what was published before this node was there.
        for reliability, durability in (
            (QoSReliabilityPolicy.BEST_EFFORT, QoSDurabilityPolicy.VOLATILE),
            (QoSReliabilityPolicy.RELIABLE, QoSDurabilityPolicy.TRANSIENT_LOCAL),
        ):
            profile = QoSProfile(depth=10, reliability=reliability, durability=durability)
            node.create_subscription(Bool, 'vla/e_stop', self._on_button, profile)

    def _stop(self, source: str) -> None:
        if not self.latched:
            self._node.get_logger().error(f'emergency stop by {source}')
        self.latched = True
        self._stopped()

    def _on_button(self, message: Bool) -> None:
        self._pressed = message.data
        if message.data:
            self._stop('vla/e_stop')

    def _on_stop(self, _: Any, response: Trigger.Response) -> Trigger.Response:
        self._stop('service')
        response.success, response.message = True, 'stopped; ~/release_e_stop releases'
        return response

    def _on_release(self, _: Any, response: Trigger.Response) -> Trigger.Response:
        if self._pressed:
            response.message = 'vla/e_stop is still true; release the button first'
            return response
        was_latched, self.latched = self.latched, False
        if was_latched:
            self._node.get_logger().warning('emergency stop released')
            self._released()
        response.success = True
        response.message = 'released; motion begins with the next chunk of a newer image'
        return response
