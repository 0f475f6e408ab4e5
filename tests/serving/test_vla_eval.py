import asyncio
import sys

import anyio
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from serving_fakes import WIRE, image, refuse_or_read, state, vla_eval_observation
from vla_eval.benchmarks.base import StepBenchmark, StepResult
from vla_eval.benchmarks.libero.benchmark import LIBEROBenchmark
from vla_eval.connection import Connection
from vla_eval.orchestrator import Orchestrator
from vla_eval.protocol import numpy_codec
from vla_eval.protocol.messages import Message as TheirMessage
from vla_eval.protocol.messages import MessageType, pack_message
from vla_eval.specs import DimSpec, check_specs
from websockets.asyncio.client import connect

from vla_cache_ros.core.errors import FrameError
from vla_cache_ros.serving import vla_eval
from vla_cache_ros.serving.limits import Limits
from vla_cache_ros.serving.observations import Conventions


def talk(server, conversation):
    """Run a conversation with vla-eval's own client."""

    async def run():
        async with Connection(server.ws, max_retries=1) as connection:
            return await conversation(connection)

    return anyio.run(run)


def test_most_answers_come_from_the_chunk_before(serve):
    server = serve('vla-eval')

    async def episode(connection):
        await connection.start_episode({'task': {'name': 'pick'}})
        answers = [await connection.act(vla_eval_observation(n)) for n in range(7)]
        await connection.end_episode({'metrics': {'success': True}})
        return answers

    answers = talk(server, episode)
    assert all(answer['actions'].shape == (7,) for answer in answers)
    # execute_steps of the fake policy is 3, and the second number counts within the chunk.
    assert [answer['actions'][1] for answer in answers] == [0, 1, 2, 0, 1, 2, 0]
    modes = [answer['vla_cache']['mode'] for answer in answers]
    assert modes == ['keyframe', *['open loop'] * 2, 'cached', *['open loop'] * 2, 'cached']
    assert len(server.policies[0].seen) == 3


def test_how_many_actions_of_a_chunk_are_executed_can_be_set(serve):
    server = serve('vla-eval', execute_steps=1)

    async def episode(connection):
        return [await connection.act(vla_eval_observation(n)) for n in range(3)]

    answers = talk(server, episode)
    assert 'open loop' not in [answer['vla_cache']['mode'] for answer in answers]


@pytest.mark.parametrize('image_format', ['raw', 'png'])
def test_pictures_arrive_as_they_were_sent(serve, monkeypatch, image_format):
    monkeypatch.setattr(numpy_codec, '_image_format', image_format)
    server = serve('vla-eval')
    talk(server, lambda connection: connection.act(vla_eval_observation(5)))
    (seen,) = server.policies[0].seen
    np.testing.assert_array_equal(seen.images['agentview'], image(5))
    np.testing.assert_array_equal(seen.images['wrist'], image(1005))
    np.testing.assert_allclose(seen.proprioception.gripper_position_m, [0.04, -0.04])


def test_an_episode_begins_with_an_empty_cache_and_no_old_actions(serve):
    server = serve('vla-eval')

    async def episodes(connection):
        actions = []
        for _ in range(2):
            await connection.start_episode({'task': {}})
            actions.append([(await connection.act(vla_eval_observation(n))) for n in range(2)])
        return actions

    first, second = talk(server, episodes)
    for before, after in zip(first, second, strict=True):
        np.testing.assert_array_equal(before['actions'], after['actions'])
    assert server.policies[0].resets == ['episode start'] * 2


def test_another_instruction_ends_the_chunk(serve):
    async def act(connection):
        await connection.act(vla_eval_observation(1, 'pick'))
        return await connection.act(vla_eval_observation(2, 'place'))

    assert talk(serve('vla-eval'), act)['vla_cache']['mode'] != 'open loop'


def test_errors_are_messages_and_the_episode_goes_on(serve):
    async def act(connection):
        for bad in ({}, {'images': {'agentview': image(1)}, 'task_description': 'pick'}):
            with pytest.raises(RuntimeError, match='Server error'):
                await connection.act(bad)
        return await connection.act(vla_eval_observation())

    assert talk(serve('vla-eval'), act)['actions'].shape == (7,)


def test_a_frame_that_is_none_is_answered_by_an_error(serve):
    server = serve('vla-eval')

    async def speak():
        async with connect(server.ws) as websocket:
            answers = []
            for frame in (b'', b'\xc1', 'text', b'\x80'):
                await websocket.send(frame)
                answers.append(vla_eval.decode_message(await websocket.recv()))
            return answers

    for answer in asyncio.run(speak()):
        assert answer.type == 'error'
        assert answer.payload['error']


def test_one_client_too_many_is_told_so(serve):
    server = serve('vla-eval', limits=Limits(sessions=1))

    async def second(connection):
        with pytest.raises(RuntimeError, match='Expected HELLO'):
            await Connection(server.ws, max_retries=1).connect()
        return await connection.act(vla_eval_observation())

    assert talk(server, second)['actions'].shape == (7,)


