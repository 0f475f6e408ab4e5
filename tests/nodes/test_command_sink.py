"""The sink between a guard and the robot's controllers: each delta once, in time, and no more."""

import json
import math
import subprocess
import sys
import time

import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from geometry_msgs.msg import TwistStamped
from rclpy.lifecycle import TransitionCallbackReturn
from rclpy.node import Node
from rclpy.parameter import Parameter
from rosgraph_msgs.msg import Clock
from scipy.spatial.transform import Rotation

from vla_cache_ros.core.errors import ConfigError, UnknownNameError
from vla_cache_ros.nodes.command_sink import CommandSinkNode
from vla_cache_ros.nodes.conversions import ns_to_stamp, stamp_to_ns

from .sink_fakes import FakeGuard, FakeServo, overrides, to_array

pytestmark = pytest.mark.ros

PERIOD_S = 0.05
PUBLISH_S = 0.01
SECOND_NS = 1_000_000_000


class Graph:
    """A sink of velocities between a guard and a servo."""

    def __init__(self, executor, spin_until, spin_for, **values) -> None:
        self.spin_until, self.spin_for = spin_until, spin_for
        # A busy machine lets this process stand still for longer than a robot's may.
        settings = {'heartbeat_timeout_periods': 40.0, 'command_timeout_s': 2.0}
        self.sink = CommandSinkNode(
            parameter_overrides=overrides(autostart=True, frame_id='base', **(settings | values))
        )
        self.guard = FakeGuard()
        self.servo = FakeServo()
        for node in (self.sink, self.guard, self.servo):
            executor.add_node(node)
        spin_until(lambda: self.sink.lifecycle_state == 'active')
        spin_until(self.guard.commands.get_subscription_count)
        spin_until(lambda: self.sink._gate.has_guard(time.monotonic()))
        if not values.get('dry_run') and values.get('sink', 'twist') == 'twist':
            spin_until(lambda: self.servo.received)

    def last(self) -> np.ndarray:
        return to_array(self.servo.received[-1][1])

    def moving_ns(self) -> list[int]:
        """Stamps of all velocities that are not zero."""
        messages = [message for _, message in self.servo.received]
        return [stamp_to_ns(one.header.stamp) for one in messages if to_array(one).any()]

    def refused(self, reason: str) -> None:
        """Wait until a command was refused for a reason, and the arm rests."""
        self.spin_until(lambda: self.sink.counts.get(reason))
        self.spin_for(3 * PUBLISH_S)
        assert not self.last().any()


@pytest.fixture
def graph(executor, spin_until, spin_for):
    return Graph(executor, spin_until, spin_for)


def test_the_integrated_pose_follows_the_deltas(graph):
    deltas = np.random.default_rng(0).uniform(-1, 1, (20, 6))
    for delta in deltas:
        graph.guard.send(*delta)
        graph.spin_for(PERIOD_S + PUBLISH_S)  # never early: an early command cuts its predecessor
    graph.spin_for(0.1)
    shift_m = 0.05 * deltas[:, :3].sum(axis=0)
    # One publish period of each delta may be executed too much or too little.
    slack_m = 0.05 * np.abs(deltas[:, :3]).sum(axis=0) * PUBLISH_S / PERIOD_S
    assert (np.abs(graph.servo.position_m - shift_m) <= slack_m).all()
    turned = Rotation.identity()
    for delta in deltas:
        turned = Rotation.from_rotvec(0.5 * delta[3:]) * turned
    angle_rad = (turned.inv() * graph.servo.orientation).magnitude()
    assert angle_rad <= 0.5 * np.linalg.norm(deltas[:, 3:], axis=1).sum() * PUBLISH_S / PERIOD_S
    assert graph.sink.counts == {'taken': 20}


def test_velocities_are_in_si_units_in_their_frame_and_stamped_when_sent(graph):
    before_ns = graph.guard.get_clock().now().nanoseconds
    graph.guard.send(1.0, -0.5, 0.25, 0.1, 0.0, -0.2)
    graph.spin_until(lambda: graph.last().any())
    message = graph.servo.received[-1][1]
    # 0.05 m and 0.5 rad per unit, 20 steps per second.
    assert to_array(message) == pytest.approx([1.0, -0.5, 0.25, 1.0, 0.0, -2.0], rel=1e-6)
    assert message.header.frame_id == 'base'
    now_ns = graph.guard.get_clock().now().nanoseconds
    assert before_ns <= stamp_to_ns(message.header.stamp) <= now_ns


