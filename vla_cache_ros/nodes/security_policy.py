"""Access rights of every node as an SROS 2 policy, read from what the nodes really declare.

    python -m vla_cache_ros.nodes.security_policy > config/security/policy.xml

Every node is configured, in each of the forms that change its topics, and asked through the graph
API what it publishes, reads, serves and calls. It gets that and nothing else. How to put the file
to use: docs/security.md.
"""

import argparse
import os
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import rclpy
from rclpy.lifecycle import LifecycleNode, TransitionCallbackReturn
from rclpy.parameter import Parameter

from vla_cache_ros.core.errors import ConfigError
from vla_cache_ros.nodes.bringup_manager import BringupManager
from vla_cache_ros.nodes.camera_node import CameraNode
from vla_cache_ros.nodes.command_guard import CommandGuardNode
from vla_cache_ros.nodes.command_sink import CommandSinkNode
from vla_cache_ros.nodes.kinematics_node import KinematicsNode
from vla_cache_ros.nodes.monitor import Monitor
from vla_cache_ros.nodes.parameter_tables.command_sink import SinkParameters
from vla_cache_ros.nodes.parameter_tables.recorder import RecorderParameters
from vla_cache_ros.nodes.policy_node import PolicyNode
from vla_cache_ros.nodes.recorder import RecorderNode
from vla_cache_ros.nodes.sim_bridge import SimBridge
from vla_cache_ros.nodes.topic_choice import absolute

VERSION = '0.2.0'
CAMERAS = ('agentview', 'wrist')
ENCLAVES = '/vla_cache'
OPERATOR = 'operator'

_GUARDED = {'workspace_lower_m': [-1.0] * 3, 'workspace_upper_m': [1.0] * 3}
"""Limits that make the guard read ee_pose."""


@dataclass
class Rights:
    """What one node may do, by fully qualified name."""

    publish: set[str] = field(default_factory=set[str])
    subscribe: set[str] = field(default_factory=set[str])
    reply: set[str] = field(default_factory=set[str])
    request: set[str] = field(default_factory=set[str])
    call: set[str] = field(default_factory=set[str])

    def add(self, other: 'Rights') -> None:
        """Take over another form's rights."""
        for name, rights in vars(other).items():
            getattr(self, name).update(rights)


@dataclass(frozen=True)
class Form:
    """One way to run a node: its class and the parameters that change its topics."""

    make: Callable[..., Any]
    parameters: Mapping[str, Any] = field(default_factory=dict[str, Any])


def forms(cameras: Sequence[str], folder: str) -> dict[str, tuple[Form, ...]]:
    """Every node that runs on a robot or beside a simulator, in its forms.

    The fault injector is none of them: on a robot it has no rights at all.

    Args:
        cameras: Names of the cameras.
        folder: An existing folder, from which the camera node would read.
    """
    names = list(cameras)
    policy: Any = SimpleNamespace(camera_names=tuple(cameras))
    env: Any = SimpleNamespace(close=lambda: None)
    env.unwrapped = env
    sinks = [
        {'sink': sink, 'gripper': 'joint_trajectory', 'dry_run': dry_run}
        for sink in ('twist', 'joint_trajectory')
        for dry_run in (False, True)
    ]
    return {
        'policy_node': tuple(
            Form(
                lambda **given: PolicyNode(lambda _: policy, **given),
                {'image_transport': transport},
            )
            for transport in ('raw', 'compressed')
        ),
        'camera_node': tuple(
            Form(
                CameraNode,
                {
                    'camera_names': names,
                    'sources': [tempfile.mkdtemp(prefix=name, dir=folder) for name in names],
                    'publish_compressed': compressed,
                },
            )
            for compressed in (False, True)
        ),
        'command_guard': tuple(
            Form(CommandGuardNode, {'autostart': False, **_GUARDED, **values})
            for values in (
                {'pacing': 'timer', 'chunk_execution': 'prefix'},
                {'pacing': 'state', 'chunk_execution': 'open_loop'},
            )
        ),
        'command_sink': tuple(Form(CommandSinkNode, values) for values in sinks),
        'kinematics_node': (Form(KinematicsNode),),
        'monitor': (Form(Monitor),),
        'recorder': (Form(RecorderNode),),
        'bringup_manager': (Form(BringupManager),),
        'sim_bridge': (
            Form(lambda **given: SimBridge(lambda _: env, **given), {'camera_names': names}),
        ),
    }


