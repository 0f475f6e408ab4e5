import base64
import socket

import pytest
import requests
from serving_fakes import openpi_observation
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from vla_cache_ros.core.errors import ConfigError, UnknownNameError
from vla_cache_ros.serving.access import is_local, token_of
from vla_cache_ros.serving.app import PROTOCOLS, open_socket, protocol_module

PROTOCOL_NAMES = tuple(PROTOCOLS)


@pytest.mark.parametrize('protocol', PROTOCOL_NAMES)
def test_health_says_who_serves_what(serve, protocol):
    server = serve(protocol)
    health = requests.get(f'{server.http}/health', timeout=20).json()
    assert health['status'] == 'ok'
    assert health['protocol'] == protocol
    assert (health['model'], health['sessions'], health['steps_served']) == ('fake', 0, 0)
    assert requests.get(f'{server.http}/healthz', timeout=20).text == 'OK\n'


def test_health_counts_sessions_and_steps(serve, openpi_client):
    server = serve('openpi')
    client = openpi_client('127.0.0.1', server.port)
    for n in range(3):
        client.infer(openpi_observation(n))
    health = requests.get(f'{server.http}/health', timeout=20).json()
    assert (health['sessions'], health['steps_served']) == (1, 3)
    assert 0 < health['policy_ms']['p50'] <= health['policy_ms']['p99']


@pytest.mark.parametrize('protocol', PROTOCOL_NAMES)
@pytest.mark.parametrize('authorization', [None, 'Bearer wrong', 'Bearer', 'secret', 'Basic ???'])
def test_without_the_token_nobody_gets_in(serve, protocol, authorization):
    server = serve(protocol, token='secret')
    headers = {} if authorization is None else {'Authorization': authorization}
    for path in ('/health', '/act', '/reset', '/nothing'):
        response = requests.request('POST', server.http + path, headers=headers, timeout=20)
        assert response.status_code == 401
    with pytest.raises(InvalidStatus) as refused, connect(server.ws, additional_headers=headers):
        pass
    assert refused.value.response.status_code == 401
    assert server.host.sessions == ()
    assert requests.get(f'{server.http}/healthz', timeout=20).status_code == 200


def test_with_the_token_one_gets_in(serve):
    server = serve('openpi', token='secret')
    headers = {'Authorization': 'Bearer secret'}
    assert requests.get(f'{server.http}/health', headers=headers, timeout=20).status_code == 200
    with connect(server.ws, additional_headers=headers) as websocket:
        assert websocket.recv()


def test_the_three_ways_to_write_a_token():
    password = base64.b64encode(b'any:s:t').decode()
    assert token_of('Bearer s:t') == token_of('Api-Key s:t') == token_of(f'Basic {password}')
    assert token_of('Digest s:t') == token_of('') == ''


@pytest.mark.parametrize('protocol', PROTOCOL_NAMES)
def test_web_pages_are_refused(serve, protocol):
    server = serve(protocol)
    headers = {'Origin': 'http://evil.example'}
    assert requests.post(f'{server.http}/act', headers=headers, timeout=20).status_code == 403
    with pytest.raises(InvalidStatus) as refused, connect(server.ws, additional_headers=headers):
        pass
    assert refused.value.response.status_code == 403


@pytest.mark.parametrize('host', ['0.0.0.0', '192.0.2.1', '::', 'example.org'])
def test_others_need_a_token(host):
    assert not is_local(host)
    with pytest.raises(ConfigError, match='VLA_CACHE_TOKEN'):
        open_socket(host, 0, token='')


def test_answers_are_not_held_back_and_dead_clients_are_found():
    with open_socket('127.0.0.1', 0, '') as listener:
        address = listener.getsockname()
        with socket.create_connection(address), listener.accept()[0] as connection:
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            assert connection.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)


def test_any_address_is_allowed_with_a_token():
    open_socket('0.0.0.0', 0, token='secret').close()


@pytest.mark.parametrize('host', ['127.0.0.1', '127.1.2.3', '::1', 'localhost'])
def test_this_machine_needs_none(host):
    assert is_local(host)


def test_a_port_in_use_is_said():
    with open_socket('127.0.0.1', 0, '') as listener:
        port = listener.getsockname()[1]
        with pytest.raises(ConfigError, match=f'127.0.0.1:{port}: .*in use.* --port 0'):
            open_socket('127.0.0.1', port, '')


def test_an_unknown_protocol_is_refused():
    with pytest.raises(UnknownNameError, match='vla-eval, openpi, openvla-rest'):
        protocol_module('grpc')
