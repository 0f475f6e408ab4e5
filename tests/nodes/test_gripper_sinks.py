"""The gripper by trajectory, and by control_msgs' actions behind a stand-in of that package."""

import sys
import time
from types import ModuleType, SimpleNamespace

import pytest
from sensor_msgs.msg import JointState
from trajectory_msgs.msg import JointTrajectory

from vla_cache_ros.core.errors import ConfigError
from vla_cache_ros.nodes.command_sink import CommandSinkNode
from vla_cache_ros.nodes.conversions import stamp_to_ns
from vla_cache_ros.nodes.gripper_sinks import ANSWER_TIMEOUT_S, ActionGripper
from vla_cache_ros.nodes.parameter_tables.command_sink import SinkParameters

from .sink_fakes import FakeGuard, overrides

pytestmark = pytest.mark.ros


class Graph:
    """A sink that drives a gripper alone."""

    def __init__(self, executor, spin_until, spin_for, **values) -> None:
        self.spin_until, self.spin_for = spin_until, spin_for
        settings = {
            'sink': 'none',
            'gripper': 'joint_trajectory',
            'gripper_joint_names': ['left_finger', 'right_finger'],
            'gripper_open_position': [0.04, -0.04],
            'gripper_closed_position': [0.0, 0.0],
            'heartbeat_timeout_periods': 40.0,
            'command_timeout_s': 2.0,
        }
        self.sink = CommandSinkNode(
            parameter_overrides=overrides(autostart=True, **(settings | values))
        )
        self.guard = FakeGuard()
        self.received: list[JointTrajectory] = []
        executor.add_node(self.sink)
        executor.add_node(self.guard)
        spin_until(lambda: self.sink.lifecycle_state == 'active')
        spin_until(self.guard.commands.get_subscription_count)
        spin_until(lambda: self.sink._gate.has_guard(time.monotonic()))

    def listen(self, topic: str = 'gripper_controller/joint_trajectory') -> None:
        self.guard.create_subscription(JointTrajectory, topic, self.received.append, 10)
        self.spin_until(lambda: self.sink._gripper._publisher.get_subscription_count())

    def send(self, *numbers: float, gripper: float) -> None:
        before = sum(self.sink.counts.values())
        self.guard.send(*numbers, gripper=gripper)
        self.spin_until(lambda: sum(self.sink.counts.values()) > before)
        self.spin_for(0.02)

    @property
    def positions(self) -> list[list[float]]:
        return [list(message.points[0].positions) for message in self.received]


@pytest.fixture
def graph(executor, spin_until, spin_for):
    return Graph(executor, spin_until, spin_for)


def test_the_gripper_is_told_on_change_alone(graph):
    graph.listen()
    for value in (1.0, 1.0, 0.1, -0.1, 0.9, -1.0, -1.0):
        graph.send(0.1, gripper=value)
    graph.spin_until(lambda: len(graph.received) == 2)
    assert graph.positions == [[0.0, 0.0], [0.04, -0.04]]
    message = graph.received[0]
    assert list(message.joint_names) == ['left_finger', 'right_finger']
    assert stamp_to_ns(message.points[0].time_from_start) == 500_000_000


def test_null_actions_before_the_first_motion_open_nothing(graph):
    graph.listen()
    for _ in range(3):
        graph.send(0.0, gripper=-1.0)
    assert graph.received == []
    graph.send(0.1, gripper=-1.0)
    graph.spin_until(lambda: graph.positions == [[0.04, -0.04]])


def test_a_controller_that_comes_late_is_told_then(graph):
    graph.send(0.1, gripper=1.0)
    graph.listen()
    graph.send(0.1, gripper=1.0)
    graph.spin_until(lambda: graph.received)
    graph.send(0.1, gripper=1.0)
    assert graph.positions == [[0.0, 0.0]]


def test_the_gripper_holds_on_deactivation_and_is_told_again_after_it(graph):
    graph.listen()
    graph.send(0.1, gripper=1.0)
    graph.sink.trigger_deactivate()
    graph.spin_for(0.05)
    assert graph.positions == [[0.0, 0.0]]
    graph.sink.trigger_activate()
    graph.send(0.1, gripper=1.0)
    graph.spin_until(lambda: graph.positions == [[0.0, 0.0], [0.0, 0.0]])