def all_rights(namespace: str, cameras: Sequence[str]) -> dict[str, Rights]:
    """Start every node in every form, and read what it declares.

    Returns:
        Node -> its rights; last the operator's, who may call every service, read every topic, give
        instructions and press the emergency stop.

    Raises:
        ConfigError: A node could not be configured.
    """
    rights: dict[str, Rights] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, ways in forms(cameras, folder).items():
            rights[name] = Rights()
            for way in ways:
                with _configured(name, way, namespace) as node:
                    rights[name].add(declared_rights(node))
    # What the graph shows only while others are there.
    rights['command_sink'].call.add(absolute(SinkParameters.gripper_action, namespace))
    rights['recorder'].subscribe |= {
        absolute(pattern, namespace) for pattern in RecorderParameters.topics
    }
    operator = Rights(publish={'/rosout', '/parameter_events'})  # as every node
    operator.publish |= {
        absolute(f'vla/{topic}', namespace) for topic in ('instruction', 'e_stop')
    }
    for one in rights.values():
        operator.subscribe |= one.publish
        operator.request |= one.reply
    rights[OPERATOR] = operator
    return rights


@contextmanager
def _configured(name: str, form: Form, namespace: str) -> Iterator[Any]:
    """A node with every entity that it makes at configure, destroyed afterwards."""
    given = {'use_sim_time': name != 'sim_bridge', **form.parameters}
    overrides = [Parameter(key, value=value) for key, value in given.items()]
    node = form.make(namespace=namespace, parameter_overrides=overrides)
    try:
        if isinstance(node, LifecycleNode) and (
            node.trigger_configure() != TransitionCallbackReturn.SUCCESS
        ):
            raise ConfigError(f'{name} could not be configured; its reason is in the log.')
        yield node
    finally:
        node.destroy_node()


def declared_rights(node: Any) -> Rights:
    """What a node publishes, reads, serves and calls, as the graph API has it."""
    where = (node.get_name(), node.get_namespace())

    def names(ask: Callable[[str, str], list[tuple[str, list[str]]]]) -> set[str]:
        return {name for name, _ in ask(*where)}

    return Rights(
        publish=names(node.get_publisher_names_and_types_by_node),
        subscribe=names(node.get_subscriber_names_and_types_by_node),
        reply=names(node.get_service_names_and_types_by_node),
        request=names(node.get_client_names_and_types_by_node),
    )


def policy_xml(rights: Mapping[str, Rights], namespace: str) -> str:
    """Write the rights in the format of `ros2 security create_permission`."""
    policy = ElementTree.Element('policy', version=VERSION)
    enclaves = ElementTree.SubElement(policy, 'enclaves')
    for node, allowed in rights.items():
        path = f'{ENCLAVES}{namespace.rstrip("/")}/{node}'
        enclave = ElementTree.SubElement(enclaves, 'enclave', path=path)
        profiles = ElementTree.SubElement(enclave, 'profiles')
        profile = ElementTree.SubElement(profiles, 'profile', ns=namespace, node=node)
        for kind, verb, names in (
            ('action', 'call', allowed.call),
            ('service', 'reply', allowed.reply),
            ('service', 'request', allowed.request),
            ('topic', 'publish', allowed.publish),
            ('topic', 'subscribe', allowed.subscribe),
        ):
            if not names:
                continue
            rule = ElementTree.SubElement(profile, f'{kind}s', {verb: 'ALLOW'})
            for name in sorted(names):
                ElementTree.SubElement(rule, kind).text = name
    ElementTree.indent(policy)
    return (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        '<!-- Made by `python -m vla_cache_ros.nodes.security_policy`; do not edit by hand. -->\n'
        f'{ElementTree.tostring(policy, encoding="unicode")}\n'
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the policy of a graph."""
    parser = argparse.ArgumentParser(description='Print the SROS 2 policy of the nodes.')
    parser.add_argument('--namespace', default='/', help='namespace of all nodes; default: /')
    parser.add_argument('--cameras', nargs='+', default=CAMERAS, help='names of the cameras')
    options = parser.parse_args(arguments)
    namespace = '/' + options.namespace.strip('/')
    os.environ['ROS_AUTOMATIC_DISCOVERY_RANGE'] = 'OFF'  # a graph that runs here is not meant
    rclpy.init()
    try:
        rights = all_rights(namespace, options.cameras)
    finally:
        rclpy.try_shutdown()
    sys.stdout.write(policy_xml(rights, namespace))
    return 0


if __name__ == '__main__':
    sys.exit(main())
