"""Named QoS profiles, each with its reason, and every one overridable by parameter.

A profile is built anew at each call: rclpy writes the overrides into the object it is given.
Overrides are ROS 2's own: `qos_overrides.<topic>.<publisher|subscription>.<policy>`, for instance
`qos_overrides./camera/wrist/image_raw.subscription.reliability: reliable`.
"""

from collections.abc import Callable, Iterable
from typing import TypeVar

from rclpy.lifecycle import LifecycleNode
from rclpy.node import Node
from rclpy.publisher import Publisher
from rclpy.qos import QoSDurabilityPolicy, QoSHistoryPolicy, QoSProfile, QoSReliabilityPolicy
from rclpy.qos_overriding_options import QoSOverridingOptions
from rclpy.subscription import Subscription

MessageT = TypeVar('MessageT')


def _keep_last(
    depth: int, reliability: QoSReliabilityPolicy, durability: QoSDurabilityPolicy
) -> QoSProfile:
    return QoSProfile(
        history=QoSHistoryPolicy.KEEP_LAST,
        depth=depth,
        reliability=reliability,
        durability=durability,
    )


def frame() -> QoSProfile:
    """Camera images: sensor data, keep last 1. An old frame is worthless, a resent one is late."""
    return _keep_last(1, QoSReliabilityPolicy.BEST_EFFORT, QoSDurabilityPolicy.VOLATILE)


def state() -> QoSProfile:
    """Joint states and poses: reliable, short history.

    A reader pairs them with images by stamp, so it needs a few of them, not the newest alone.
    """
    return _keep_last(16, QoSReliabilityPolicy.RELIABLE, QoSDurabilityPolicy.VOLATILE)


def command() -> QoSProfile:
    """Chunks and commands: reliable, keep last 1, volatile.

    None may be lost without notice, and none may be played to a reader that joins later.
    """
    return _keep_last(1, QoSReliabilityPolicy.RELIABLE, QoSDurabilityPolicy.VOLATILE)


def latched() -> QoSProfile:
    """Instruction: reliable, transient local, so that a node that joins later knows the task."""
    return _keep_last(1, QoSReliabilityPolicy.RELIABLE, QoSDurabilityPolicy.TRANSIENT_LOCAL)


def report() -> QoSProfile:
    """Reports: reliable with a long history, because statistics count every one of them."""
    return _keep_last(100, QoSReliabilityPolicy.RELIABLE, QoSDurabilityPolicy.VOLATILE)


def heartbeat() -> QoSProfile:
    """Signs of life: best effort, keep last 1. A resent one would be a lie."""
    return _keep_last(1, QoSReliabilityPolicy.BEST_EFFORT, QoSDurabilityPolicy.VOLATILE)


def clock() -> QoSProfile:
    """/clock: best effort, keep last 1, as rclpy's own time source reads it."""
    return _keep_last(1, QoSReliabilityPolicy.BEST_EFFORT, QoSDurabilityPolicy.VOLATILE)


def overridable() -> QoSOverridingOptions:
    """Let parameters override history, depth and reliability of one publisher or subscription."""
    return QoSOverridingOptions.with_default_policies()


def publish(node: Node, kind: type[MessageT], topic: str, profile: QoSProfile) -> Publisher:
    """Create a publisher whose QoS parameters may override; a lifecycle node's is managed."""
    create = node.create_publisher
    if isinstance(node, LifecycleNode):
        create = node.create_lifecycle_publisher
    return create(kind, topic, profile, qos_overriding_options=overridable())


def unconnected(
    publishers: Iterable[Publisher], subscriptions: Iterable[Subscription]
) -> list[str]:
    """Name the topics that have not found their other end yet."""
    unread = [entity.topic_name for entity in publishers if not entity.get_subscription_count()]
    silent = [entity.topic_name for entity in subscriptions if not entity.get_publisher_count()]
    return unread + silent


def subscribe(
    node: Node,
    kind: type[MessageT],
    topic: str,
    callback: Callable[[MessageT], None],
    profile: QoSProfile,
) -> Subscription:
    """Create a subscription whose QoS parameters may override."""
    return node.create_subscription(
        kind, topic, callback, profile, qos_overriding_options=overridable()
    )
