import json

import json_numpy
import numpy as np
import pytest
import requests
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation
from serving_fakes import CHUNK_SIZE, image, openvla_observation, refuse_or_read, state

from vla_cache_ros.serving import openvla_rest
from vla_cache_ros.serving.limits import Limits


def act(server, payload, session='robot', encoded=False):
    """Ask as OpenVLA's documentation shows it, with json_numpy."""
    body = json_numpy.dumps(payload)
    if encoded:
        body = json.dumps({'encoded': body})
    return requests.post(
        f'{server.http}/act',
        data=body,
        headers={'Content-Type': 'application/json', 'X-Session-Id': session},
        timeout=20,
    )


def actions_of(response):
    assert response.status_code == 200, response.headers
    answer = json_numpy.loads(response.text)
    return json_numpy.loads(answer) if isinstance(answer, str) else answer


def cache_of(response):
    return json.loads(response.headers['X-Vla-Cache'])


def oft_observation(seed=0):
    payload = openvla_observation(seed)
    payload['full_image'] = payload.pop('image')
    return payload


def test_openvla_gets_one_action_and_oft_a_chunk(serve):
    server = serve('openvla-rest')
    action = actions_of(act(server, openvla_observation()))
    assert action.shape == (7,)
    chunk = actions_of(act(server, oft_observation(), 'another'))
    assert isinstance(chunk, list)
    assert np.stack(chunk).shape == (CHUNK_SIZE, 7)
    np.testing.assert_array_equal(chunk[0], action)


def test_text_is_answered_by_text(serve):
    server = serve('openvla-rest')
    plain = actions_of(act(server, openvla_observation(), 'plain'))
    response = act(server, openvla_observation(), 'text', encoded=True)
    assert isinstance(response.json(), str)
    np.testing.assert_array_equal(actions_of(response), plain)


def test_the_gripper_is_one_where_it_opens(serve):
    chunk = np.stack(actions_of(act(serve('openvla-rest'), oft_observation())))
    assert chunk[:, 6].tolist() == [1.0, 0.0, 1.0, 0.0]  # the fake policy's are -1, 1, -1, 1


def test_single_actions_come_from_the_chunk_before(serve):
    server = serve('openvla-rest')
    responses = [act(server, openvla_observation(n)) for n in range(5)]
    assert [actions_of(response)[1] for response in responses] == [0, 1, 2, 0, 1]
    modes = [cache_of(response)['mode'] for response in responses]
    assert modes == ['keyframe', 'open loop', 'open loop', 'cached', 'open loop']


def test_sessions_have_caches_of_their_own(serve):
    server = serve('openvla-rest')
    alone = [act(server, oft_observation(n), 'alone') for n in range(3)]
    for n in range(3):
        together = act(server, oft_observation(n), 'one')
        act(server, oft_observation(n + 50), 'two')
        np.testing.assert_array_equal(actions_of(together), actions_of(alone[n]))
    assert server.host.sessions == ('id alone', 'id one', 'id two')


def test_without_a_name_the_address_is_the_session(serve):
    server = serve('openvla-rest')
    body = json_numpy.dumps(openvla_observation())
    for _ in range(2):
        requests.post(f'{server.http}/act', data=body, timeout=20)
    assert server.host.sessions == ('address 127.0.0.1',)


def test_a_reset_begins_an_episode_for_its_session_alone(serve):
    server = serve('openvla-rest')
    first = act(server, oft_observation(1))
    act(server, oft_observation(2))
    act(server, oft_observation(2), 'other')
    url = f'{server.http}/reset'
    assert requests.post(url, headers={'X-Session-Id': 'robot'}, timeout=20).status_code == 200
    again = act(server, oft_observation(1))
    np.testing.assert_array_equal(actions_of(again), actions_of(first))
    assert cache_of(act(server, oft_observation(2), 'other'))['mode'] == 'cached'


