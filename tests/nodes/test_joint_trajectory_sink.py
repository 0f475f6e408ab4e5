"""Deltas as joint targets, with a controller that goes to them."""

import math
import time

import numpy as np
import pytest
from rclpy.parameter import Parameter
from std_msgs.msg import String
from trajectory_msgs.msg import JointTrajectory

from vla_cache_ros.nodes.command_sink import CommandSinkNode
from vla_cache_ros.nodes.conversions import stamp_to_ns
from vla_cache_ros.robot.kinematics import Kinematics

from .sink_fakes import READY, SEVEN, FakeController, FakeGuard, overrides

pytestmark = pytest.mark.ros

URDF = SEVEN.read_text()
PERIOD_NS = 50_000_000


class Graph:
    """A sink of joint targets between a guard and a controller."""

    def __init__(self, executor, spin_until, spin_for, describe=True, **values) -> None:
        self.executor, self.spin_until, self.spin_for = executor, spin_until, spin_for
        settings = {
            'sink': 'joint_trajectory',
            'base_link': 'link0',
            'tip_link': 'tcp',
            'position_scale_m': 1.0,
            'rotation_scale_rad': 1.0,
            # A busy machine lets this process stand still for a while.
            'heartbeat_timeout_periods': 40.0,
            'command_timeout_s': 2.0,
            'state_timeout_s': 2.0,
        }
        self.sink = CommandSinkNode(
            parameter_overrides=overrides(autostart=True, **(settings | values))
        )
        self.kinematics = Kinematics(URDF, 'link0', 'tcp')
        self.guard = FakeGuard()
        self.controller = FakeController(list(self.kinematics.joint_names), READY)
        for node in (self.sink, self.guard, self.controller):
            executor.add_node(node)
        if describe:
            self.controller.descriptions.publish(String(data=URDF))
        spin_until(lambda: self.sink.lifecycle_state == 'active')
        spin_until(self.guard.commands.get_subscription_count)
        spin_until(lambda: self.sink._gate.has_guard(time.monotonic()))
        if describe:
            spin_until(lambda: self.sink._arm._state is not None)

    def send(self, *numbers: float, **more) -> None:
        """Send a command and wait until it is taken or refused."""
        before = sum(self.sink.counts.values())
        self.guard.send(*numbers, **more)
        self.spin_until(lambda: sum(self.sink.counts.values()) > before)
        self.spin_for(0.02)

    @property
    def tool_m(self) -> np.ndarray:
        return self.kinematics.pose(np.array(self.controller.positions)).position_m

    @property
    def target(self) -> np.ndarray:
        return np.array(self.controller.targets[-1].points[0].positions)


@pytest.fixture
def graph(executor, spin_until, spin_for):
    return Graph(executor, spin_until, spin_for)


def test_the_arm_follows_a_square(graph):
    wanted_m = graph.tool_m
    for axis, step_m in ((1, 0.01), (2, 0.01), (1, -0.01), (2, -0.01)):
        delta = np.zeros(6)
        delta[axis] = step_m
        for _ in range(5):
            graph.send(*delta)
            wanted_m = wanted_m + delta[:3]
            assert np.linalg.norm(graph.tool_m - wanted_m) < 1e-3
    assert graph.sink.counts == {'taken': 20}


def test_a_target_is_one_point_a_control_step_ahead(graph):
    graph.send(0.005)
    message = graph.controller.targets[-1]
    assert tuple(message.joint_names) == graph.kinematics.joint_names
    assert len(message.points) == 1
    assert stamp_to_ns(message.points[0].time_from_start) == PERIOD_NS
    assert not message.points[0].velocities
    now_ns = graph.sink.get_clock().now().nanoseconds
    assert 0 <= now_ns - stamp_to_ns(message.header.stamp) < 1_000_000_000