def test_a_guard_that_was_started_again_drops_nothing(graph):
    graph.listen()
    graph.send(0.1, gripper=1.0)
    graph.guard.state = 'inactive'  # and knows nothing of the gripper afterwards
    graph.spin_until(lambda: not graph.sink._gate.has_guard(time.monotonic()))
    graph.guard.state = 'active'
    graph.spin_until(lambda: graph.sink._gate.has_guard(time.monotonic()))
    graph.send(0.0, gripper=-1.0)
    graph.send(0.1, gripper=1.0)
    assert graph.positions == [[0.0, 0.0]]


def test_a_stale_command_does_not_move_the_gripper(graph):
    graph.listen()
    graph.guard.send(0.1, gripper=1.0, age_s=3.0)
    graph.spin_until(lambda: graph.sink.counts.get('stale'))
    graph.spin_for(0.05)
    assert graph.received == []


def test_a_dry_run_shows_the_gripper_and_moves_nothing(executor, spin_until, spin_for):
    graph = Graph(executor, spin_until, spin_for, dry_run=True)
    graph.listen('command_sink/dry_run/gripper_controller/joint_trajectory')
    graph.send(0.1, gripper=1.0)
    graph.spin_until(lambda: graph.received)
    assert graph.sink.count_publishers('gripper_controller/joint_trajectory') == 0


# Actions


class FakeAnswer:
    """A future of a goal's answer."""

    def __init__(self) -> None:
        self.callbacks = []
        self.handle = None
        self.error = None

    def add_done_callback(self, callback) -> None:
        self.callbacks.append(callback)

    def exception(self):
        return self.error

    def result(self):
        return self.handle

    def give(self, accepted: bool) -> None:
        self.handle = SimpleNamespace(accepted=accepted)
        self.end()

    def end(self) -> None:
        for callback in self.callbacks:
            callback(self)


class FakeClient:
    """An action client whose server answers when the test says so."""

    def __init__(self, node, action, name) -> None:
        self.action, self.name = action, name
        self.is_ready = True
        self.is_destroyed = False
        self.goals, self.answers = [], []

    def server_is_ready(self) -> bool:
        return self.is_ready

    def send_goal_async(self, goal) -> FakeAnswer:
        self.goals.append(goal)
        self.answers.append(FakeAnswer())
        return self.answers[-1]

    def destroy(self) -> None:
        self.is_destroyed = True


class FakeNode:
    """Owns what is given to it, and logs nothing."""

    def own(self, entity, destroy):
        return entity

    def get_logger(self):
        return SimpleNamespace(info=lambda *_, **__: None, warning=lambda *_, **__: None)


@pytest.fixture
def control_msgs(monkeypatch):
    def goal_of(command) -> type:
        return type('Goal', (), {'__init__': lambda self: setattr(self, 'command', command())})

    module = ModuleType('control_msgs.action')
    module.GripperCommand = SimpleNamespace(Goal=goal_of(SimpleNamespace))
    module.ParallelGripperCommand = SimpleNamespace(Goal=goal_of(JointState))
    monkeypatch.setitem(sys.modules, 'control_msgs', ModuleType('control_msgs'))
    monkeypatch.setitem(sys.modules, 'control_msgs.action', module)
    return module


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


def action_gripper(clock, **values) -> ActionGripper:
    settings = {
        'gripper_joint_names': ('jaw',),
        'gripper_open_position': (1.7,),
        'gripper_closed_position': (-0.17,),
        'gripper_action': 'gripper_controller/gripper_cmd',
    }
    return ActionGripper(FakeNode(), SinkParameters(**(settings | values)), FakeClient, clock)


def test_gripper_command_says_position_and_effort(control_msgs, clock):
    gripper = action_gripper(clock, gripper='gripper_command', gripper_max_effort=20.0)
    assert gripper._client.action is control_msgs.GripperCommand
    assert gripper._client.name == 'gripper_controller/gripper_cmd'
    assert gripper.send(close=True)
    assert gripper.send(close=False)
    sent = [(goal.command.position, goal.command.max_effort) for goal in gripper._client.goals]
    assert sent == [(-0.17, 20.0), (1.7, 20.0)]


