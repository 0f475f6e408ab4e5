"""The recorder on real topics: all that it receives is in the file, and nobody is disturbed."""

import json
import time

import numpy as np
import pytest
from rclpy.lifecycle import TransitionCallbackReturn
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.qos import QoSDurabilityPolicy, QoSProfile, QoSReliabilityPolicy
from sensor_msgs.msg import Image, JointState
from std_msgs.msg import String
from std_srvs.srv import Trigger
from vla_cache_interfaces.msg import Heartbeat

from vla_cache_ros.cli.replay import ReplayConfig, run_replay
from vla_cache_ros.core.errors import RecordingError
from vla_cache_ros.nodes import qos
from vla_cache_ros.nodes.composition import Graph
from vla_cache_ros.nodes.conversions import ns_to_stamp
from vla_cache_ros.nodes.image_conversions import rgb_to_image
from vla_cache_ros.nodes.recorder import RecorderNode
from vla_cache_ros.nodes.topic_choice import is_chosen, matching_profile, message_class
from vla_cache_ros.recording import background
from vla_cache_ros.recording.reader import Recording

pytestmark = pytest.mark.ros

SUCCESS = TransitionCallbackReturn.SUCCESS
PIXELS = np.full((16, 16, 3), 7, np.uint8)
IMAGE_TOPIC = '/camera/wrist/image_raw'


class Robot:
    """Publishes what a recorder shall find."""

    def __init__(self, executor, spin_until, **parameters) -> None:
        self.spin_until = spin_until
        self.node = node = Node('robot')
        self.task = qos.publish(node, String, 'vla/instruction', qos.latched())
        self.images = qos.publish(node, Image, 'camera/wrist/image_raw', qos.frame())
        self.joints = qos.publish(node, JointState, 'joint_states', qos.state())
        self.beats = qos.publish(node, Heartbeat, 'vla/heartbeat', qos.heartbeat())
        values = {'min_free_mib': 0, **parameters}
        overrides = [Parameter(name, value=value) for name, value in values.items()]
        self.recorder = RecorderNode(parameter_overrides=overrides)
        executor.add_node(node)
        executor.add_node(self.recorder)

    def activate(self) -> 'Robot':
        assert self.recorder.trigger_configure() == SUCCESS
        assert self.recorder.trigger_activate() == SUCCESS
        return self

    def wait_for_recorder(self) -> 'Robot':
        wanted = (self.task, self.images, self.joints)
        self.spin_until(lambda: all(topic.get_subscription_count() for topic in wanted))
        return self

    def send(self, count: int) -> None:
        for index in range(count):
            self.images.publish(rgb_to_image(PIXELS, ns_to_stamp(index + 1), 'wrist'))
            self.joints.publish(JointState(name=['a'], position=[float(index)]))
            self.beats.publish(Heartbeat(node='x'))
            received = index + 1
            self.spin_until(lambda received=received: self.received(IMAGE_TOPIC) >= received)

    def received(self, topic: str) -> int:
        status = self.recorder.status
        return 0 if status is None else status.received.get(topic, 0)

    def call(self, name: str) -> Trigger.Response:
        client = self.node.create_client(Trigger, f'recorder/{name}')
        self.spin_until(client.service_is_ready)
        future = client.call_async(Trigger.Request())
        self.spin_until(future.done)
        return future.result()


@pytest.fixture
def robot(executor, spin_until, tmp_path):
    given = {'folder': str(tmp_path)}
    return lambda **parameters: Robot(executor, spin_until, **(given | parameters))


def test_all_that_is_received_is_in_the_file(robot, tmp_path):
    made = robot()
    made.task.publish(String(data='pick up the milk'))  # before there is a recorder
    made.activate().wait_for_recorder().send(30)
    made.spin_until(lambda: made.received('/joint_states') == 30)
    made.spin_until(lambda: made.received('/vla/instruction') == 1)
    assert made.recorder.trigger_deactivate() == SUCCESS
    status = made.recorder.status
    assert status.written == status.received
    assert status.dropped == {}

    recording = Recording(tmp_path)
    values = {}
    for message in recording.messages():
        values.setdefault(message.topic, []).append(message.value())
    assert not recording.losses
    assert {name: len(found) for name, found in values.items()} == status.received
    assert [value.data for value in values['/vla/instruction']] == ['pick up the milk']
    assert [value.position[0] for value in values['/joint_states']] == list(range(30))
    assert bytes(values[IMAGE_TOPIC][3].data) == PIXELS.tobytes()
    assert '/vla/heartbeat' not in values  # excluded