def test_the_null_action_holds_the_last_target_however_the_arm_sags(graph):
    graph.send(0.005)
    target = graph.target
    graph.controller.positions = list(target + 0.05)  # sags: less than max_following_error_rad
    graph.controller.is_blocked = True
    graph.spin_for(0.05)
    for _ in range(5):
        graph.send(0.0)
        assert graph.target == pytest.approx(target)
    graph.send(-0.005)
    assert graph.kinematics.pose(graph.target).position_m == pytest.approx(
        graph.kinematics.pose(np.array(READY)).position_m, abs=1e-4
    )


def test_after_a_pause_targets_begin_where_the_arm_is(executor, spin_until, spin_for):
    graph = Graph(executor, spin_until, spin_for, command_timeout_s=0.3)
    graph.send(0.005)
    graph.controller.positions = [angle + 0.1 for angle in READY]
    graph.spin_for(0.5)
    graph.send(0.0)
    assert graph.target == pytest.approx(np.array(READY) + 0.1)


def test_an_arm_that_does_not_follow_is_reported_and_not_pulled(graph):
    graph.send(0.005)
    graph.controller.is_blocked = True
    graph.controller.positions = [angle + 0.4 for angle in READY]
    graph.spin_for(0.05)
    graph.send(0.005)
    assert graph.sink.counts['not_following'] == 1
    assert graph.target == pytest.approx(np.array(READY) + 0.4)


def test_a_target_out_of_reach_is_refused_and_the_arm_holds(graph):
    graph.send(0.005)
    target = graph.target
    graph.send(0.3)  # 6 m/s
    assert graph.sink.counts['out_of_reach'] == 1
    assert graph.target == pytest.approx(target)
    graph.send(0.005)
    assert graph.sink.counts == {'taken': 2, 'out_of_reach': 1}


def test_a_refused_command_holds(graph):
    graph.send(0.005)
    target, count = graph.target, len(graph.controller.targets)
    graph.send(0.005, age_s=3.0)
    assert graph.sink.counts['stale'] == 1
    assert len(graph.controller.targets) == count + 1
    assert graph.target == pytest.approx(target)
    graph.send(math.nan)
    assert graph.sink.counts['bad_command'] == 1
    assert graph.target == pytest.approx(target)


def test_an_old_target_is_not_sent_again_to_an_arm_that_was_moved(executor, spin_until, spin_for):
    graph = Graph(executor, spin_until, spin_for, command_timeout_s=0.3)
    graph.send(0.005)
    count = len(graph.controller.targets)
    graph.controller.positions = [angle + 0.1 for angle in READY]  # by hand
    graph.spin_for(0.5)
    graph.send(math.nan)
    graph.send(0.005, age_s=3.0)
    graph.sink.trigger_deactivate()
    graph.spin_for(0.1)
    assert graph.sink.counts == {'taken': 1, 'bad_command': 1, 'stale': 1}
    assert len(graph.controller.targets) == count


def test_without_the_guard_the_arm_holds(executor, spin_until, spin_for):
    graph = Graph(executor, spin_until, spin_for, heartbeat_timeout_periods=12.0)
    graph.send(0.005)
    target, count = graph.target, len(graph.controller.targets)
    graph.guard.state = 'dead'
    graph.spin_until(lambda: len(graph.controller.targets) > count)
    assert graph.target == pytest.approx(target)
    graph.send(0.005)
    assert graph.sink.counts['guard_lost'] == 1
    assert graph.target == pytest.approx(target)


def test_without_fresh_joint_states_nothing_is_sent(executor, spin_until, spin_for):
    graph = Graph(executor, spin_until, spin_for, state_timeout_s=0.3)
    graph.controller.is_silent = True
    graph.spin_for(0.4)
    graph.send(0.005)
    assert graph.sink.counts['no_state'] == 1
    assert graph.controller.targets == []


def test_joint_states_that_lack_a_joint_are_refused(graph):
    graph.controller.names = graph.controller.names[:-1]
    graph.spin_for(0.05)
    graph.send(0.005)
    assert graph.sink.counts['bad_state'] == 1
    assert graph.controller.targets == []


