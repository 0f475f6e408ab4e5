import json
import os
import signal
import subprocess
import sys
import time
import urllib.request

import pytest

from vla_cache_ros.cli.main import main
from vla_cache_ros.serving.app import open_socket

COMMAND = [sys.executable, '-m', 'vla_cache_ros.cli.main', 'serve', '--port', '0']


def start(*options, **environment):
    process = subprocess.Popen(
        [*COMMAND, *options],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, 'OMP_NUM_THREADS': '1', **environment},
    )
    lines = []
    for line in process.stderr:
        lines.append(line)
        if 'Ctrl-C' in line:
            break
    return process, ''.join(lines)


def end(process, number):
    process.send_signal(number)
    rest = process.stderr.read()
    return process.wait(20), rest


@pytest.mark.slow
@pytest.mark.parametrize(
    ('protocol', 'number'),
    [('openpi', signal.SIGINT), ('vla-eval', signal.SIGTERM)],
)
def test_it_serves_until_a_signal_and_ends_well(protocol, number):
    process, said = start('--protocol', protocol, VLA_CACHE_TOKEN='secret-word')
    try:
        address = next(word for word in said.split() if word.endswith('/health'))
        request = urllib.request.Request(address, headers={'Authorization': 'Bearer secret-word'})
        with urllib.request.urlopen(request, timeout=20) as response:
            health = json.load(response)
        assert (health['model'], health['protocol']) == ('small', protocol)
        assert health['cameras'] == ['agentview', 'wrist']
        assert 'TOKEN' in said
        assert 'secret-word' not in said
    finally:
        code, rest = end(process, number)
    assert code == 0
    assert 'Traceback' not in rest


def test_an_address_that_others_reach_needs_a_token(capsys, monkeypatch):
    monkeypatch.delenv('VLA_CACHE_TOKEN', raising=False)
    begin = time.monotonic()
    assert main(['serve', '--host', '0.0.0.0', '--port', '0']) == 2
    assert '--token' in capsys.readouterr().err
    assert time.monotonic() - begin < 10  # said before anything is loaded


def test_a_port_in_use_is_an_error_of_one_line(capsys):
    with open_socket('127.0.0.1', 0, '') as listener:
        assert main(['serve', '--port', str(listener.getsockname()[1])]) == 2
    assert capsys.readouterr().err.count('\n') == 1


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (['--images', 'sideways'], 'valid: upright, mirrored, bottom_up'),
        (['--max-sessions', '0'], 'sessions must be positive'),
        (['--execute-steps', '0'], 'execute_steps must be at least 1'),
        (['--cache', 'none'], 'none'),
    ],
)
def test_bad_options_are_errors_of_one_line(capsys, options, message):
    assert main(['serve', '--port', '0', *options]) == 2
    assert message in capsys.readouterr().err
