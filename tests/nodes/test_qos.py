"""The profiles fit one another, and parameters override them."""

import pytest
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.qos import (
    QoSCompatibility,
    QoSDurabilityPolicy,
    QoSReliabilityPolicy,
    qos_check_compatible,
    qos_profile_sensor_data,
)
from std_msgs.msg import String

from vla_cache_ros.nodes import qos

pytestmark = pytest.mark.ros

PROFILES = (qos.frame, qos.state, qos.command, qos.latched, qos.report, qos.clock)


@pytest.mark.parametrize('profile', PROFILES)
def test_both_ends_of_a_profile_are_compatible(profile):
    assert qos_check_compatible(profile(), profile())[0] != QoSCompatibility.ERROR


def test_images_are_readable_as_sensor_data():
    assert qos_check_compatible(qos.frame(), qos_profile_sensor_data)[0] != QoSCompatibility.ERROR
    assert qos.frame().depth == 1


def test_reliable_reader_of_images_would_be_told():
    reliable = qos.command()
    assert qos_check_compatible(qos.frame(), reliable)[0] == QoSCompatibility.ERROR


def test_commands_are_reliable_and_never_replayed():
    command = qos.command()
    assert command.reliability == QoSReliabilityPolicy.RELIABLE
    assert command.durability == QoSDurabilityPolicy.VOLATILE
    assert command.depth == 1


def test_instruction_reaches_a_node_that_joins_later(executor, spin_until):
    early, late = Node('early'), Node('late')
    qos.publish(early, String, 'vla/instruction', qos.latched()).publish(String(data='fetch'))
    received = []
    qos.subscribe(late, String, 'vla/instruction', received.append, qos.latched())
    executor.add_node(early)
    executor.add_node(late)
    spin_until(lambda: received)
    assert received[0].data == 'fetch'


def test_parameters_override_a_profile(ros):
    name = 'qos_overrides./camera/wrist/image_raw.subscription.reliability'
    node = Node('reader', parameter_overrides=[Parameter(name, value='reliable')])
    topic = 'camera/wrist/image_raw'
    subscription = qos.subscribe(node, String, topic, print, qos.frame())
    assert subscription.qos_profile.reliability == QoSReliabilityPolicy.RELIABLE
    assert qos.frame().reliability == QoSReliabilityPolicy.BEST_EFFORT  # the profile stays


def test_topics_without_another_end_are_named(ros, spin_until):
    node = Node('node')
    publisher = qos.publish(node, String, 'read', qos.report())
    subscription = qos.subscribe(node, String, 'written', print, qos.report())
    assert qos.unconnected([publisher], [subscription]) == ['/read', '/written']
    qos.subscribe(node, String, 'read', print, qos.report())
    qos.publish(node, String, 'written', qos.report())
    spin_until(lambda: not qos.unconnected([publisher], [subscription]))