def test_the_arm_rests_once_the_control_step_is_over(graph):
    graph.guard.send(1.0)
    graph.spin_until(lambda: graph.last().any())
    graph.spin_until(lambda: not graph.last().any())
    moving_ns = graph.moving_ns()
    assert moving_ns[-1] - moving_ns[0] <= 1e9 * (PERIOD_S + PUBLISH_S)
    graph.spin_for(0.2)
    assert not graph.last().any()


def test_it_goes_on_publishing_zero_between_commands_at_the_servos_rate(graph):
    count, started_s = len(graph.servo.received), time.monotonic()
    graph.spin_until(lambda: len(graph.servo.received) >= count + 20)
    assert time.monotonic() - started_s > 0.9 * 18 * PUBLISH_S
    assert not graph.servo.twists.any()


def test_the_null_action_is_zero(graph):
    graph.guard.send(1.0)
    graph.spin_until(lambda: graph.last().any())
    graph.guard.send(0.0)
    graph.spin_until(lambda: graph.sink.counts['taken'] == 2)
    graph.spin_for(PUBLISH_S)
    assert not graph.last().any()


def test_an_old_command_is_not_executed(graph):
    graph.guard.send(1.0, age_s=2.5)
    graph.refused('stale')
    assert not graph.servo.twists.any()


def test_a_command_from_the_future_is_not_executed(graph):
    graph.guard.send(1.0, age_s=-0.5)
    graph.refused('future_stamp')
    assert not graph.servo.twists.any()


def test_no_delta_is_executed_twice(graph):
    action = np.array([[1, 0, 0, 0, 0, 0, -1]], np.float32)
    stamp_ns = graph.guard.send_actions(action)
    graph.spin_until(lambda: graph.sink.counts.get('taken'))
    graph.spin_for(0.1)
    moved_m = graph.servo.position_m[0]
    graph.guard.send_at(action, stamp_ns)
    graph.refused('repeated')
    assert graph.servo.position_m[0] == moved_m


@pytest.mark.parametrize(
    'actions',
    [
        np.full((1, 7), math.nan, np.float32),
        np.array([[0, 0, 0, 0, 0, math.inf, 0]], np.float32),
        np.zeros((2, 7), np.float32),
        np.zeros((0, 7), np.float32),
    ],
)
def test_a_command_that_is_not_one_finite_action_stops_the_arm(graph, actions):
    graph.guard.send(1.0)
    graph.spin_until(lambda: graph.last().any())
    graph.guard.send_actions(actions)
    graph.refused('bad_command')
    assert np.isfinite(graph.servo.twists).all()


def test_a_guard_of_another_rate_is_refused(graph):
    graph.guard.rate_hz = 10.0
    graph.guard.send(1.0)
    graph.refused('wrong_rate')
    assert not graph.servo.twists.any()


@pytest.mark.parametrize('state', ['dead', 'inactive'])
def test_without_the_guard_the_arm_rests_within_two_command_periods(
    executor, spin_until, spin_for, state
):
    graph = Graph(executor, spin_until, spin_for, heartbeat_timeout_periods=2.0)
    while not graph.last().any():  # a machine that stands still loses the guard now and then
        graph.guard.send(1.0)
        spin_for(0.02)
    lost_ns = graph.guard.get_clock().now().nanoseconds
    graph.guard.state = state
    graph.spin_until(lambda: not graph.last().any())
    assert graph.moving_ns()[-1] - lost_ns < 1e9 * 2 * PERIOD_S
    # Somebody else goes on sending, in the guard's name:
    graph.spin_until(lambda: not graph.sink._gate.has_guard(time.monotonic()))
    count = len(graph.servo.received)
    for _ in range(5):
        graph.guard.send(1.0)
        graph.spin_for(0.02)
    graph.refused('guard_lost')
    assert not graph.servo.twists[count:].any()
    # And back:
    graph.guard.state = 'active'
    while not graph.last().any():
        graph.guard.send(1.0)
        spin_for(0.02)