def test_parallel_gripper_command_names_its_joints(control_msgs, clock):
    gripper = action_gripper(clock, gripper='parallel_gripper_command')
    gripper.send(close=True)
    command = gripper._client.goals[0].command
    assert (list(command.name), list(command.position)) == (['jaw'], [-0.17])
    assert not command.effort
    gripper = action_gripper(clock, gripper='parallel_gripper_command', gripper_max_effort=2.0)
    gripper.send(close=True)
    assert list(gripper._client.goals[0].command.effort) == [2.0]


def test_a_goal_that_was_accepted_is_not_lost(control_msgs, clock):
    gripper = action_gripper(clock, gripper='gripper_command')
    gripper.send(close=True)
    gripper._client.answers[0].give(accepted=True)
    clock.now_s += 10 * ANSWER_TIMEOUT_S
    assert not gripper.has_lost()


def test_a_goal_that_was_refused_or_not_answered_is_lost_once(control_msgs, clock):
    gripper = action_gripper(clock, gripper='gripper_command')
    gripper.send(close=True)
    assert not gripper.has_lost()
    gripper._client.answers[0].give(accepted=False)
    assert gripper.has_lost()
    assert not gripper.has_lost()
    gripper.send(close=True)
    clock.now_s += 1.01 * ANSWER_TIMEOUT_S
    assert gripper.has_lost()
    assert not gripper.has_lost()
    gripper.send(close=True)
    gripper._client.answers[-1].error = RuntimeError('the server went')
    gripper._client.answers[-1].end()
    assert gripper.has_lost()


def test_answers_to_older_goals_say_nothing(control_msgs, clock):
    gripper = action_gripper(clock, gripper='gripper_command')
    gripper.send(close=True)
    gripper.send(close=False)
    gripper._client.answers[0].give(accepted=False)
    assert not gripper.has_lost()


def test_without_a_server_nothing_is_sent(control_msgs, clock):
    gripper = action_gripper(clock, gripper='gripper_command')
    gripper._client.is_ready = False
    assert not gripper.send(close=True)
    assert gripper._client.goals == []


def test_a_dry_run_sends_no_goal(control_msgs, clock):
    gripper = action_gripper(clock, gripper='gripper_command', dry_run=True)
    assert gripper.send(close=True)
    assert gripper._client.goals == []


def test_the_sink_sends_a_lost_goal_again(
    control_msgs, monkeypatch, executor, spin_until, spin_for
):
    monkeypatch.setattr('vla_cache_ros.nodes.gripper_sinks.ActionGripper.__init__', _with_fakes)
    graph = Graph(
        executor,
        spin_until,
        spin_for,
        gripper='gripper_command',
        gripper_joint_names=['jaw'],
        gripper_open_position=[1.0],
        gripper_closed_position=[0.0],
    )
    client = graph.sink._gripper._client
    graph.send(0.1, gripper=1.0)
    graph.send(0.1, gripper=1.0)
    assert len(client.goals) == 1
    client.answers[0].give(accepted=False)
    graph.send(0.1, gripper=1.0)
    assert len(client.goals) == 2
    client.answers[1].give(accepted=True)
    graph.send(0.1, gripper=1.0)
    assert len(client.goals) == 2
    graph.sink.trigger_deactivate()
    graph.sink.trigger_cleanup()
    assert client.is_destroyed


_INIT = ActionGripper.__init__


def _with_fakes(self, node, parameters) -> None:
    _INIT(self, node, parameters, make_client=FakeClient)


@pytest.mark.parametrize('kind', ['gripper_command', 'parallel_gripper_command'])
def test_without_control_msgs_the_message_says_what_to_do(clock, kind, monkeypatch):
    monkeypatch.setitem(sys.modules, 'control_msgs', None)
    with pytest.raises(ConfigError, match='ros-.ROS_DISTRO-control-msgs'):
        action_gripper(clock, gripper=kind)


def test_a_control_msgs_without_the_action_is_refused(control_msgs, clock):
    del control_msgs.ParallelGripperCommand
    with pytest.raises(ConfigError, match='ParallelGripperCommand'):
        action_gripper(clock, gripper='parallel_gripper_command')