def test_the_latched_instruction_is_in_every_recording(robot, tmp_path):
    made = robot(record_on_activate=False)
    made.task.publish(String(data='first'))
    made.activate()
    assert not made.recorder.is_recording
    names = []
    for _ in range(2):
        answer = made.call('start')
        assert answer.success
        assert not made.call('start').success  # it runs already
        made.spin_until(lambda: made.received('/vla/instruction') == 1)
        assert made.call('stop').success
        names.append(answer.message)
        assert [
            message.value().data
            for message in Recording(tmp_path / answer.message).messages()
            if message.topic == '/vla/instruction'
        ] == ['first']
    assert names[0] != names[1]
    assert made.call('stop').message == 'not recording'


def test_start_is_refused_while_not_active(robot):
    made = robot()
    assert made.recorder.trigger_configure() == SUCCESS
    answer = made.call('start')
    assert not answer.success
    assert answer.message == 'not active but inactive'


def test_a_topic_that_comes_up_later_is_recorded(robot, executor, spin_until):
    made = robot().activate()
    late = qos.publish(made.node, String, 'vla/late', qos.report())
    spin_until(late.get_subscription_count)
    late.publish(String(data='here'))
    spin_until(lambda: made.received('/vla/late') == 1)


def test_a_disk_that_is_full_stops_the_recording_and_nothing_else(robot, tmp_path, monkeypatch):
    made = robot(sync_period_s=0.01).activate().wait_for_recorder()
    made.send(3)
    made.spin_until(lambda: made.recorder.status.written.get(IMAGE_TOPIC) == 3)
    monkeypatch.setattr(made.recorder._recording._writer, '_free_bytes', lambda _: -1)
    made.spin_until(lambda: not made.recorder.is_recording)
    assert made.recorder.lifecycle_state == 'active'
    health = made.recorder._health()
    assert health.level == b'\x02'
    assert 'min_free_mib' in health.message
    assert len([m for m in Recording(tmp_path).messages() if m.topic == IMAGE_TOPIC]) == 3
    assert made.call('start').success  # as soon as there is room again
    assert made.recorder._health().level == b'\x00'


def test_a_folder_that_cannot_be_written_does_not_stop_the_robot(robot, tmp_path):
    (tmp_path / 'file').write_text('')
    made = robot(folder=str(tmp_path / 'file' / 'folder')).activate()
    assert made.recorder.lifecycle_state == 'active'
    assert not made.recorder.is_recording
    assert 'cannot be made' in made.recorder._health().message
    answer = made.call('start')
    assert not answer.success
    assert 'cannot be made' in answer.message


def test_messages_that_the_disk_cannot_take_are_counted_by_topic(robot, monkeypatch):
    slow = background.RecordingWriter.write

    def write(self, messages):
        time.sleep(0.3)
        slow(self, messages)

    monkeypatch.setattr(background.RecordingWriter, 'write', write)
    made = robot(queue_mib=1).activate().wait_for_recorder()
    large = np.zeros((480, 640, 3), np.uint8)
    for index in range(8):
        made.images.publish(rgb_to_image(large, ns_to_stamp(index + 1), 'wrist'))
        received = index + 1
        made.spin_until(lambda received=received: made.received(IMAGE_TOPIC) >= received)
    assert made.recorder.status.dropped[IMAGE_TOPIC] > 0
    health = made.recorder._health()
    assert health.level == b'\x01'
    made.recorder.trigger_deactivate()
    status = made.recorder.status
    assert status.written[IMAGE_TOPIC] + status.dropped[IMAGE_TOPIC] == 8
    figures = {entry.key: entry.value for entry in health.values}
    assert 'dropped' in figures[IMAGE_TOPIC]


def test_every_transition_may_be_taken_again(robot, tmp_path):
    made = robot()
    for _ in range(2):
        made.activate()
        assert made.recorder.trigger_deactivate() == SUCCESS
        assert made.recorder.trigger_cleanup() == SUCCESS
    assert len(list(tmp_path.glob('*.mcap'))) == 2
    made.activate()
    assert made.recorder.trigger_shutdown() == SUCCESS
    assert not made.recorder.is_recording