def test_a_guard_that_hangs_in_mid_motion_stops_the_arm_before_the_step_is_over(
    executor, spin_until, spin_for
):
    graph = Graph(
        executor, spin_until, spin_for, control_frequency_hz=0.2, heartbeat_timeout_periods=0.5
    )
    graph.guard.rate_hz = 0.2
    graph.guard.send(1.0)
    graph.spin_until(lambda: graph.last().any())
    graph.guard.state = 'inactive'
    graph.spin_until(lambda: not graph.last().any())
    moving_ns = graph.moving_ns()
    assert moving_ns[-1] - moving_ns[0] < 2.5e9  # of a control step of 5 s


def test_deactivation_sends_zero_and_then_nothing(graph):
    graph.guard.send(1.0)
    graph.spin_until(lambda: graph.last().any())
    assert graph.sink.trigger_deactivate() == TransitionCallbackReturn.SUCCESS
    graph.spin_until(lambda: not graph.last().any())
    count = len(graph.servo.received)
    graph.guard.send(1.0)
    graph.spin_for(0.1)
    assert len(graph.servo.received) == count
    assert graph.sink.trigger_activate() == TransitionCallbackReturn.SUCCESS
    graph.guard.send(1.0)
    graph.spin_until(lambda: graph.last().any())


@pytest.mark.parametrize('end', ['trigger_shutdown', 'destroy_node', 'fault'])
def test_shutdown_error_and_destruction_send_zero(graph, executor, monkeypatch, end):
    graph.guard.send(1.0)
    graph.spin_until(lambda: graph.last().any())
    if end == 'fault':
        stop, failures = graph.sink.stop, [RuntimeError('a fault in mid-transition')]

        def fails_once() -> None:
            if failures:
                raise failures.pop()
            stop()

        monkeypatch.setattr(graph.sink, 'stop', fails_once)
        graph.sink.trigger_deactivate()
        assert graph.sink.lifecycle_state == 'unconfigured'
    elif end == 'destroy_node':
        executor.remove_node(graph.sink)
        graph.sink.destroy_node()
    else:
        graph.sink.trigger_shutdown()
    graph.spin_until(lambda: not graph.last().any())


def test_a_faulty_transition_can_be_tried_again(graph):
    for _ in range(3):
        assert graph.sink.trigger_deactivate() == TransitionCallbackReturn.SUCCESS
        assert graph.sink.trigger_cleanup() == TransitionCallbackReturn.SUCCESS
        graph.sink.set_parameters([Parameter('control_frequency_hz', value=10.0)])
        assert graph.sink.trigger_configure() == TransitionCallbackReturn.SUCCESS
        assert graph.sink.trigger_activate() == TransitionCallbackReturn.SUCCESS
    graph.guard.rate_hz = 10.0
    graph.spin_until(lambda: graph.sink._gate.has_guard(time.monotonic()))
    graph.spin_until(graph.guard.commands.get_subscription_count)
    graph.guard.send(1.0)
    graph.spin_until(lambda: graph.last().any())
    assert graph.last()[0] == pytest.approx(0.5)


def test_a_clock_that_jumps_lengthens_no_motion(executor, spin_until, spin_for):
    simulated = {'use_sim_time': True}
    sink = CommandSinkNode(
        parameter_overrides=overrides(autostart=True, heartbeat_timeout_periods=40.0, **simulated)
    )
    guard = FakeGuard(parameter_overrides=overrides(**simulated))
    servo, time_keeper = FakeServo(), Node('clock')
    clocks = time_keeper.create_publisher(Clock, '/clock', 1)
    for node in (sink, guard, servo, time_keeper):
        executor.add_node(node)
    spin_until(lambda: servo.received)
    spin_until(guard.commands.get_subscription_count)
    spin_until(lambda: sink._gate.has_guard(time.monotonic()))

    def set_clock(now_ns: int) -> None:
        def is_set() -> bool:
            clocks.publish(Clock(clock=ns_to_stamp(now_ns)))
            return all(node.get_clock().now().nanoseconds == now_ns for node in (sink, guard))

        spin_until(is_set)

    set_clock(100 * SECOND_NS)
    guard.send(1.0)
    spin_until(lambda: servo.twists.any())
    set_clock(50 * SECOND_NS)  # time stands still there: only the monotonic clock ends the step
    spin_until(lambda: not to_array(servo.received[-1][1]).any())
    guard.send(1.0)
    spin_until(lambda: sink.counts.get('clock_backwards'))
    set_clock(50 * SECOND_NS + 1)
    count = len(servo.received)
    guard.send(1.0)
    spin_until(lambda: servo.twists[count:].any())
    guard.send_at(np.ones((1, 7), np.float32), 100 * SECOND_NS)
    spin_until(lambda: sink.counts.get('future_stamp'))


