"""`vla-cache replay` over recordings made here, without ROS."""

import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest

from tests.cli.cli_fakes import LAYOUT, random_plan
from tests.recording.recorded import (
    COMPRESSED,
    Said,
    cdr,
    chunk,
    header,
    image,
    joints,
    pose,
    record,
    record_by_rosbags,
    step_report,
    text,
)
from vla_cache_ros.cli.main import main
from vla_cache_ros.cli.replay import ReplayConfig, run_replay
from vla_cache_ros.core.errors import ConfigError, ObservationError, RecordingError
from vla_cache_ros.core.types import ActionChunk, StepReport

SECOND = 10**9
PERIOD_NS = SECOND // 5
FINGERS = {'panda_finger_joint1': 0.04, 'panda_finger_joint2': -0.04}
TASK = 'pick up the milk'


class Policy:
    """What it answers depends on pixels, state, instruction and all steps since its last reset."""

    chunk_size = 4
    camera_names = ('agentview', 'wrist')
    image_size_px = 8
    layout = LAYOUT

    def __init__(self, cache='safe'):
        self.bias = 0.125 if cache == 'off' else 0.0
        self.resets = []
        self.observations = []
        self.switches = []
        self.pressures = []
        self.fault_at = None
        self.reset()

    def reset(self, reason='reset'):
        self.resets.append(reason)
        self.memory, self.step = 0.0, 0

    def set_pressure(self, pressure):
        self.pressures.append(pressure)

    def switch_off(self, reason):
        self.switches.append(reason)

    def switch_on(self):
        self.switches.append('on')

    def dense_twin(self):
        return Policy('off')

    def act(self, observation):
        if self.fault_at == observation.stamp_ns:
            raise ObservationError('the image is too dark')
        self.observations.append(observation)
        seen = sum(float(pixels.mean()) for pixels in observation.images.values())
        self.memory = 0.5 * self.memory + seen / 512 + 0.001 * len(observation.instruction)
        self.memory += float(observation.proprioception.ee_position_m[0])
        actions = np.full((4, 7), self.memory + self.bias, np.float32)
        if observation.committed is not None:
            actions[: len(observation.committed)] = observation.committed
        mode = 'keyframe' if self.step % 4 == 0 else 'cached'
        plan = random_plan(np.random.default_rng(0), dense=False)
        report = StepReport(self.step, mode, {}, plan, 'reset' if self.step == 0 else '')
        self.step += 1
        return ActionChunk(actions, observation.stamp_ns, report)


def frame(index, camera, shift_ns=0):
    pixels = np.random.default_rng([index, len(camera)]).integers(0, 256, (8, 8, 3), np.uint8)
    return image(f'/camera/{camera}/image_raw', pixels, stamp(index) + shift_ns)


def stamp(index):
    return SECOND + index * PERIOD_NS


def inputs(index):
    return [
        joints(FINGERS | {'arm': 1.0}, stamp(index)),
        pose((0.1 * index, 0.0, 0.0), stamp(index) + 1000),
        frame(index, 'agentview'),
        frame(index, 'wrist', 2_000_000),
    ]


def played(frames=10, resets=(), acted=None, first_step=0, task=TASK, **fields):
    """What a run of `Policy` leaves: inputs, chunks and reports, the policy reset at `resets`."""
    policy = Policy()
    said = [text(task, 5)] if task else []
    for _ in range(first_step):
        policy.step += 1
    for index in range(frames):
        said += inputs(index)
        if acted is not None and index not in acted:
            continue
        if index in resets:
            policy.reset('reset')
        observation = _observation(index, task or TASK)
        made = policy.act(observation)
        assert made.report is not None
        said.append(chunk(made.actions, stamp(index), task or TASK))
        said.append(
            step_report(
                stamp(index),
                made.report.step,
                made.report.mode,
                flush_reason=made.report.flush_reason,
                **fields,
            )
        )
    return said


def _observation(index, task):
    from vla_cache_ros.core.types import Observation, Proprioception

    pictures = {}
    for camera in Policy.camera_names:
        seed = [index, len(camera)]
        pictures[camera] = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)
    state = Proprioception(
        np.array([0.1 * index, 0, 0], np.float32),
        np.array([0, 0, 0, 1], np.float32),
        np.array([0.04, -0.04], np.float32),
    )
    return Observation(pictures, state, task, stamp(index))


class Policies(dict):
    """Makes policies and keeps them."""

    def __call__(self, cache):
        self[cache] = Policy(cache)
        return self[cache]


