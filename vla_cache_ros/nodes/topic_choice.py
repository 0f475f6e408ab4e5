"""Which topics of the graph are meant, what they carry, and how to receive all of it."""

import fnmatch
import importlib
from collections.abc import Iterable, Sequence

import yaml
from rclpy.node import Node
from rclpy.qos import QoSDurabilityPolicy, QoSHistoryPolicy, QoSProfile, QoSReliabilityPolicy

from vla_cache_ros.core.errors import RecordingError
from vla_cache_ros.recording.container import Topic
from vla_cache_ros.recording.schemas import definition

_FOREVER = {'sec': 2147483647, 'nsec': 4294967295}
"""How rosbag2 writes a duration without end."""


def absolute(pattern: str, namespace: str) -> str:
    """A pattern below the namespace, unless it begins with a slash."""
    return pattern if pattern.startswith('/') else f'{namespace.rstrip("/")}/{pattern}'


def is_chosen(
    topic: str, include: Iterable[str], exclude: Iterable[str], namespace: str = '/'
) -> bool:
    """Whether one of the patterns means the topic and none excludes it."""
    return any(
        fnmatch.fnmatchcase(topic, absolute(pattern, namespace)) for pattern in include
    ) and not any(fnmatch.fnmatchcase(topic, absolute(pattern, namespace)) for pattern in exclude)


def message_class(kind: str) -> type:
    """The Python class of a message type.

    Raises:
        RecordingError: Its package is not installed here.
    """
    package, _, name = kind.partition('/msg/')
    try:
        return getattr(importlib.import_module(f'{package}.msg'), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise RecordingError(
            f'messages of type {kind} cannot be received: {error}. Install or source the package '
            f'{package}.'
        ) from error


def matching_profile(offered: Sequence[QoSProfile], depth: int) -> QoSProfile:
    """The strictest profile that every publisher's own is compatible with.

    Reliable, and the last message of a latched topic, only where all of them offer it: asking one
    publisher for more than it offers would cost all of its messages.
    """
    is_reliable = all(profile.reliability == QoSReliabilityPolicy.RELIABLE for profile in offered)
    is_latched = all(
        profile.durability == QoSDurabilityPolicy.TRANSIENT_LOCAL for profile in offered
    )
    return QoSProfile(
        history=QoSHistoryPolicy.KEEP_LAST,
        depth=depth,
        reliability=(
            QoSReliabilityPolicy.RELIABLE if is_reliable else QoSReliabilityPolicy.BEST_EFFORT
        ),
        durability=(
            QoSDurabilityPolicy.TRANSIENT_LOCAL if is_latched else QoSDurabilityPolicy.VOLATILE
        ),
    )


def describe_topic(
    node: Node, name: str, kinds: Sequence[str], depth: int
) -> tuple[Topic, QoSProfile] | None:
    """What a recording needs to know of a topic, and how to subscribe to it.

    Returns:
        None while nobody publishes on it.

    Raises:
        RecordingError: It has several types, or one that is not installed here.
    """
    offered = [info.qos_profile for info in node.get_publishers_info_by_topic(name)]
    if not offered:
        return None
    if len(kinds) != 1:
        raise RecordingError(f'{name} has several types: {", ".join(kinds)}; valid: one.')
    profile = matching_profile(offered, depth)
    is_latched = profile.durability == QoSDurabilityPolicy.TRANSIENT_LOCAL
    qos = yaml.safe_dump([_as_rosbag2(entry) for entry in offered])
    return Topic(name, kinds[0], definition(kinds[0]), qos, is_latched), profile


def _as_rosbag2(profile: QoSProfile) -> dict[str, object]:
    """A publisher's profile as rosbag2 keeps it, so that `ros2 bag play` offers the same."""
    return {
        'history': int(profile.history),
        'depth': profile.depth,
        'reliability': int(profile.reliability),
        'durability': int(profile.durability),
        'deadline': dict(_FOREVER),
        'lifespan': dict(_FOREVER),
        'liveliness': int(profile.liveliness),
        'liveliness_lease_duration': dict(_FOREVER),
        'avoid_ros_namespace_conventions': bool(profile.avoid_ros_namespace_conventions),
    }
