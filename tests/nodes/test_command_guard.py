"""The guard through real topics: order, staleness, limits, NaN, revocation, no repetition."""

import subprocess
import sys

import numpy as np
import pytest
from rclpy.lifecycle import TransitionCallbackReturn
from rclpy.node import Node
from rclpy.parameter import Parameter
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import JointState
from std_srvs.srv import Trigger
from vla_cache_interfaces.msg import ActionChunk as ActionChunkMessage
from vla_cache_interfaces.msg import GuardStatus

from vla_cache_ros.core.types import ActionChunk
from vla_cache_ros.nodes import qos
from vla_cache_ros.nodes.chunk_messages import chunk_to_message, message_to_command
from vla_cache_ros.nodes.command_guard import CommandGuardNode
from vla_cache_ros.nodes.conversions import ns_to_stamp, stamp_to_ns
from vla_cache_ros.nodes.report_messages import CommandReport, message_to_guard

pytestmark = pytest.mark.ros

PERIOD_NS = 50_000_000
SECOND_NS = 1_000_000_000
UNWATCHED = {'heartbeat_timeout_periods': 0.0}
NULL = [0, 0, 0, 0, 0, 0, -1]


def chunk(size: int = 8, value: float = 0.5) -> np.ndarray:
    actions = np.full((size, 7), value, np.float32)
    actions[:, 1] = 0.1 * np.arange(size)
    return actions


class Arm:
    """The policy before the guard and the arm behind it."""

    def __init__(self, executor, spin_until, spin_for, **parameters) -> None:
        self.spin_until, self.spin_for = spin_until, spin_for
        overrides = [Parameter(name, value=value) for name, value in parameters.items()]
        self.guard = CommandGuardNode(parameter_overrides=overrides)
        peer = self.peer = Node('arm')
        self.chunks = qos.publish(peer, ActionChunkMessage, 'vla/action_chunk', qos.command())
        self.states = qos.publish(peer, JointState, 'joint_states', qos.state())
        self.clock = qos.publish(peer, Clock, '/clock', qos.clock())
        self.commands: list[ActionChunkMessage] = []
        self.status: list[CommandReport] = []
        qos.subscribe(peer, ActionChunkMessage, 'vla/action', self.commands.append, qos.command())
        qos.subscribe(
            peer,
            GuardStatus,
            'vla/status',
            lambda message: self.status.append(message_to_guard(message)),
            qos.report(),
        )
        self.reset = peer.create_client(Trigger, 'command_guard/reset')
        executor.add_node(self.guard)
        executor.add_node(peer)
        spin_until(lambda: self.guard.lifecycle_state == 'active')
        spin_until(
            lambda: (
                not self.guard.unconnected()
                and self.guard._status_publisher.get_subscription_count()
                and self.chunks.get_subscription_count()
                and self.reset.service_is_ready()
            )
        )
        if self.guard._settings.pacing == 'state':
            spin_until(self.states.get_subscription_count)

    def send(self, actions: np.ndarray, stamp_ns: int) -> None:
        self.chunks.publish(chunk_to_message(ActionChunk(actions, stamp_ns), 20.0))
        self.spin_for(0.01)

    def ask(self, stamp_ns: int) -> None:
        message = JointState()
        message.header.stamp = ns_to_stamp(stamp_ns)
        self.states.publish(message)
        self.spin_for(0.01)

    def next_command(self) -> tuple[list[float], CommandReport]:
        self.spin_until(lambda: self.commands and self.status)
        action = message_to_command(self.commands.pop(0))
        return action.round(4).tolist(), self.status.pop(0)


@pytest.fixture
def arm(executor, spin_until, spin_for):
    return Arm(executor, spin_until, spin_for, pacing='state', actions_per_chunk=8)


