"""A relay between sensors and policy that breaks what passes through it, when told to.

For robots in dry run, benchmarks and tests: whoever wants to know what the arm would do when a
camera is unplugged sets one parameter instead of pulling the plug.

    ros2 run vla_cache_ros fault_injector
    ros2 param set /fault_injector fault black
"""

import math
import time
from collections import deque
from functools import partial
from typing import Any

from geometry_msgs.msg import PoseStamped
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.publisher import Publisher
from sensor_msgs.msg import Image, JointState, TimeReference

from vla_cache_ros.core.errors import ConfigError, ObservationError
from vla_cache_ros.core.frame_faults import (
    IMAGE_FAULTS,
    STATE_FAULTS,
    FrameFaults,
    stamp_offset_s,
)
from vla_cache_ros.nodes import qos
from vla_cache_ros.nodes.conversions import ns_to_stamp, stamp_to_ns
from vla_cache_ros.nodes.image_conversions import image_to_rgb, rgb_to_image
from vla_cache_ros.nodes.parameter_tables.fault_injector import FaultInjectorParameters
from vla_cache_ros.nodes.parameters import declare
from vla_cache_ros.nodes.running import run_nodes, steady_timer

_POLL_PERIOD_S = 0.005
_KEPT_STAMPS = 64


class FaultInjector(Node):
    """Relays cameras and robot state, whole or broken.

    Subscribes (relative names, remappable):
        source/camera/<name>/image_raw (sensor_msgs/Image), for each of camera_names.
        source/joint_states (sensor_msgs/JointState), source/ee_pose (geometry_msgs/PoseStamped).
    Publishes:
        camera/<name>/image_raw, joint_states, ee_pose: the same, or what the fault makes of them.
        ~/injected (sensor_msgs/TimeReference): at each change of `fault`: its name as source, the
            node's time as stamp, CLOCK_MONOTONIC as time_ref.
    """

    def __init__(self, node_name: str = 'fault_injector', **node_arguments: Any) -> None:
        """Begin to relay.

        Args:
            node_name: Name of the node.
            **node_arguments: Passed on to rclpy's Node.

        Raises:
            ConfigError: A parameter is out of its range, or a faulty camera is not relayed.
        """
        super().__init__(node_name, **node_arguments)
        self._settings = parameters = declare(self, FaultInjectorParameters)
        unknown = set(parameters.faulty_cameras) - set(parameters.camera_names)
        if unknown:
            raise ConfigError(
                f'faulty_cameras names {", ".join(sorted(unknown))}; valid: '
                f'{", ".join(parameters.camera_names)}.'
            )
        self._fault = parameters.fault
        self._stamps: dict[int, int] = {}  # own stamp of the input -> stamp it is given
        self._held: deque[tuple[float, Publisher, Image]] = deque()
        self._frames = {name: FrameFaults() for name in parameters.faulty_cameras}
        for name in parameters.camera_names:
            topic = f'camera/{name}/image_raw'
            publisher = qos.publish(self, Image, topic, qos.frame())
            relay = partial(self._on_image, name, publisher)
            qos.subscribe(self, Image, f'source/{topic}', relay, qos.frame())
        for kind, topic in ((JointState, 'joint_states'), (PoseStamped, 'ee_pose')):
            publisher = qos.publish(self, kind, topic, qos.state())
            relay = partial(self._on_state, publisher)
            qos.subscribe(self, kind, f'source/{topic}', relay, qos.state())
        self._injected = qos.publish(self, TimeReference, '~/injected', qos.report())
        self.add_post_set_parameters_callback(self._on_parameters)
        self._release_timer = steady_timer(self, _POLL_PERIOD_S, self._release_due)

    def _on_parameters(self, changes: list[Parameter]) -> None:
        """Break, or mend, from now on."""
        for change in changes:
            if change.name == 'fault' and change.value != self._fault:
                self._fault = change.value
                self._held.clear()  # what is late must not come after what is fresh
                moment = TimeReference(source=self._fault)
                moment.header.stamp = self.get_clock().now().to_msg()
                moment.time_ref = ns_to_stamp(time.monotonic_ns())
                self._injected.publish(moment)
                self.get_logger().info(f'fault: {self._fault}')

    def _on_image(self, camera: str, publisher: Publisher, message: Image) -> None:
        stamp = self._stamp(message)
        frames = self._frames.get(camera)
        if frames is not None:
            try:
                pixels = frames.apply(image_to_rgb(message), self._fault)
            except ObservationError as error:
                self.get_logger().warning(
                    f'{camera} relayed as it is: {error}', throttle_duration_sec=1.0
                )
            else:
                if pixels is None:
                    return
                if self._fault in IMAGE_FAULTS:
                    message = rgb_to_image(pixels, stamp, message.header.frame_id)
        message.header.stamp = stamp
        if self._fault == 'delayed' and frames is not None:
            due_s = time.monotonic() + self._settings.delay_s
            self._held.append((due_s, publisher, message))
        else:
            publisher.publish(message)

    def _on_state(self, publisher: Publisher, message: Any) -> None:
        message.header.stamp = self._stamp(message)
        if self._fault in STATE_FAULTS:
            if isinstance(message, JointState):
                message.position = [math.nan] * len(message.position)
            else:
                message.pose.position.x = math.nan
        publisher.publish(message)

    def _stamp(self, message: Any) -> Any:
        """The stamp that an input is given: its own, or this node's time, and the jump."""
        own_ns = given_ns = stamp_to_ns(message.header.stamp)
        if self._settings.restamp:
            if own_ns not in self._stamps:
                self._stamps[own_ns] = self.get_clock().now().nanoseconds
            given_ns = self._stamps[own_ns]
            if len(self._stamps) > _KEPT_STAMPS:
                del self._stamps[next(iter(self._stamps))]
        offset_s = stamp_offset_s(self._fault, self._settings.clock_jump_s)
        return ns_to_stamp(max(0, given_ns + round(1e9 * offset_s)))

    def _release_due(self) -> None:
        """Let go what was held back long enough."""
        while self._held and self._held[0][0] <= time.monotonic():
            _, publisher, message = self._held.popleft()
            publisher.publish(message)


def main(args: list[str] | None = None) -> int:
    """Run the node on its own."""
    return run_nodes(FaultInjector, args=args)
