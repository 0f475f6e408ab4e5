"""The policy's inputs: subscriptions, pairing, and what is dropped before anything is computed."""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from geometry_msgs.msg import PoseStamped
from sensor_msgs.msg import CompressedImage, Image, JointState

from vla_cache_ros.nodes import qos
from vla_cache_ros.nodes.conversions import stamp_to_ns
from vla_cache_ros.nodes.managed_node import ManagedNode
from vla_cache_ros.nodes.pairing import Drop, PairedInputs, Pairing
from vla_cache_ros.nodes.parameter_tables.policy_node import PolicyParameters

TRANSPORTS: dict[str, tuple[type, str]] = {
    'raw': (Image, 'camera/{}/image_raw'),
    'compressed': (CompressedImage, 'camera/{}/image_raw/compressed'),
}
"""Image transport -> message and topic of a camera."""

_JITTER = 0.05
"""Share of a refresh period by which a frame may come early and still be on time."""


class PolicyInputs:
    """Receives and pairs, in the executor's thread.

    Attributes:
        subscriptions: Of an episode: images, robot state.
        images_received: Images since it was made; each becomes part of an observation or a drop.
    """

    def __init__(
        self,
        node: ManagedNode,
        parameters: PolicyParameters,
        camera_names: Sequence[str],
        *,
        on_observation: Callable[[PairedInputs, int], None],
        on_drop: Callable[[Drop], None],
        on_clock_backwards: Callable[[], None],
    ) -> None:
        """Subscribe; nothing is kept before `open`.

        Args:
            node: Owns the subscriptions.
            parameters: The node's.
            camera_names: The policy's.
            on_observation: Given each observation, and when its last part came (CLOCK_MONOTONIC).
            on_drop: Told of every input that is not used.
            on_clock_backwards: Told that the stamps have gone back.
        """
        self.images_received = 0
        self._is_open = False
        self._on_observation = on_observation
        self._on_drop = on_drop
        self._on_clock_backwards = on_clock_backwards
        self._frozen_ns = round(parameters.frozen_image_timeout_s * 1e9)
        self._repeats_since_ns: dict[str, int] = {}
        rate_hz = parameters.refresh_frequency_hz
        self._refresh_ns = round((1 - _JITTER) * 1e9 / rate_hz) if rate_hz else 0
        self._refreshed_ns: int | None = None
        self._pairing = Pairing(
            camera_names,
            parameters.gripper_joint_names,
            tolerance_ns=round(parameters.pairing_tolerance_s * 1e9),
            silence_ns=round(parameters.stale_image_timeout_s * 1e9),
            on_drop=on_drop,
        )
        kind, topic = TRANSPORTS[parameters.image_transport]
        self.subscriptions = [
            node.subscription(
                kind, topic.format(camera), partial(self._on_image, camera), qos.frame()
            )
            for camera in camera_names
        ]
        self.subscriptions += [
            node.subscription(JointState, topic, self._on_joints, qos.state())
            for topic in parameters.joint_state_topics
        ]
        self.subscriptions.append(
            node.subscription(PoseStamped, 'ee_pose', self._on_pose, qos.state())
        )

    @property
    def images_waiting(self) -> int:
        """Images that wait for their counterparts."""
        return self._pairing.waiting

    def open(self) -> None:
        """Begin to keep what is received."""
        self._is_open = True

    def close(self) -> None:
        """Stop keeping what is received, and forget what waits."""
        self._is_open = False
        self.clear()

    def clear(self) -> None:
        """Forget what waits."""
        self._refreshed_ns = None
        self._pairing.clear()

    def _on_image(self, camera: str, message: Image | CompressedImage) -> None:
        if not self._is_open:
            return
        received_ns = time.monotonic_ns()
        self.images_received += 1
        stamp_ns = stamp_to_ns(message.header.stamp)
        drop = self._pairing.add_image(camera, message, stamp_ns)
        if drop is None:
            self._repeats_since_ns.pop(camera, None)
            self._take(received_ns)
            return
        if drop.reason == 'clock_backwards':
            self._refreshed_ns = None
            self._on_clock_backwards()
        elif self._hangs(camera, received_ns):
            drop = replace(drop, reason='frozen_image')
        self._on_drop(drop)

    def _hangs(self, camera: str, received_ns: int) -> bool:
        """Whether a camera has repeated its stamp for too long."""
        since_ns = self._repeats_since_ns.setdefault(camera, received_ns)
        return 0 < self._frozen_ns < received_ns - since_ns

    def _on_joints(self, message: JointState) -> None:
        if self._is_open:
            stamp_ns = stamp_to_ns(message.header.stamp)
            self._pairing.add_joints(list(message.name), list(message.position), stamp_ns)
            self._take_state()

    def _on_pose(self, message: PoseStamped) -> None:
        if self._is_open:
            self._pairing.add_pose(message, stamp_to_ns(message.header.stamp))
            self._take_state()

    def _take_state(self) -> None:
        """Try again where a robot state was all that lacked: it may come at 1000 Hz."""
        if self._pairing.waits_for_state:
            self._take(time.monotonic_ns())

    def _take(self, received_ns: int) -> None:
        """Hand on the newest complete observation, if one is due."""
        inputs = self._pairing.take()
        if inputs is None:
            return
        before_ns = self._refreshed_ns
        if before_ns is not None and inputs.stamp_ns - before_ns < self._refresh_ns:
            detail = 'no refresh is due yet (refresh_frequency_hz).'
            self._on_drop(Drop('not_due', detail, inputs.stamp_ns))
            return
        self._refreshed_ns = inputs.stamp_ns
        self._on_observation(inputs, received_ns)