def test_each_state_gets_one_action_in_order(arm):
    arm.send(chunk(), SECOND_NS)
    for index in range(8):
        stamp_ns = SECOND_NS + index * PERIOD_NS
        arm.ask(stamp_ns)
        arm.spin_until(lambda: arm.commands)
        assert stamp_to_ns(arm.commands[0].header.stamp) == stamp_ns
        action, status = arm.next_command()
        assert action[1] == pytest.approx(0.1 * index)
        assert (status.index, status.image_stamp_ns) == (index, SECOND_NS)
        assert status.reasons == ()
    arm.ask(SECOND_NS + 8 * PERIOD_NS)
    assert arm.commands == []  # the chunk is used up: the state waits for the next one
    arm.send(chunk(), SECOND_NS + 8 * PERIOD_NS)
    assert arm.next_command()[1].index == 0


def test_chunk_arrives_after_the_state_that_asks(arm):
    arm.ask(SECOND_NS)
    assert arm.commands == []
    arm.send(chunk(), SECOND_NS)
    assert arm.next_command()[0][0] == 0.5
    assert arm.commands == []


def test_newer_chunk_replaces_the_rest_of_the_older(arm):
    arm.send(chunk(), SECOND_NS)
    arm.ask(SECOND_NS)
    arm.next_command()
    arm.send(chunk(value=-0.25), SECOND_NS + PERIOD_NS)
    arm.ask(SECOND_NS + PERIOD_NS)
    action, status = arm.next_command()
    assert (action[0], status.index) == (-0.25, 0)


def test_no_chunk_is_executed_twice(arm):
    arm.send(chunk(1), SECOND_NS)
    arm.ask(SECOND_NS)
    arm.next_command()
    arm.send(chunk(1), SECOND_NS)
    arm.ask(SECOND_NS + PERIOD_NS)
    assert arm.commands == []
    assert arm.guard.counts['repeated_chunk'] == 1


def test_stale_action_becomes_the_null_action(arm):
    arm.send(chunk(), SECOND_NS)
    arm.ask(SECOND_NS + 1_001_000_000)
    action, status = arm.next_command()
    assert action == NULL
    assert status.reasons == ('stale',)


def test_nan_becomes_the_null_action(arm):
    actions = chunk()
    actions[0, 3] = np.nan
    arm.send(actions, SECOND_NS)
    arm.ask(SECOND_NS)
    action, status = arm.next_command()
    assert action == NULL
    assert status.reasons == ('non_finite',)
    arm.ask(SECOND_NS + PERIOD_NS)
    assert arm.next_command()[0][0] == 0.5


def test_null_action_keeps_the_gripper_closed(arm):
    actions = chunk(2)
    actions[:, 6] = 1
    actions[1, 0] = np.inf
    arm.send(actions, SECOND_NS)
    arm.ask(SECOND_NS)
    assert arm.next_command()[0][6] == 1
    arm.ask(SECOND_NS + PERIOD_NS)
    assert arm.next_command()[0] == [0, 0, 0, 0, 0, 0, 1]


def test_limits_clip_and_are_reported(executor, spin_until, spin_for):
    limits = [0.3, *[1.0] * 6]
    arm = Arm(executor, spin_until, spin_for, pacing='state', upper_limits=limits)
    arm.send(chunk(), SECOND_NS)
    arm.ask(SECOND_NS)
    action, status = arm.next_command()
    assert action[0] == pytest.approx(0.3)
    assert status.reasons == ('limit_x',)
    assert not status.is_null


def test_empty_chunk_revokes_the_rest_and_null_actions_stand_in(executor, spin_until, spin_for):
    arm = Arm(executor, spin_until, spin_for, pacing='state', actions_per_chunk=2)
    arm.send(chunk(), SECOND_NS)
    arm.ask(SECOND_NS)
    arm.next_command()
    arm.send(chunk(0), SECOND_NS + PERIOD_NS)
    for step in (1, 2):
        arm.ask(SECOND_NS + step * PERIOD_NS)
        action, status = arm.next_command()
        assert action == [0, 0, 0, 0, 0, 0, 0.5]
        assert status.reasons == ('no_action',)
    arm.ask(SECOND_NS + 3 * PERIOD_NS)
    assert arm.commands == []  # the next chunk is due
    arm.send(chunk(), SECOND_NS + 3 * PERIOD_NS)
    assert arm.next_command()[1].index == 0


def test_empty_chunk_answers_the_state_that_waits(arm):
    arm.ask(SECOND_NS)
    arm.send(chunk(0), SECOND_NS)
    action, status = arm.next_command()
    assert action == NULL
    assert status.reasons == ('no_action',)


