"""The simulator's node: what it publishes, lockstep, realtime, resets, failures."""

import json

import numpy as np
import pytest
from geometry_msgs.msg import PoseStamped
from rclpy.lifecycle import TransitionCallbackReturn
from rclpy.node import Node
from rclpy.parameter import Parameter
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import Image, JointState, TimeReference
from std_msgs.msg import String
from std_srvs.srv import Trigger
from vla_cache_interfaces.msg import ActionChunk as ActionChunkMessage
from vla_cache_interfaces.msg import Heartbeat

from vla_cache_ros.core.errors import SimulatorError
from vla_cache_ros.core.types import ActionChunk
from vla_cache_ros.nodes import qos
from vla_cache_ros.nodes.chunk_messages import AXES, chunk_to_message, empty_chunk
from vla_cache_ros.nodes.conversions import stamp_to_ns
from vla_cache_ros.nodes.image_conversions import image_to_rgb
from vla_cache_ros.nodes.sim_bridge import JOINT_NAMES, SimBridge

pytestmark = pytest.mark.ros

SUCCESS = TransitionCallbackReturn.SUCCESS
FIRST_NS = 1_000_000_000
PERIOD_NS = 50_000_000


class Peer:
    """Reads everything that the simulator publishes, and commands it."""

    def __init__(self, executor, spin_until, env, **parameters) -> None:
        self.spin_until = spin_until
        self.env = env
        self.failure: Exception | None = None
        values = {'reset_services': ['peer/reset'], **parameters}
        overrides = [Parameter(name, value=value) for name, value in values.items()]
        self.bridge = SimBridge(self._make, parameter_overrides=overrides)
        node = self.node = Node('peer')
        self.received: dict[str, list] = {}
        for name, kind, topic, profile in (
            ('agentview', Image, 'camera/agentview/image_raw', qos.frame()),
            ('wrist', Image, 'camera/wrist/image_raw', qos.frame()),
            ('joints', JointState, 'joint_states', qos.state()),
            ('pose', PoseStamped, 'ee_pose', qos.state()),
            ('clock', Clock, '/clock', qos.clock()),
            ('instruction', String, 'vla/instruction', qos.latched()),
            ('episode', String, 'sim_bridge/episode', qos.report()),
            ('time', TimeReference, 'sim_bridge/time_reference', qos.report()),
        ):
            self.received[name] = []
            qos.subscribe(node, kind, topic, self.received[name].append, profile)
        self.commands = qos.publish(node, ActionChunkMessage, 'vla/action', qos.command())
        self.resets = 0
        self.known_instruction: str | None = None
        node.create_service(Trigger, '~/reset', self._on_reset)
        self.reset = node.create_client(Trigger, 'sim_bridge/reset')
        executor.add_node(self.bridge)
        executor.add_node(node)

    def _make(self, parameters):
        if self.failure is not None:
            raise self.failure
        return self.env

    def _on_reset(self, _, response):
        self.resets += 1
        response.success = True
        if self.known_instruction is not None:
            response.message = json.dumps({'instruction': self.known_instruction})
        return response

    def activate(self) -> 'Peer':
        assert self.bridge.trigger_configure() == SUCCESS
        assert self.bridge.trigger_activate() == SUCCESS
        wanted = {subscription.topic_name for subscription in self.node.subscriptions}
        publishers = [one for one in self.bridge.publishers if one.topic_name in wanted]
        assert len(publishers) == len(self.received)
        self.spin_until(
            lambda: (
                self.commands.get_subscription_count()
                and all(publisher.get_subscription_count() for publisher in publishers)
            )
        )
        return self

    def call_reset(self, **parameters):
        self.bridge.set_parameters(
            [Parameter(name, value=value) for name, value in parameters.items()]
        )
        self.spin_until(self.reset.service_is_ready)
        answer = self.reset.call_async(Trigger.Request())
        self.spin_until(answer.done)
        result = answer.result()
        assert result is not None
        return result

    def begin(self, **parameters) -> 'Peer':
        before = len(self.received['joints'])
        assert self.call_reset(**parameters).success
        self.spin_until(lambda: len(self.received['joints']) > before)
        return self

    def expect(self, name: str, count: int):
        self.spin_until(lambda: len(self.received[name]) >= count)
        assert len(self.received[name]) == count
        return self.received[name][-1]

    def events(self) -> list[dict]:
        return [json.loads(message.data) for message in self.received['episode']]

    def expect_end(self) -> dict:
        self.spin_until(lambda: any(event['event'] == 'end' for event in self.events()))
        return next(event for event in self.events() if event['event'] == 'end')

    def command(self, stamp_ns: int, x: float = 0.5) -> None:
        action = np.array([[x, 0, 0, 0, 0, 0, 1]], np.float32)
        chunk = ActionChunk(action, stamp_ns)
        self.commands.publish(chunk_to_message(chunk, 20.0))


