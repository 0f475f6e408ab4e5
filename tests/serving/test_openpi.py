import threading
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from serving_fakes import CAMERAS, WIRE, image, openpi_observation, refuse_or_read
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from vla_cache_ros.core.errors import FrameError
from vla_cache_ros.serving import openpi
from vla_cache_ros.serving.limits import Limits


def test_the_client_gets_a_whole_chunk_and_what_the_cache_did(serve, openpi_client):
    server = serve('openpi')
    client = openpi_client('127.0.0.1', server.port)
    answers = [client.infer(openpi_observation(seed)) for seed in range(2)]
    assert client.get_server_metadata()['cameras'] == list(CAMERAS)
    assert answers[0]['actions'].shape == (4, 7)
    assert answers[0]['actions'].dtype == np.float32
    assert answers[0]['server_timing']['infer_ms'] > 0
    assert answers[1]['server_timing']['prev_total_ms'] > 0
    assert [answer['vla_cache']['mode'] for answer in answers] == ['keyframe', 'cached']
    assert answers[1]['vla_cache']['vision_reuse_ratio'] == 0.5


def test_actions_go_to_the_robot_as_they_are(serve, openpi_client):
    client = openpi_client('127.0.0.1', serve('openpi').port)
    assert client.infer(openpi_observation())['actions'][:2, 6].tolist() == [-1.0, 1.0]


def test_what_the_policy_sees_is_upright_again(serve, openpi_client):
    server = serve('openpi', images='mirrored')
    client = openpi_client('127.0.0.1', server.port)
    client.infer(openpi_observation(5))
    (seen,) = server.policies[0].seen
    np.testing.assert_array_equal(seen.images['agentview'], image(5)[:, ::-1])
    np.testing.assert_array_equal(seen.images['wrist'], image(1005)[:, ::-1])
    assert seen.instruction == 'pick'


def test_two_robots_do_not_disturb_each_other(serve, openpi_client):
    server = serve('openpi')

    def drive(seeds, barrier=None):
        client = openpi_client('127.0.0.1', server.port)
        chunks = []
        for seed in seeds:
            if barrier is not None:
                barrier.wait(20)
            chunks.append(client.infer(openpi_observation(seed))['actions'])
        return np.stack(chunks)

    alone = [drive(range(10)), drive(range(50, 60))]
    barrier = threading.Barrier(2)
    together = [None, None]

    def run(index, seeds):
        together[index] = drive(seeds, barrier)

    threads = [
        threading.Thread(target=run, args=(index, range(50 * index, 50 * index + 10)))
        for index in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    np.testing.assert_array_equal(together[0], alone[0])
    np.testing.assert_array_equal(together[1], alone[1])
    assert not np.array_equal(alone[0], alone[1])


@pytest.mark.parametrize('how', ['reset key', 'jump', 'new connection'])
def test_an_episode_begins_with_an_empty_cache(serve, openpi_client, how):
    server = serve('openpi')
    client = openpi_client('127.0.0.1', server.port)
    first = client.infer(openpi_observation(1))['actions']
    client.infer(openpi_observation(2))
    if how == 'new connection':
        client = openpi_client('127.0.0.1', server.port)
    change = {'reset key': {'reset': True}}.get(how, {})
    x_m = 0.3 if how == 'jump' else 0.0
    again = client.infer({**openpi_observation(1, x_m=x_m), **change})
    np.testing.assert_array_equal(again['actions'], first)
    assert again['vla_cache']['mode'] == 'keyframe'


def test_a_moving_arm_begins_no_episode(serve, openpi_client):
    client = openpi_client('127.0.0.1', serve('openpi').port)
    modes = [
        client.infer(openpi_observation(n, x_m=0.1 * n))['vla_cache']['mode'] for n in range(4)
    ]
    assert modes == ['keyframe', 'cached', 'cached', 'cached']


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'observation/wrist_image': None}, "'observation/wrist_image' is missing"),
        ({'observation/state': np.zeros(7)}, "'observation/state' must be 8 finite numbers"),
        ({'observation/state': np.full(8, np.nan)}, 'finite'),
        ({'observation/image': np.zeros((3, 8, 8), np.uint8)}, 'uint8 [H, W, 3]'),
        ({'observation/image': np.zeros((8, 8, 3), np.float32)}, 'float32'),
        ({'observation/image': np.zeros((65, 8, 3), np.uint8)}, 'at most 64 pixels'),
        ({'prompt': ''}, "'prompt' must be the task in words"),
        ({'prompt': 'fail'}, 'the policy failed: RuntimeError: the policy has a bug'),
        ({'prompt': 'nan'}, 'NaN or infinity'),
        ({'prompt': 'refuse'}, 'the policy does not like it'),
    ],
)
def test_what_cannot_be_used_is_said_and_the_connection_goes_on(
    serve, openpi_client, change, message
):
    server = serve('openpi', limits=Limits(image_side_px=64))
    client = openpi_client('127.0.0.1', server.port)
    with pytest.raises(RuntimeError) as refused:
        client.infer({**openpi_observation(), **change})
    assert message in str(refused.value)
    assert client.infer(openpi_observation())['actions'].shape == (4, 7)


@pytest.mark.parametrize('frame', [b'', b'\xc1', b'\x93\x01', b'hello', 'text', b'\x80' * 9])
def test_damaged_frames_are_answered_and_others_are_not_disturbed(serve, openpi_client, frame):
    server = serve('openpi')
    other = openpi_client('127.0.0.1', server.port)
    other.infer(openpi_observation())
    with connect(server.ws) as websocket:
        websocket.recv()
        websocket.send(frame)
        assert isinstance(websocket.recv(), str)
        websocket.send(openpi.encode_message(openpi_observation()))
        assert isinstance(websocket.recv(), bytes)
    assert other.infer(openpi_observation())['vla_cache']['mode'] == 'cached'


