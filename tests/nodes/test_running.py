"""Nodes as processes: they start, stop on SIGINT and SIGTERM, and say why they cannot run."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

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


@pytest.fixture
def small_node(observer):
    """An active lifecycle node as a process, and what it says on `said`."""
    from std_msgs.msg import String

    from vla_cache_ros.nodes.running import make_executor

    from .small_node import SAID

    said: list[str] = []
    observer.create_subscription(String, '/said', lambda message: said.append(message.data), SAID)
    executor = make_executor()
    executor.add_node(observer)

    def until(condition) -> None:
        end_s = time.monotonic() + 60
        while not condition():
            assert time.monotonic() < end_s, 'condition not reached in time'
            executor.spin_once(0.01)

    path = Path(__file__).with_name('small_node.py')
    arguments = ['--ros-args', '-p', 'autostart:=true']
    process = subprocess.Popen(
        [sys.executable, str(path), *arguments], stderr=subprocess.PIPE, text=True
    )
    try:
        until(lambda: 'small_node start' in said)
        yield process, said, until
    finally:
        process.kill()
        process.stderr.close()
        executor.remove_node(observer)
        executor.shutdown()


@pytest.mark.parametrize('stop', [signal.SIGINT, signal.SIGTERM])
def test_active_node_takes_its_safety_action_before_it_goes(small_node, stop):
    process, said, until = small_node
    process.send_signal(stop)
    until(lambda: 'small_node stop' in said)
    assert process.wait(30) == 0
    assert said.count('small_node stop') == 1
    assert 'Traceback' not in process.stderr.read()


def test_double_signal_changes_nothing(small_node):
    process, said, until = small_node
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGTERM)
    until(lambda: 'small_node stop' in said)
    assert process.wait(30) == 0


def test_callback_that_does_not_return_is_broken_into(small_node, observer):
    from std_srvs.srv import Trigger

    process, said, until = small_node
    client = observer.create_client(Trigger, 'small_node/hang')
    until(client.service_is_ready)
    client.call_async(Trigger.Request())
    time.sleep(0.5)
    process.send_signal(signal.SIGTERM)
    until(lambda: 'small_node stop' in said)
    assert process.wait(30) == 0


def test_wrong_parameter_ends_the_process_with_its_reason():
    arguments = ('-p', 'pacing:=sometimes')
    done = subprocess.run(
        run_code('command_guard', arguments), capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1
    assert 'valid: timer, state' in done.stderr
    assert 'Traceback' not in done.stderr