def test_chunk_of_another_shape_is_refused(arm):
    arm.ask(SECOND_NS)
    message = chunk_to_message(ActionChunk(chunk(), SECOND_NS), 20.0)
    message.axes = ['panda_joint1']
    arm.chunks.publish(message)
    action, status = arm.next_command()
    assert action == NULL
    assert arm.guard.counts['bad_chunk'] == 1


def test_clock_going_backwards_voids_the_chunk(arm):
    arm.send(chunk(), 5 * SECOND_NS)
    arm.ask(5 * SECOND_NS)
    arm.next_command()
    arm.ask(SECOND_NS)
    action, status = arm.next_command()
    assert action[:6] == NULL[:6]
    assert 'clock_backwards' in status.reasons
    arm.send(chunk(), SECOND_NS + PERIOD_NS)
    arm.ask(SECOND_NS + PERIOD_NS)
    assert arm.next_command()[1].reasons == ()


def test_reset_forgets_the_chunk(arm, spin_until):
    arm.send(chunk(), SECOND_NS)
    answer = arm.reset.call_async(Trigger.Request())
    spin_until(answer.done)
    assert answer.result().success
    arm.ask(SECOND_NS)
    assert arm.commands == []


def test_timer_sends_null_actions_while_the_policy_is_silent(executor, spin_until, spin_for):
    arm = Arm(executor, spin_until, spin_for, control_frequency_hz=100.0, **UNWATCHED)
    for _ in range(3):
        action, status = arm.next_command()
        assert action == NULL
        assert status.reasons == ('no_action',)


def test_timer_plays_a_chunk_once_and_then_rests(executor, spin_until, spin_for):
    arm = Arm(
        executor,
        spin_until,
        spin_for,
        control_frequency_hz=50.0,
        actions_per_chunk=4,
        run_on_steps=0,
        **UNWATCHED,
    )
    arm.send(chunk(), arm.guard.get_clock().now().nanoseconds)

    def moves() -> list[np.ndarray]:
        return [message_to_command(command) for command in arm.commands]

    spin_until(lambda: sum(bool(move[0]) for move in moves()) == 4)
    spin_until(lambda: not moves()[-1][0])
    spin_for(0.1)
    assert [round(float(move[1]) * 10) for move in moves() if move[0]] == [0, 1, 2, 3]


def test_timer_follows_simulated_time(executor, spin_until, spin_for):
    arm = Arm(executor, spin_until, spin_for, use_sim_time=True, **UNWATCHED)
    spin_until(arm.clock.get_subscription_count)
    arm.clock.publish(Clock(clock=ns_to_stamp(SECOND_NS)))
    spin_for(0.1)
    arm.commands.clear()
    spin_for(0.1)
    assert arm.commands == []  # simulated time stands
    for step in range(1, 4):
        arm.clock.publish(Clock(clock=ns_to_stamp(SECOND_NS + step * PERIOD_NS)))
        spin_for(0.03)
    spin_until(lambda: len(arm.commands) >= 2)
    assert len(arm.commands) <= 3


def test_dry_run_reports_and_sends_nothing(executor, spin_until, spin_for):
    arm = Arm(executor, spin_until, spin_for, pacing='state', dry_run=True)
    arm.send(chunk(), SECOND_NS)
    arm.ask(SECOND_NS)
    spin_until(lambda: arm.status)
    assert arm.status[0].dry_run
    assert arm.commands == []


def test_contradicting_limits_are_refused(ros):
    node = CommandGuardNode(parameter_overrides=[Parameter('upper_limits', value=[1.0, 1.0])])
    assert node.trigger_configure() == TransitionCallbackReturn.FAILURE
    assert node.lifecycle_state == 'unconfigured'
    node.destroy_node()


def test_guard_needs_no_torch():
    code = (
        'import sys; import vla_cache_ros.nodes.command_guard; '
        'sys.exit("torch" in sys.modules or "gymnasium" in sys.modules)'
    )
    assert subprocess.run([sys.executable, '-c', code], check=False).returncode == 0