def test_joint_states_of_nan_are_refused(graph):
    graph.controller.positions[2] = math.nan
    graph.spin_for(0.05)
    graph.send(0.005)
    assert graph.sink.counts['bad_state'] == 1
    assert graph.controller.targets == []


def test_a_description_that_comes_late_is_waited_for(executor, spin_until, spin_for):
    graph = Graph(executor, spin_until, spin_for, describe=False)
    graph.send(0.005)
    assert graph.sink.counts['no_description'] == 1
    graph.controller.descriptions.publish(String(data='<robot name="broken">'))
    spin_until(lambda: 'URDF' in graph.sink._arm.problem)
    graph.send(0.005)
    assert graph.sink.counts['no_description'] == 2
    graph.controller.descriptions.publish(String(data=URDF))
    spin_until(lambda: graph.sink._arm._state is not None)
    graph.send(0.005)
    assert graph.controller.targets


def test_a_joint_that_the_description_lacks_is_named(executor, spin_until, spin_for):
    graph = Graph(executor, spin_until, spin_for, describe=False, joint_names=['joint1', 'elbow'])
    graph.controller.descriptions.publish(String(data=URDF))
    spin_until(lambda: 'elbow' in graph.sink._arm.problem)
    assert 'joint7' in graph.sink._arm.problem


def test_the_description_may_be_a_file(executor, spin_until, spin_for):
    graph = Graph(executor, spin_until, spin_for, describe=False, urdf_path=str(SEVEN))
    spin_until(lambda: graph.sink._arm._state is not None)
    graph.send(0.005)
    assert graph.controller.targets


def test_deactivation_holds_and_activation_begins_where_the_arm_is(graph):
    graph.send(0.005)
    target, count = graph.target, len(graph.controller.targets)
    graph.sink.trigger_deactivate()
    graph.spin_until(lambda: len(graph.controller.targets) == count + 1)
    assert graph.target == pytest.approx(target)
    graph.guard.send(0.005)
    graph.spin_for(0.1)
    assert len(graph.controller.targets) == count + 1
    graph.controller.positions = [angle + 0.15 for angle in READY]
    graph.spin_for(0.05)
    graph.sink.trigger_activate()
    graph.send(0.0)
    assert graph.target == pytest.approx(np.array(READY) + 0.15)


def test_a_dry_run_shows_targets_and_moves_nothing(executor, spin_until, spin_for):
    graph = Graph(executor, spin_until, spin_for, dry_run=True)
    shown: list[JointTrajectory] = []
    topic = 'command_sink/dry_run/joint_trajectory_controller/joint_trajectory'
    graph.guard.create_subscription(JointTrajectory, topic, shown.append, 10)
    spin_until(lambda: graph.sink.count_subscribers(topic))
    graph.send(0.005)
    spin_until(lambda: shown)
    assert graph.controller.targets == []


def test_deltas_in_the_tools_frame(executor, spin_until, spin_for):
    graph = Graph(executor, spin_until, spin_for, delta_frame='tool')
    before_m = graph.tool_m
    graph.send(0.0, 0.0, 0.01)
    spin_for(0.02)
    # The tool points down.
    assert graph.tool_m - before_m == pytest.approx([0, 0, -0.01], abs=1e-4)


def test_parameters_are_read_again_at_each_configure(graph):
    graph.sink.trigger_deactivate()
    graph.sink.trigger_cleanup()
    graph.sink.set_parameters([Parameter('max_joint_speed_rad_s', value=0.01)])
    graph.sink.trigger_configure()
    graph.sink.trigger_activate()
    graph.spin_until(lambda: graph.sink._gate.has_guard(time.monotonic()))
    graph.spin_until(lambda: graph.sink._arm._state is not None)
    graph.spin_until(graph.guard.commands.get_subscription_count)
    graph.send(0.01)
    assert graph.sink.counts['out_of_reach'] == 1