@pytest.fixture
def peer(executor, spin_until, env):
    return Peer(executor, spin_until, env, frame_every=2)


def test_every_transition_in_turn(peer, env):
    bridge = peer.bridge
    for _ in range(2):
        assert bridge.trigger_configure() == SUCCESS
        assert bridge.trigger_activate() == SUCCESS
        assert bridge.trigger_deactivate() == SUCCESS
        env.is_closed = False
        assert bridge.trigger_cleanup() == SUCCESS
        assert env.is_closed
        assert bridge.count_publishers('joint_states') == 0
    assert bridge.trigger_shutdown() == SUCCESS


@pytest.mark.parametrize('begin', ['unconfigured', 'inactive', 'active'])
def test_shutdown_from_every_state(peer, env, begin):
    if begin != 'unconfigured':
        peer.bridge.trigger_configure()
    if begin == 'active':
        peer.bridge.trigger_activate()
    assert peer.bridge.trigger_shutdown() == SUCCESS
    assert env.is_closed == (begin != 'unconfigured')


def test_simulator_that_is_not_installed_leaves_the_node_unconfigured(peer):
    peer.failure = SimulatorError('LIBERO is not installed.')
    assert peer.bridge.trigger_configure() == TransitionCallbackReturn.FAILURE
    peer.failure = RuntimeError('no EGL device')
    assert peer.bridge.trigger_configure() == TransitionCallbackReturn.ERROR
    peer.failure = None
    assert peer.bridge.trigger_configure() == SUCCESS


def test_first_frame_holds_everything_under_one_stamp(peer, env):
    peer.activate().begin(task=3, init_state=11, seed=5)
    assert env.resets == [{'seed': 5, 'task': 3, 'init_state': 11}]
    image = peer.expect('wrist', 1)
    stamps = {
        stamp_to_ns(peer.expect(name, 1).header.stamp)
        for name in ('agentview', 'wrist', 'joints', 'pose', 'time')
    }
    assert stamps == {FIRST_NS}
    assert stamp_to_ns(peer.expect('clock', 1).clock) == FIRST_NS
    assert image_to_rgb(image).shape == (16, 16, 3)
    assert image.header.frame_id == 'wrist_optical_frame'
    joints, pose = peer.received['joints'][0], peer.received['pose'][0]
    assert tuple(joints.name) == JOINT_NAMES
    np.testing.assert_allclose(joints.position, [*np.linspace(0.1, 0.7, 7), 0.04, -0.04], 1e-6)
    assert pose.pose.position.z == 11
    assert pose.header.frame_id == 'world'
    assert peer.expect('instruction', 1).data == 'push the point'
    assert [event['event'] for event in peer.events()] == ['start']


def test_one_step_per_command_and_images_only_where_due(peer, env):
    peer.activate().begin()
    for step in range(4):
        peer.command(FIRST_NS + step * PERIOD_NS)
        peer.expect('joints', step + 2)
    peer.expect('agentview', 3)
    assert len(env.actions) == 4
    assert env.renders == 3
    images = [stamp_to_ns(image.header.stamp) for image in peer.received['agentview']]
    assert images == [FIRST_NS + step * PERIOD_NS for step in (0, 2, 4)]
    np.testing.assert_allclose(env.actions[0], [0.5, 0, 0, 0, 0, 0, 1])


def test_command_for_another_state_is_not_executed(peer, env, spin_for):
    peer.activate().begin()
    peer.command(FIRST_NS - PERIOD_NS)
    spin_for(0.05)
    assert env.actions == []
    peer.command(FIRST_NS)
    peer.expect('joints', 2)
    peer.bridge.trigger_deactivate()
    assert peer.expect_end()['late_commands'] == 1


@pytest.mark.parametrize(
    ('actions', 'axes'),
    [
        ([float('nan')] * 7, AXES),
        ([0.5] * 14, AXES),
        ([], AXES),
        ([0.5] * 6, AXES),
        ([0.5] * 7, AXES[::-1]),
        ([0.5] * 7, ()),
    ],
)
def test_what_is_no_command_is_counted_and_not_executed(peer, env, spin_for, actions, axes):
    peer.activate().begin()
    message = chunk_to_message(empty_chunk(FIRST_NS), 20.0)
    message.actions, message.axes = actions, list(axes)
    peer.commands.publish(message)
    spin_for(0.05)
    assert env.actions == []
    peer.bridge.trigger_deactivate()
    assert peer.expect_end()['refused_commands'] == 1