def test_a_message_that_is_too_long_ends_its_own_connection_alone(serve, openpi_client):
    server = serve('openpi', limits=Limits(message_bytes=10_000))
    other = openpi_client('127.0.0.1', server.port)
    with connect(server.ws) as websocket:
        websocket.recv()
        websocket.send(bytes(10_001))
        with pytest.raises(ConnectionClosed) as closed:
            websocket.recv(timeout=10)
    assert closed.value.rcvd.code == 1009
    assert other.infer(openpi_observation())['actions'].shape == (4, 7)
    server.wait_for_sessions(1)


def test_a_client_that_vanishes_while_its_step_runs_frees_its_session_at_once(
    serve, openpi_client
):
    server = serve('openpi')
    other = openpi_client('127.0.0.1', server.port)
    other.infer(openpi_observation())
    with connect(server.ws) as websocket:
        websocket.recv()
        websocket.send(openpi.encode_message(openpi_observation(prompt='wait')))
        server.wait_for_sessions(2)
        websocket.socket.close()  # no goodbye
        assert server.wait_for_sessions(1) < 1.0
    server.gate.set()
    assert other.infer(openpi_observation())['vla_cache']['mode'] == 'cached'


def test_a_step_whose_client_has_gone_is_not_begun(serve):
    server = serve('openpi')
    with connect(server.ws) as busy, connect(server.ws) as waiting:
        for websocket in (busy, waiting):
            websocket.recv()
        busy.send(openpi.encode_message(openpi_observation(prompt='wait')))
        waiting.send(openpi.encode_message(openpi_observation(7)))
        time.sleep(0.2)  # it stands in the queue by now
        waiting.socket.close()
        server.wait_for_sessions(1)
        server.gate.set()
        assert isinstance(busy.recv(), bytes)
    assert server.host.status()['steps_served'] == 1
    assert sorted(len(policy.seen) for policy in server.policies) == [0, 1]


def test_one_client_too_many_is_told_so(serve, openpi_client):
    server = serve('openpi', limits=Limits(sessions=1))
    first = openpi_client('127.0.0.1', server.port)
    with connect(server.ws) as websocket:
        assert 'all 1 sessions' in websocket.recv()
        with pytest.raises(ConnectionClosed) as closed:
            websocket.recv()
    assert closed.value.rcvd.code == 1013
    assert first.infer(openpi_observation())['actions'].shape == (4, 7)


def test_a_silent_client_loses_its_session(serve):
    server = serve('openpi', limits=Limits(idle_s=0.2))
    with connect(server.ws) as websocket:
        websocket.recv()
        with pytest.raises(ConnectionClosed) as closed:
            websocket.recv(timeout=10)
    assert closed.value.rcvd.code == 1001
    server.wait_for_sessions(0)


def test_a_fast_client_is_slowed_down(serve, openpi_client):
    client = openpi_client('127.0.0.1', serve('openpi', limits=Limits(rate_hz=50)).port)
    begin = time.monotonic()
    for _ in range(11):
        client.infer(openpi_observation())
    assert time.monotonic() - begin > 10 / 50


def test_its_own_key_is_the_token(serve, openpi_client):
    server = serve('openpi', token='secret')
    client = openpi_client('127.0.0.1', server.port, api_key='secret')
    assert client.infer(openpi_observation())['actions'].shape == (4, 7)
    for key in (None, 'wrong', ''):
        with pytest.raises(InvalidStatus) as refused:
            openpi_client('127.0.0.1', server.port, api_key=key)
        assert refused.value.response.status_code == 401


@given(st.binary(max_size=200))
def test_no_bytes_raise_anything_but_the_protocols_error(frame):
    refuse_or_read(openpi.decode_message, openpi.to_observation, frame)


@given(WIRE)
def test_no_message_raises_anything_but_the_protocols_error(message):
    frame = openpi.encode_message(message)
    refuse_or_read(openpi.decode_message, openpi.to_observation, frame)


@given(st.data())
def test_no_damaged_observation_raises_anything_but_the_protocols_error(data):
    frame = bytearray(openpi.encode_message(openpi_observation()))
    for _ in range(data.draw(st.integers(1, 4))):
        frame[data.draw(st.integers(0, len(frame) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(frame)) | st.just(len(frame)))
    refuse_or_read(openpi.decode_message, openpi.to_observation, bytes(frame[:cut]))


@pytest.mark.parametrize(
    'parts',
    [
        {b'data': bytes(8), b'dtype': '|O', b'shape': [1]},
        {b'data': bytes(8), b'dtype': '<f4', b'shape': [3]},
        {b'data': bytes(8), b'dtype': '<f4', b'shape': [2**62, 2**62]},
        {b'data': b'', b'dtype': '<f4', b'shape': [0]},
        {b'data': bytes(8), b'dtype': '<f4', b'shape': [-1, -2]},
        {b'data': [1, 2], b'dtype': '<f4', b'shape': [2]},
        {b'data': bytes(8), b'dtype': '<f4'},
    ],
)
def test_only_plain_arrays_of_the_right_size_are_made(parts):
    frame = openpi.encode_message({'observation/image': {b'__ndarray__': True, **parts}})
    with pytest.raises(FrameError):
        openpi.decode_message(frame)