@pytest.mark.parametrize(
    ('change', 'reason'),
    [
        ({'instruction': 3}, "'instruction' must be the task in words"),
        ({'image': [[1]]}, "'image' is list"),
        ({'wrist_image': None}, "'wrist_image' is missing"),
        ({'state': None}, "'state' is missing"),
        ({'unnorm_key': 'bridge_orig'}, 'unnorm_key'),
    ],
)
def test_failures_are_the_published_error_with_a_reason(serve, change, reason):
    server = serve('openvla-rest')
    response = act(server, {**openvla_observation(), **change})
    assert (response.status_code, response.json()) == (400, 'error')
    assert reason in response.headers['X-Error']
    assert act(server, openvla_observation()).status_code == 200


def test_failures_of_the_policy_are_the_servers(serve):
    response = act(serve('openvla-rest'), openvla_observation(words='fail'))
    assert (response.status_code, response.json()) == (503, 'error')


@pytest.mark.parametrize(
    'body', [b'', b'{', b'[]', b'"x"', b'\xff', b'{"encoded": 1}', b'[' * 9999]
)
def test_damaged_requests_are_refused(serve, body):
    response = requests.post(f'{serve("openvla-rest").http}/act', data=body, timeout=20)
    assert (response.status_code, response.json()) == (400, 'error')


def test_a_request_that_is_too_long_is_not_read(serve):
    server = serve('openvla-rest', limits=Limits(message_bytes=1000))
    response = requests.post(f'{server.http}/act', data=bytes(5000), timeout=20)
    assert response.status_code == 413


def test_one_session_too_many_is_told_so_and_idle_ones_make_room(serve):
    server = serve('openvla-rest', limits=Limits(sessions=1, idle_s=0.4))
    assert act(server, openvla_observation(), 'one').status_code == 200
    refused = act(server, openvla_observation(), 'two')
    assert refused.status_code == 503
    assert 'all 1 sessions' in refused.headers['X-Error']
    server.wait_for_sessions(0)
    assert act(server, openvla_observation(), 'two').status_code == 200


def test_the_dataset_that_the_server_was_started_with_may_be_named(serve):
    server = serve('openvla-rest', unnorm_key='bridge_orig')
    for key, status in (('bridge_orig', 200), (None, 200), ('fractal', 400)):
        assert act(server, {**openvla_observation(), 'unnorm_key': key}).status_code == status


def test_a_policy_without_state_asks_for_none(serve):
    server = serve('openvla-rest', needs_state=False)
    payload = {key: value for key, value in openvla_observation().items() if key != 'state'}
    assert act(server, payload).status_code == 200


def test_any_key_with_wrist_in_it_is_the_wrist_camera(serve):
    server = serve('openvla-rest')
    payload = {
        'full_image': image(1),
        'left_wrist': image(2),
        'state': state(),
        'instruction': 'pick',
    }
    act(server, payload)
    np.testing.assert_array_equal(server.policies[0].seen[0].images['wrist'], image(2))


@given(st.lists(st.floats(-1.5, 1.5), min_size=3, max_size=3))
def test_euler_angles_turn_as_the_rotation_vector_does(vector):
    angles = openvla_rest.to_euler(np.array([vector]))
    turn = Rotation.from_euler('xyz', angles[0]) * Rotation.from_rotvec(vector).inv()
    assert turn.magnitude() < 1e-6


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                [
                    '__numpy__',
                    'dtype',
                    'shape',
                    'image',
                    'full_image',
                    'wrist_image',
                    'state',
                    'instruction',
                    'unnorm_key',
                    'encoded',
                ]
            ),
            inner | st.sampled_from(['|u1', '<f4', '|O', 'AAAA', 'pick', '{"image": 1}']),
            max_size=6,
        )
    ),
    max_leaves=12,
)


def decode(body):
    return openvla_rest.decode_request(body)[0]


@given(st.binary(max_size=100) | JSON.map(lambda value: json.dumps(value).encode()))
def test_no_request_raises_anything_but_the_protocols_error(body):
    refuse_or_read(decode, openvla_rest.to_observation, body)


@given(st.data())
def test_no_damaged_request_raises_anything_but_the_protocols_error(data):
    body = bytearray(json_numpy.dumps(openvla_observation()).encode())
    for _ in range(data.draw(st.integers(1, 4))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    refuse_or_read(decode, openvla_rest.to_observation, bytes(body))