@pytest.fixture
def replay(tmp_path):
    """Record, replay; gives exit code, replay.json and the policies."""

    def run(said, make=None, **options):
        path = said if not isinstance(said, list) else record(tmp_path / 'recording', said)
        policies = Policies() if make is None else make
        config = ReplayConfig(recording=path, out=tmp_path / 'out', json=True, **options)
        code = run_replay(config, policies)
        return code, json.loads((tmp_path / 'out' / 'replay.json').read_text()), policies

    return run


def test_a_replay_of_the_same_policy_is_equal_bit_for_bit(replay, tmp_path, capsys):
    code, result, policies = replay(played(resets=(4,)))
    assert code == 0
    assert (result['steps'], result['identical']) == (10, 10)
    assert result['max_difference'] == 0.0
    assert result['notes'] == []
    assert json.loads(capsys.readouterr().out)['identical'] == 10
    assert policies['safe'].resets.count('reset') == 3  # the first, step 0, and step 4
    for name in ('replay.png', 'replay-dark.png'):
        assert (tmp_path / 'out' / name).stat().st_size > 10_000


def test_a_rosbag2_recording_replays_alike(replay, tmp_path):
    code, result, _ = replay(record_by_rosbags(tmp_path / 'bag', played(), compressed=True))
    assert (code, result['identical']) == (0, 10)


def test_another_policy_is_told_step_by_step_and_fails(replay):
    code, result, _ = replay(played(), cache='off')
    assert code == 1
    assert result['identical'] == 0
    assert result['max_difference'] == pytest.approx(0.125, abs=1e-6)
    assert result['mean_difference'] == pytest.approx(0.125, abs=1e-6)
    assert result['beyond_tolerance'] == 10
    assert result['first_beyond']['stamp_ns'] == stamp(0)
    assert [row['max_difference'] for row in result['rows']] == pytest.approx([0.125] * 10)


@pytest.mark.parametrize(('tolerance', 'code'), [(0.1, 1), (0.126, 0)])
def test_the_tolerance_decides_the_exit_code(replay, tolerance, code):
    assert replay(played(), cache='off', tolerance=tolerance)[0] == code


def test_a_gripper_of_another_sign_never_passes(replay):
    said = played(frames=3)
    flipped = np.full((4, 7), 0.0, np.float32)
    flipped[:, 6] = -1.0
    said = [
        chunk(flipped, stamp(1), TASK)
        if message.topic == '/vla/action_chunk' and message.log_ns == stamp(1)
        else message
        for message in said
    ]
    code, result, _ = replay(said, tolerance=100.0)
    assert code == 1
    assert result['gripper_flips'] == 4
    assert result['beyond_tolerance'] == 1


def test_nan_in_one_chunk_alone_never_passes(replay):
    said = played(frames=2)
    bad = chunk(np.full((4, 7), np.nan), stamp(1), TASK)
    said = [bad if (m.topic, m.log_ns) == ('/vla/action_chunk', stamp(1)) else m for m in said]
    code, result, _ = replay(said, tolerance=100.0)
    assert (code, result['not_finite'], result['beyond_tolerance']) == (1, 1, 1)


def test_two_presets_are_compared_without_a_verdict_unless_asked(replay):
    said = without(played(), '/vla/action_chunk', '/policy_node/step_report')
    code, result, policies = replay(said, against='off')
    assert code == 0
    assert result['steps'] == 10
    assert result['max_difference'] == pytest.approx(0.125)
    assert set(policies) == {'safe', 'off'}


def test_a_verdict_between_presets_may_be_asked_for(replay):
    assert replay(played(), against='off', tolerance=0.01)[0] == 1


def test_presets_are_compared_where_the_recorded_policy_acted(replay):
    _, result, policies = replay(played(acted={0, 1, 5}, resets=(5,)), against='off')
    assert [row['stamp_ns'] for row in result['rows']] == [stamp(0), stamp(1), stamp(5)]
    assert policies['off'].step == 1


def test_only_the_observations_that_were_acted_on_are_replayed(replay):
    code, result, policies = replay(played(acted={0, 2, 3, 7}))
    assert (code, result['identical']) == (0, 4)
    assert [seen.stamp_ns for seen in policies['safe'].observations] == [
        stamp(index) for index in (0, 2, 3, 7)
    ]


def test_a_recording_that_begins_within_an_episode_waits_for_a_whole_step(replay):
    code, result, _ = replay(played(first_step=2))
    assert result['skipped'] == 2
    assert result['steps'] == 8
    assert any('2 steps skipped' in note for note in result['notes'])
    assert code == 1  # this policy remembers beyond a keyframe


