"""The fault injector between a publisher and a reader of its topics."""

import math
import time

import numpy as np
import pytest

from vla_cache_ros.core.errors import ConfigError

pytestmark = pytest.mark.ros


@pytest.fixture
def relay(executor, spin_until):
    return lambda **values: Relay(executor, spin_until, values)


class Relay:
    """An injector, what goes in and what comes out."""

    def __init__(self, executor, spin_until, values):
        from geometry_msgs.msg import PoseStamped
        from rclpy.node import Node
        from rclpy.parameter import Parameter
        from sensor_msgs.msg import Image, JointState, TimeReference

        from vla_cache_ros.nodes import qos
        from vla_cache_ros.nodes.fault_injector import FaultInjector

        overrides = [Parameter(key, value=value) for key, value in values.items()]
        self.injector = FaultInjector(parameter_overrides=overrides)
        self.node = Node('neighbour')
        self.seen = {'image': [], 'joints': [], 'injected': []}
        self.spin_until = spin_until
        publish, subscribe = self.node.create_publisher, self.node.create_subscription
        self.images = publish(Image, 'source/camera/agentview/image_raw', qos.frame())
        self.joints = publish(JointState, 'source/joint_states', qos.state())
        subscribe(Image, 'camera/agentview/image_raw', self.seen['image'].append, qos.frame())
        subscribe(JointState, 'joint_states', self.seen['joints'].append, qos.state())
        subscribe(PoseStamped, 'ee_pose', print, qos.state())
        subscribe(
            TimeReference, 'fault_injector/injected', self.seen['injected'].append, qos.report()
        )
        for node in (self.injector, self.node):
            executor.add_node(node)
        spin_until(lambda: self.images.get_subscription_count() > 0)
        spin_until(lambda: self.node.count_publishers('camera/agentview/image_raw') > 0)
        spin_until(lambda: self.injector.count_subscribers('camera/agentview/image_raw') > 0)
        spin_until(lambda: self.injector.count_subscribers('fault_injector/injected') > 0)

    def set_fault(self, name):
        from rclpy.parameter import Parameter

        (result,) = self.injector.set_parameters([Parameter('fault', value=name)])
        return result

    def send_image(self, value, stamp_ns=5_000_000_000, encoding='rgb8'):
        from vla_cache_ros.nodes.conversions import ns_to_stamp
        from vla_cache_ros.nodes.image_conversions import rgb_to_image

        message = rgb_to_image(np.full((8, 6, 3), value, np.uint8), ns_to_stamp(stamp_ns), 'f')
        message.encoding = encoding
        self.images.publish(message)

    def next_image(self, value=7, **more):
        from vla_cache_ros.nodes.image_conversions import image_to_rgb

        count = len(self.seen['image'])
        self.send_image(value, **more)
        self.spin_until(lambda: len(self.seen['image']) > count)
        return image_to_rgb(self.seen['image'][-1])


def test_without_a_fault_everything_passes_as_it_is(relay):
    relay = relay()
    assert (relay.next_image(7) == 7).all()
    assert relay.seen['image'][0].header.stamp.sec == 5


def test_faults_come_and_go_by_parameter_and_are_announced(relay):
    relay = relay()
    relay.next_image(7)
    before_ns = time.monotonic_ns()
    assert relay.set_fault('black').successful
    assert not relay.next_image(8).any()
    relay.set_fault('frozen')
    assert (relay.next_image(9) == 8).all()
    relay.set_fault('resized')
    assert relay.next_image(9).shape == (4, 3, 3)
    relay.set_fault('none')
    assert (relay.next_image(10) == 10).all()
    relay.spin_until(lambda: len(relay.seen['injected']) == 4)
    first = relay.seen['injected'][0]
    assert first.source == 'black'
    assert before_ns <= first.time_ref.sec * 10**9 + first.time_ref.nanosec <= time.monotonic_ns()


def test_an_unknown_fault_is_refused_and_changes_nothing(relay):
    relay = relay()
    result = relay.set_fault('eaten')
    assert not result.successful
    assert 'unplugged' in result.reason
    assert (relay.next_image(7) == 7).all()


def test_a_delayed_image_keeps_its_stamp_and_comes_late(relay):
    relay = relay(delay_s=0.3)
    relay.set_fault('delayed')
    began_s = time.monotonic()
    relay.next_image(7)
    assert time.monotonic() - began_s >= 0.3
    assert relay.seen['image'][-1].header.stamp.sec == 5


def test_clocks_jump_and_states_become_nan(relay):
    from sensor_msgs.msg import JointState

    relay = relay(clock_jump_s=2.0)
    relay.set_fault('clock_backward')
    relay.next_image(7)
    assert relay.seen['image'][-1].header.stamp.sec == 3
    relay.set_fault('nan_state')
    relay.joints.publish(JointState(name=['a', 'b'], position=[1.0, 2.0]))
    relay.spin_until(lambda: bool(relay.seen['joints']))
    assert all(math.isnan(value) for value in relay.seen['joints'][0].position)


def test_inputs_of_one_stamp_get_one_stamp_of_the_present(relay):
    from sensor_msgs.msg import JointState

    relay = relay(restamp=True)
    relay.next_image(7)
    message = JointState(name=['a'], position=[1.0])
    message.header.stamp.sec = 5
    relay.joints.publish(message)
    relay.spin_until(lambda: bool(relay.seen['joints']))
    stamps = [relay.seen[kind][0].header.stamp for kind in ('image', 'joints')]
    assert stamps[0] == stamps[1]
    assert abs(stamps[0].sec - time.time()) < 60


def test_an_image_that_cannot_be_read_passes_unchanged(relay):
    relay = relay()
    relay.set_fault('black')
    relay.send_image(7, encoding='32FC1')
    relay.spin_until(lambda: bool(relay.seen['image']))
    assert relay.seen['image'][0].encoding == '32FC1'
    assert relay.seen['image'][0].data[0] == 7


def test_a_faulty_camera_that_is_not_relayed_is_refused(ros):
    from rclpy.parameter import Parameter

    from vla_cache_ros.nodes.fault_injector import FaultInjector

    with pytest.raises(ConfigError, match='agentview, wrist'):
        FaultInjector(parameter_overrides=[Parameter('faulty_cameras', value=['third'])])
