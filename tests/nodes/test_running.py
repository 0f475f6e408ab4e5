"""Nodes as processes: they start, stop on SIGINT and SIGTERM, and say why they cannot run."""

import os
import signal
import subprocess
import sys
import time

import pytest

pytestmark = pytest.mark.ros


def run_code(node: str, arguments: tuple[str, ...] = ()) -> list[str]:
    code = (
        'import sys; '
        f'from vla_cache_ros.nodes.{node} import main; '
        f"sys.exit(main(['--ros-args', *{list(arguments)!r}]))"
    )
    return [sys.executable, '-c', code]


def start(node: str, arguments: tuple[str, ...] = ()) -> subprocess.Popen:
    return subprocess.Popen(
        run_code(node, arguments),
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, 'PYTHONUNBUFFERED': '1'},
    )


def wait_until_up(process: subprocess.Popen, ros_node, name: str, namespace: str) -> None:
    end_s = time.monotonic() + 60
    while (name, namespace) not in ros_node.get_node_names_and_namespaces():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < end_s, f'{name} did not come up'
        time.sleep(0.05)


@pytest.fixture
def observer(ros):
    from rclpy.node import Node

    return Node('observer')


@pytest.mark.parametrize(
    ('executable', 'last_node', 'stop'),
    [('bringup', 'sim_bridge', signal.SIGINT), ('command_guard', 'command_guard', signal.SIGTERM)],
)
def test_process_stops_cleanly_when_told(observer, executable, last_node, stop):
    # A namespace of its own: the graph may still list the nodes of the test before.
    namespace = f'/stops_{executable}'
    process = start(executable, ('-r', f'__ns:={namespace}'))
    try:
        wait_until_up(process, observer, last_node, namespace)
        process.send_signal(stop)
        assert process.wait(30) == 0, process.stderr.read()
        assert 'Traceback' not in process.stderr.read()
    finally:
        process.kill()
        process.stderr.close()


def test_wrong_parameter_ends_the_process_with_its_reason():
    arguments = ('-p', 'pacing:=sometimes')
    done = subprocess.run(
        run_code('command_guard', arguments), capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1
    assert 'valid: timer, state' in done.stderr
    assert 'Traceback' not in done.stderr