def test_a_gap_is_told_and_replay_goes_on_behind_it(replay):
    said = [
        message
        for message in played(resets=(4,))
        if not (message.topic == '/camera/wrist/image_raw' and message.log_ns // PERIOD_NS == 7)
    ]
    code, result, _ = replay(said)
    assert result['missing'] == 1
    assert result['skipped'] == 1
    assert result['identical'] == result['steps'] == 8
    assert code == 0


def test_a_policy_that_refuses_an_observation_costs_that_step(replay):
    class Refusing(Policies):
        def __call__(self, cache):
            policy = super().__call__(cache)
            policy.fault_at = stamp(5)
            return policy

    _, result, _ = replay(played(resets=(6,)), make=Refusing())
    assert result['refused'] == 1
    assert any('too dark' in note for note in result['notes'])
    assert result['identical'] == result['steps'] == 9


def test_pressure_and_switched_off_reuse_are_followed(replay):
    said = played(frames=3, reuse_pressure=0.5)
    dense = step_report(stamp(1), 1, 'dense', off_reason='differs from dense', reuse_pressure=0.25)
    said = [
        dense if (m.topic, m.log_ns) == ('/policy_node/step_report', stamp(1)) else m for m in said
    ]
    _, result, policies = replay(said)
    assert policies['safe'].pressures == [0.5, 0.25, 0.5]
    assert policies['safe'].switches == ['differs from dense', 'on']
    assert any('1 recorded steps ran with reuse off' in note for note in result['notes'])


def test_committed_actions_are_given_as_they_were(replay):
    said = played(frames=2)
    prefix = np.arange(28, dtype=np.float32).reshape(4, 7)
    said = [
        chunk(prefix, stamp(1), TASK, prefix_steps=2)
        if (m.topic, m.log_ns) == ('/vla/action_chunk', stamp(1))
        else m
        for m in said
    ]
    _, _, policies = replay(said)
    first, second = policies['safe'].observations
    assert first.committed is None
    np.testing.assert_array_equal(second.committed, prefix[:2])


def test_without_step_reports_every_chunk_is_replayed_and_that_is_said(replay):
    code, result, _ = replay([m for m in played() if 'step_report' not in m.topic])
    assert (code, result['identical']) == (0, 10)
    assert any('no step reports' in note for note in result['notes'])


def test_the_number_of_steps_may_be_limited(replay):
    assert replay(played(), steps=3)[1]['steps'] == 3


def test_a_cut_recording_replays_what_is_left_and_tells_the_loss(replay, tmp_path):
    path = record(tmp_path, played())
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    code, result, _ = replay(path)
    assert code == 0
    assert 0 < result['steps'] < 10
    assert result['identical'] == result['steps']
    assert len(result['losses']) == 1


def test_compressed_images_replay(replay):
    import cv2

    said = []
    for message in played(frames=3):
        if message.topic.startswith('/camera'):
            camera = message.topic.split('/')[2]
            index = (message.log_ns - SECOND) // PERIOD_NS
            pixels = _observation(index, '').images[camera]
            packed = cv2.imencode('.png', pixels[..., ::-1])[1].reshape(-1)
            fields = {'format': 'rgb8; png compressed bgr8', 'data': packed}
            data = cdr(COMPRESSED, header=header(message.log_ns), **fields)
            topic = f'{message.topic}/compressed'
            message = Said(topic, COMPRESSED, data, message.log_ns)
        said.append(message)
    code, result, _ = replay(said)
    assert (code, result['identical']) == (0, 3)


def renamed(said, names):
    return [dataclasses.replace(m, topic=names.get(m.topic, m.topic)) for m in said]


def test_other_names_of_cameras_may_be_told(replay):
    said = renamed(
        played(frames=3),
        {'/camera/agentview/image_raw': '/front', '/camera/wrist/image_raw': '/hand'},
    )
    with pytest.raises(RecordingError, match=r'camera agentview.*: /front, /hand.*--cameras'):
        replay(said)


def test_named_cameras_are_used(replay, tmp_path):
    said = renamed(played(frames=3), {'/camera/agentview/image_raw': '/front'})
    assert replay(said, cameras='agentview=/front')[1]['identical'] == 3
    with pytest.raises(RecordingError, match='/no, named for camera wrist'):
        replay(tmp_path / 'recording', cameras='agentview=/front,wrist=/no')


def test_one_of_several_graphs_is_chosen_by_namespace(replay, tmp_path):
    both = [
        dataclasses.replace(message, topic=f'/{arm}{message.topic}')
        for message in played(frames=3)
        for arm in ('left', 'right')
    ]
    with pytest.raises(RecordingError, match='several topics named vla/action_chunk.*--namespace'):
        replay(both)
    assert replay(tmp_path / 'recording', namespace='right')[1]['identical'] == 3


def without(said, *topics):
    return [message for message in said if message.topic not in topics]


@pytest.mark.parametrize(
    ('change', 'words'),
    [
        (lambda said: without(said, '/ee_pose'), 'lacks ee_pose'),
        (lambda said: without(said, '/joint_states'), 'lacks joint_states'),
        (lambda said: without(said, '/vla/action_chunk'), 'no action chunks.*--against off'),
        (
            lambda said: [m for m in said if not m.topic.startswith('/camera')],
            'holds no images; it holds: .*/vla/action_chunk',
        ),
        (lambda said: without(said, '/camera/wrist/image_raw'), 'no images of camera wrist'),
        (
            lambda said: (
                [m for m in said if m.topic != '/joint_states' or m.log_ns < 0]
                + [joints({'other': 1.0}, stamp(index)) for index in range(10)]
            ),
            'no step can be compared.*10 recorded steps have no observation',
        ),
    ],
)
def test_what_a_recording_lacks_is_named(replay, change, words):
    with pytest.raises(RecordingError, match=words):
        replay(change(played()))


def test_a_recording_without_any_instruction_asks_for_one(replay, tmp_path):
    said = [
        chunk(np.zeros((4, 7)), m.log_ns, '') if m.topic == '/vla/action_chunk' else m
        for m in without(played(), '/vla/instruction')
    ]
    with pytest.raises(RecordingError, match='--instruction'):
        replay(said)
    _, _, policies = replay(tmp_path / 'recording', instruction='do it', tolerance=100.0)
    assert {seen.instruction for seen in policies['safe'].observations} == {'do it'}


def test_damaged_messages_are_counted_and_the_rest_is_replayed(replay):
    said = played()
    bad = dataclasses.replace(said[-3], data=said[-3].data[:40])  # an image
    assert bad.topic == '/camera/wrist/image_raw'
    said[-3] = bad
    _, result, _ = replay(said)
    assert result['steps'] == 9
    assert any('/camera/wrist/image_raw' in note for note in result['notes'])


@pytest.mark.parametrize(
    ('options', 'words'),
    [
        ({'tolerance': -1.0}, '--tolerance'),
        ({'tolerance': float('nan')}, '--tolerance'),
        ({'steps': 0}, '--steps'),
        ({'cameras': 'wrist'}, 'NAME=TOPIC'),
        ({'gripper_joints': ''}, 'gripper_joint_names'),
        ({'gripper_open': 'wide'}, '--gripper-open'),
        ({'gripper_open': '1'}, 'one for each'),
        ({'pairing_tolerance_s': 2.0}, '--pairing-tolerance-s'),
    ],
)
def test_options_out_of_range_are_refused(replay, options, words):
    with pytest.raises(ConfigError, match=words):
        replay(played(frames=1), **options)


def test_the_command_refuses_what_is_no_recording_without_a_traceback(tmp_path, capsys):
    path = tmp_path / 'a.mcap'
    path.write_bytes(b'not MCAP at all')
    assert main(['replay', str(path)]) == 2
    error = capsys.readouterr().err
    assert 'is no MCAP file' in error
    assert 'Traceback' not in error


def test_a_table_is_printed(tmp_path, capsys):
    path = record(tmp_path / 'recording', played(frames=3))
    assert run_replay(ReplayConfig(recording=path, out=tmp_path / 'out'), Policies()) == 0
    printed = capsys.readouterr().out
    for words in ('equal bit for bit', 'all within 0', 'replay.json', 'replay.png'):
        assert words in printed


WITHOUT_ROS = """
import sys

class NoRos:
    def find_spec(self, name, *rest):
        if name.partition('.')[0].endswith(('_msgs', '_interfaces')) or name == 'rclpy':
            raise ModuleNotFoundError(f'{name} is not installed', name=name)

sys.meta_path.insert(0, NoRos())
from pathlib import Path
from tests.cli.test_replay import Policies
from vla_cache_ros.cli.replay import ReplayConfig, run_replay

folder = Path(sys.argv[1])
config = ReplayConfig(recording=folder / 'recording', out=folder / 'out')
assert run_replay(config, Policies()) == 0
"""


def test_replay_needs_no_ros(tmp_path):
    record(tmp_path / 'recording', played(frames=3))
    subprocess.run([sys.executable, '-c', WITHOUT_ROS, str(tmp_path)], check=True)