def test_signs_of_life_tell_the_state(peer, spin_until):
    states: list[str] = []

    def hear(beat: Heartbeat) -> None:
        states.append(beat.state)

    qos.subscribe(peer.node, Heartbeat, 'sim_bridge/heartbeat', hear, qos.heartbeat())
    spin_until(lambda: 'unconfigured' in states)
    peer.bridge.trigger_configure()
    spin_until(lambda: 'inactive' in states)
    peer.bridge.trigger_activate()
    spin_until(lambda: 'active' in states)


def test_episode_end_is_published(peer, env):
    peer.activate().begin(task=1, init_state=2)
    for step in range(5):
        peer.command(FIRST_NS + step * PERIOD_NS, x=2.0)
        if step < 4:
            peer.expect('joints', step + 2)
    end = peer.expect_end()
    assert (end['success'], end['reason'], end['steps']) == (True, 'success', 5)
    assert (end['task'], end['init_state'], end['suite']) == (1, 2, 'libero_object')
    assert end['null_steps'] == 0


def test_without_commands_the_null_action_runs_to_the_step_limit(executor, spin_until, env):
    peer = Peer(executor, spin_until, env, command_timeout_s=0.01)
    peer.activate().begin()
    end = peer.expect_end()
    assert (end['success'], end['reason'], end['null_steps']) == (False, 'step limit', 40)
    np.testing.assert_array_equal(env.actions, np.tile([0, 0, 0, 0, 0, 0, -1], (40, 1)))


def test_null_action_holds_the_gripper(executor, spin_until, env):
    peer = Peer(executor, spin_until, env, command_timeout_s=0.5)
    peer.activate().begin()
    peer.command(FIRST_NS)  # closes it
    spin_until(lambda: len(env.actions) >= 2)
    np.testing.assert_array_equal(env.actions[1], [0, 0, 0, 0, 0, 0, 1])


def test_realtime_waits_for_nobody(executor, spin_until, env):
    parameters = {'mode': 'realtime', 'control_frequency_hz': 100.0}
    peer = Peer(executor, spin_until, env, **parameters).activate()
    peer.begin()
    peer.command(0)  # whatever its stamp: the newest command counts, once
    spin_until(lambda: len(env.actions) >= 10)
    moves = [action[0] for action in env.actions if action[0]]
    assert moves == [0.5]


def test_reset_during_an_episode_ends_it_and_time_goes_on(peer, env):
    peer.activate().begin()
    peer.command(FIRST_NS)
    peer.expect('joints', 2)
    peer.begin(init_state=1)
    assert [event['event'] for event in peer.events()] == ['start', 'end', 'start']
    assert peer.events()[1]['reason'] == 'reset'
    stamps = [stamp_to_ns(message.header.stamp) for message in peer.received['joints']]
    assert stamps == [FIRST_NS, FIRST_NS + PERIOD_NS, FIRST_NS + 2 * PERIOD_NS]
    assert peer.resets == 2


def test_unknown_initial_state_is_refused_by_name(peer):
    answer = peer.activate().call_reset(init_state=50)
    assert not answer.success
    assert '0..49' in answer.message
    assert peer.call_reset(init_state=49).success


def test_reset_is_refused_while_inactive(peer):
    peer.bridge.trigger_configure()
    answer = peer.call_reset()
    assert not answer.success
    assert 'activate' in answer.message


def test_first_frame_waits_until_the_peer_knows_the_instruction(peer, spin_for):
    peer.known_instruction = 'an old task'
    peer.activate().call_reset()
    spin_for(0.1)
    assert peer.resets > 1
    assert peer.received['joints'] == []
    peer.known_instruction = 'push the point'
    peer.expect('joints', 1)


def test_peers_that_never_come_are_not_waited_for_beyond_the_limit(executor, spin_until, env):
    parameters = {'reset_services': ['nobody/reset'], 'peer_timeout_s': 0.1}
    peer = Peer(executor, spin_until, env, **parameters).activate()
    peer.begin()


def test_simulator_failure_is_no_failure_of_the_policy(peer, env):
    env.fail_at = 1
    peer.activate().begin()
    peer.command(FIRST_NS)
    peer.expect('joints', 2)
    peer.command(FIRST_NS + PERIOD_NS)
    assert peer.expect_end()['reason'] == 'error: the fake physics diverged'
    env.fail_at = None
    peer.begin()  # the node is alive


def test_episodes_on_its_own(executor, spin_until, env):
    parameters = {'episodes': 3, 'init_state': 4, 'command_timeout_s': 0.002, 'autostart': True}
    peer = Peer(executor, spin_until, env, **parameters)
    spin_until(lambda: sum(event['event'] == 'end' for event in peer.events()) == 3)
    assert [reset['init_state'] for reset in env.resets] == [4, 5, 6]