def test_the_token_may_be_the_password_of_the_url(serve):
    server = serve('vla-eval', token='secret')

    async def run(user):
        url = server.ws.replace('ws://', f'ws://{user}')
        async with Connection(url, max_retries=1) as connection:
            return await connection.act(vla_eval_observation())

    assert anyio.run(run, 'any:secret@')['actions'].shape == (7,)
    for user in ('any:wrong@', ''):
        with pytest.raises(ConnectionError):
            anyio.run(run, user)


def test_what_the_server_says_of_itself_fits_their_libero_benchmark(serve):
    async def ask(connection):
        return connection.server_info

    said = talk(serve('vla-eval'), ask)
    benchmark = LIBEROBenchmark(suite='libero_object', **said['observation_params'])
    assert benchmark.send_wrist_image
    assert benchmark.send_state
    specs = {
        name: {key: DimSpec.from_dict(value) for key, value in said[name].items()}
        for name in ('action_spec', 'observation_spec')
    }
    assert not check_specs(
        specs['action_spec'],
        benchmark.get_action_spec(),
        specs['observation_spec'],
        benchmark.get_observation_spec(),
    )


class Counting(StepBenchmark):
    """Their benchmark interface around nothing: the episode succeeds after ten actions."""

    def get_tasks(self):
        return [{'name': f'task {n}', 'suite': 'counting'} for n in range(2)]

    def reset(self, task):
        self.steps = 0
        return {}

    def step(self, action):
        assert action['actions'].shape == (7,)
        self.steps += 1
        return StepResult({}, 0.0, self.steps == 10, {})

    def make_obs(self, raw_obs, task):
        return vla_eval_observation(self.steps, task['name'])

    def get_step_result(self, step_result):
        return {'success': step_result.done}

    def get_action_spec(self):
        return {}

    def get_observation_spec(self):
        return {}


def test_their_orchestrator_runs_a_benchmark(serve, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'counting_benchmark', sys.modules[__name__])
    server = serve('vla-eval')
    orchestrator = Orchestrator(
        {
            'server': {'url': server.ws},
            'output_dir': str(tmp_path),
            'benchmarks': [{'benchmark': 'counting_benchmark:Counting', 'episodes_per_task': 2}],
        }
    )
    (result,) = anyio.run(orchestrator.run)
    assert result['mean_success'] == 1.0
    assert server.host.status()['steps_served'] == 40
    assert server.policies[0].resets == ['episode start'] * 4
    server.wait_for_sessions(0)


def read(payload, conventions):
    return vla_eval.to_observation(payload.payload, conventions)


@given(st.binary(max_size=200))
def test_no_bytes_raise_anything_but_the_protocols_error(frame):
    refuse_or_read(vla_eval.decode_message, read, frame)


TEXT_KEYS = st.sampled_from(
    [
        '__image__',
        '__ndarray__',
        'data',
        'dtype',
        'shape',
        'format',
        'images',
        'states',
        'task_description',
        'agentview',
        'wrist',
    ]
)


@given(WIRE | st.dictionaries(TEXT_KEYS, WIRE | st.dictionaries(TEXT_KEYS, WIRE)))
def test_no_payload_raises_anything_but_the_protocols_error(payload):
    frame = vla_eval.encode_message(vla_eval.Message('observation', payload, 1))
    refuse_or_read(vla_eval.decode_message, read, frame)


@given(st.data())
def test_no_damaged_observation_raises_anything_but_the_protocols_error(data):
    frame = bytearray(
        pack_message(TheirMessage(MessageType.OBSERVATION, vla_eval_observation(), 1))
    )
    for _ in range(data.draw(st.integers(1, 4))):
        frame[data.draw(st.integers(0, len(frame) - 1))] = data.draw(st.integers(0, 255))
    refuse_or_read(vla_eval.decode_message, read, bytes(frame))


def test_a_picture_that_would_be_too_large_is_not_unpacked(monkeypatch):
    monkeypatch.setattr(numpy_codec, '_image_format', 'png')
    bomb = np.zeros((300, 300, 3), np.uint8)
    frame = pack_message(TheirMessage(MessageType.OBSERVATION, {'images': {'agentview': bomb}}))
    assert len(frame) < 2000
    with pytest.raises(FrameError, match='300 x 300 pixels; at most 256'):
        vla_eval.decode_message(frame, max_side_px=256)


@pytest.mark.parametrize('name', ['agentview', 'primary'])
def test_the_first_camera_has_two_names(name):
    payload = {'images': {name: image(3)}, 'state': state(), 'task_description': 'pick'}
    observation = vla_eval.to_observation(payload, Conventions(('agentview',)))
    np.testing.assert_array_equal(observation.images['agentview'], image(3))
