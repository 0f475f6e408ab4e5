"""The tool's pose from joint states, with their own stamp."""

import math

import numpy as np
import pytest
from geometry_msgs.msg import PoseStamped
from rclpy.lifecycle import TransitionCallbackReturn
from rclpy.node import Node
from scipy.spatial.transform import Rotation
from sensor_msgs.msg import JointState
from std_msgs.msg import String

from vla_cache_ros.nodes import qos
from vla_cache_ros.nodes.conversions import ns_to_stamp, stamp_to_ns
from vla_cache_ros.nodes.kinematics_node import KinematicsNode
from vla_cache_ros.robot.kinematics import Kinematics

from .sink_fakes import READY, SEVEN, overrides

pytestmark = pytest.mark.ros

URDF = SEVEN.read_text()
NAMES = [f'joint{index}' for index in range(1, 8)]


class Robot:
    """Joint states and a description in, poses out."""

    def __init__(self, executor, spin_until, spin_for, **values) -> None:
        self.spin_until, self.spin_for = spin_until, spin_for
        self.node = KinematicsNode(
            parameter_overrides=overrides(
                autostart=True, base_link='link0', tip_link='tcp', **values
            )
        )
        peer = Node('robot')
        self.poses: list[PoseStamped] = []
        peer.create_subscription(PoseStamped, 'ee_pose', self.poses.append, qos.state())
        self.states = peer.create_publisher(JointState, 'joint_states', qos.state())
        self.descriptions = peer.create_publisher(String, 'robot_description', qos.latched())
        executor.add_node(self.node)
        executor.add_node(peer)
        spin_until(lambda: self.node.lifecycle_state == 'active')
        spin_until(self.states.get_subscription_count)
        spin_until(lambda: self.node._publisher.get_subscription_count())

    def describe(self, urdf: str = URDF) -> None:
        self.descriptions.publish(String(data=urdf))
        self.spin_until(lambda: self.node._arm.problem != self.first_problem)

    @property
    def first_problem(self) -> str:
        return 'nothing was received on robot_description; is robot_state_publisher running?'

    def say(self, names, positions, stamp_ns: int) -> None:
        message = JointState(name=list(names), position=list(positions))
        message.header.stamp = ns_to_stamp(stamp_ns)
        self.states.publish(message)
        self.spin_for(0.05)


@pytest.fixture
def robot(executor, spin_until, spin_for):
    return Robot(executor, spin_until, spin_for)


def test_the_pose_carries_the_joint_states_stamp_and_the_bases_frame(robot):
    robot.describe()
    robot.say(['finger', *NAMES[::-1]], [0.01, *READY[::-1]], stamp_ns=12_345_678_901)
    robot.spin_until(lambda: robot.poses)
    message = robot.poses[0]
    assert stamp_to_ns(message.header.stamp) == 12_345_678_901
    assert message.header.frame_id == 'link0'
    wanted = Kinematics(URDF, 'link0', 'tcp').pose(np.array(READY))
    position, turn = message.pose.position, message.pose.orientation
    assert [position.x, position.y, position.z] == pytest.approx(wanted.position_m)
    rotation = Rotation.from_quat([turn.x, turn.y, turn.z, turn.w]).as_matrix()
    assert rotation == pytest.approx(wanted.rotation)


def test_without_a_description_there_is_no_pose(robot):
    robot.say(NAMES, READY, 1)
    assert robot.poses == []
    robot.describe('<robot/>')
    robot.say(NAMES, READY, 2)
    assert robot.poses == []
    robot.descriptions.publish(String(data=URDF))
    robot.spin_until(lambda: not robot.node._arm.problem)
    robot.say(NAMES, READY, 3)
    robot.spin_until(lambda: robot.poses)
    assert stamp_to_ns(robot.poses[0].header.stamp) == 3


@pytest.mark.parametrize(
    ('names', 'positions'),
    [
        (['finger_joint1'], [0.01]),  # a gripper's own
        (NAMES[:6], READY[:6]),
        (NAMES, READY[:6]),
        (NAMES, []),
        (NAMES, [math.nan] * 7),
    ],
)
def test_joint_states_that_do_not_hold_the_arm_give_no_pose_and_no_dead_node(
    robot, names, positions
):
    robot.describe()
    robot.say(names, positions, 1)
    assert robot.poses == []
    robot.say(NAMES, READY, 2)
    robot.spin_until(lambda: robot.poses)
    assert stamp_to_ns(robot.poses[0].header.stamp) == 2


def test_an_inactive_node_says_nothing(robot):
    robot.describe()
    robot.node.trigger_deactivate()
    robot.say(NAMES, READY, 1)
    assert robot.poses == []


def test_a_file_that_cannot_be_used_fails_at_configure(executor):
    node = KinematicsNode(parameter_overrides=overrides(urdf_path='/nowhere.urdf'))
    executor.add_node(node)
    assert node.trigger_configure() == TransitionCallbackReturn.FAILURE
    node.set_parameters(overrides(urdf_path=str(SEVEN)))
    assert node.trigger_configure() == TransitionCallbackReturn.FAILURE  # link names
    node.set_parameters(overrides(base_link='link0', tip_link='tcp'))
    assert node.trigger_configure() == TransitionCallbackReturn.SUCCESS