def test_a_dry_run_shows_everything_and_moves_nothing(executor, spin_until, spin_for):
    graph = Graph(executor, spin_until, spin_for, dry_run=True)
    shown: list[TwistStamped] = []
    graph.guard.create_subscription(
        TwistStamped, 'command_sink/dry_run/servo_node/delta_twist_cmds', shown.append, 10
    )
    spin_until(lambda: shown)
    graph.guard.send(1.0)
    spin_until(lambda: to_array(shown[-1]).any())
    assert graph.servo.received == []
    assert graph.sink.count_publishers('servo_node/delta_twist_cmds') == 0


def test_diagnostics_say_what_was_refused(graph):
    reports: list[DiagnosticStatus] = []
    graph.guard.create_subscription(
        DiagnosticArray, '/diagnostics', lambda message: reports.extend(message.status), 10
    )
    graph.spin_until(lambda: reports and reports[-1].level == DiagnosticStatus.OK)
    assert reports[-1].message == 'driving twist'
    graph.guard.send(1.0, age_s=2.5)
    graph.spin_until(lambda: reports[-1].level == DiagnosticStatus.WARN)
    assert reports[-1].message.startswith('stale: ')
    assert [(value.key, value.value) for value in reports[-1].values] == [('commands: stale', '1')]
    graph.guard.state = 'dead'
    graph.spin_until(lambda: reports[-1].level == DiagnosticStatus.ERROR)
    assert 'guard' in reports[-1].message


@pytest.mark.parametrize(
    'values',
    [
        {'sink': 'joint_trajectory', 'urdf_path': '/nowhere/robot.urdf'},
        {'gripper': 'joint_trajectory', 'gripper_open_position': [0.0, 0.1]},
        {'gripper': 'joint_trajectory', 'gripper_joint_names': ['']},
        {'gripper': 'gripper_command'},  # control_msgs is not installed here
    ],
)
def test_what_cannot_be_configured_fails_and_may_be_tried_again(executor, values):
    sink = CommandSinkNode(parameter_overrides=overrides(**values))
    executor.add_node(sink)
    assert sink.trigger_configure() == TransitionCallbackReturn.FAILURE
    sink.set_parameters(overrides(sink='twist', gripper='none'))
    assert sink.trigger_configure() == TransitionCallbackReturn.SUCCESS


@pytest.mark.parametrize(
    ('values', 'error'),
    [
        ({'sink': 'torque'}, UnknownNameError),
        ({'gripper': 'suction'}, UnknownNameError),
        ({'delta_frame': 'world'}, UnknownNameError),
        ({'control_frequency_hz': 0.0}, ConfigError),
        ({'position_scale_m': -1.0}, ConfigError),
    ],
)
def test_parameters_out_of_range_are_refused(ros, values, error):
    with pytest.raises(error):
        CommandSinkNode(parameter_overrides=overrides(**values))


def test_velocities_need_neither_model_nor_camera_nor_kinematics():
    code = """
import sys, json, time
started_s = time.process_time()
import rclpy
from vla_cache_ros.nodes.command_sink import CommandSinkNode
rclpy.init()
node = CommandSinkNode()
node.trigger_configure()
node.trigger_activate()
heavy = ('torch', 'cv2', 'pinocchio', 'vla_cache_models', 'vla_cache_sim', 'vla_cache_trt')
loaded = [name for name in heavy if name in sys.modules]
print(json.dumps([node.lifecycle_state, loaded, time.process_time() - started_s]))
node.destroy_node()
rclpy.shutdown()
"""
    result = subprocess.run(
        [sys.executable, '-c', code], capture_output=True, text=True, timeout=60, check=True
    )
    state, loaded, cpu_s = json.loads(result.stdout)
    assert (state, loaded) == ('active', [])
    assert cpu_s < 1.0  # CPU time: another process's load must not decide