@pytest.mark.parametrize(
    ('topic', 'chosen'),
    [
        ('/arm/camera/a/image_raw', True),
        ('/arm/camera/a/image_raw/compressed', True),
        ('/camera/a/image_raw', False),
        ('/diagnostics', True),
        ('/arm/camera/heartbeat', False),
        ('/arm/joint_states2', False),
    ],
)
def test_patterns_are_below_the_namespace_unless_they_are_absolute(topic, chosen):
    patterns = ('camera/*', '/diagnostics', 'joint_states')
    assert is_chosen(topic, patterns, ('*/heartbeat',), '/arm') is chosen


def test_the_subscription_asks_for_no_more_than_every_publisher_offers():
    reliable, best_effort = QoSReliabilityPolicy.RELIABLE, QoSReliabilityPolicy.BEST_EFFORT
    latched, volatile = QoSDurabilityPolicy.TRANSIENT_LOCAL, QoSDurabilityPolicy.VOLATILE

    def profile(reliability, durability):
        return QoSProfile(depth=1, reliability=reliability, durability=durability)

    both = [profile(reliable, latched), profile(best_effort, volatile)]
    mixed = matching_profile(both, 7)
    assert (mixed.reliability, mixed.durability, mixed.depth) == (best_effort, volatile, 7)
    alone = matching_profile(both[:1], 7)
    assert (alone.reliability, alone.durability) == (reliable, latched)


def test_a_type_that_is_not_installed_is_refused_by_name():
    with pytest.raises(RecordingError, match='no_msgs'):
        message_class('no_msgs/msg/Thing')
    with pytest.raises(RecordingError, match='std_msgs'):
        message_class('std_msgs/msg/NoSuchThing')


@pytest.mark.slow
def test_a_recorded_episode_of_the_small_vla_replays_bit_for_bit(env, tmp_path):
    from vla_cache_models.policy import make_policy
    from vla_cache_ros.cli.checkpoints import CheckpointPolicies, find_checkpoint

    model = CheckpointPolicies(find_checkpoint(None)).model()
    noise = np.random.default_rng(0)
    seen = noise.integers(0, 256, (16, 16, 3), np.uint8)

    def observe():
        seen[:2, :2] = noise.integers(0, 256, (2, 2, 3))  # a little motion: most is reused
        return {**dict.fromkeys(('agentview', 'wrist'), seen.copy()), **env.proprioception()}

    env.observe = observe
    overrides = {
        'sim_bridge': {'frame_every': 4},
        'command_guard': {'pacing': 'state', 'actions_per_chunk': 4},
    }
    with Graph(
        policy_factory=lambda _: make_policy(model, 'safe', auto_off=False),
        env_factory=lambda _: env,
        overrides=overrides,
    ) as graph:
        parameters = {'folder': str(tmp_path), 'min_free_mib': 0, 'use_sim_time': True}
        recorder = RecorderNode(
            parameter_overrides=[Parameter(name, value=v) for name, v in parameters.items()]
        )
        graph.executor.add_node(recorder)
        assert recorder.trigger_configure() == SUCCESS
        assert recorder.trigger_activate() == SUCCESS
        wanted = {'/camera/wrist/image_raw', '/camera/agentview/image_raw', '/ee_pose'}
        end_s = time.monotonic() + 10
        while not wanted <= set(recorder._inputs) and time.monotonic() < end_s:
            graph.executor.spin_once(0.01)
        for init_state in range(2):
            graph.run_episode(task=0, init_state=init_state)
        recorder.trigger_deactivate()
        steps = recorder.status.written['/vla/action_chunk']
        graph.executor.remove_node(recorder)
        recorder.destroy_node()

    config = ReplayConfig(recording=tmp_path, out=tmp_path / 'out')
    policies = {cache: make_policy(model, cache, auto_off=False) for cache in ('safe', 'off')}
    assert run_replay(config, policies.__getitem__) == 0
    result = json.loads((tmp_path / 'out' / 'replay.json').read_text())
    assert result['identical'] == result['steps'] >= 10
    assert result['modes']['cached'] > result['steps'] // 2
    assert steps >= result['steps']
    assert (
        run_replay(
            ReplayConfig(recording=tmp_path, out=tmp_path / 'dense', cache='off'),
            policies.__getitem__,
        )
        == 1
    )  # without reuse the actions are others
