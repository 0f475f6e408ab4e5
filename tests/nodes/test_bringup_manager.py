"""The bring-up manager over real processes: they are killed, hang, refuse, and come back."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = [pytest.mark.ros, pytest.mark.slow]

SMALL_NODE = Path(__file__).with_name('small_node.py')


def command_of(namespace: str, name: str, *more: str) -> list[str]:
    names = ['-r', f'__node:={name}', '-r', f'__ns:={namespace}']
    return [sys.executable, str(SMALL_NODE), '--ros-args', *names, *more]


def is_alive(process_id: int) -> bool:
    try:
        os.kill(process_id, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.fixture
def bring_up(executor, spin_until, request):
    """Make a manager over small nodes; they are gone when the test is."""
    from rclpy.node import Node
    from rclpy.parameter import Parameter
    from std_msgs.msg import String
    from std_srvs.srv import Trigger
    from vla_cache_interfaces.msg import BringupState

    from vla_cache_ros.nodes import qos
    from vla_cache_ros.nodes.bringup_manager import BringupManager

    from .small_node import SAID

    # Of its own: the graph may still list the nodes of the test before.
    namespace = f'/{request.node.name.split("[")[0]}'

    class BroughtUp:
        def __init__(self, names: tuple[str, ...], **parameters) -> None:
            self.refusing: set[str] = set()
            parameters = {'processes': names, 'hold_nodes': names[:1], **parameters}
            overrides = [
                Parameter(name, value=list(value) if isinstance(value, tuple) else value)
                for name, value in {'node_names': names, **parameters}.items()
            ]
            self.manager = BringupManager(
                self.command, namespace=namespace, parameter_overrides=overrides
            )
            self.observer = Node('observer', namespace=namespace)
            self.states: list[BringupState] = []
            self.said: list[str] = []
            topic = 'bringup_manager/state'
            self.observer.create_subscription(
                BringupState, topic, self.states.append, qos.latched()
            )
            self.observer.create_subscription(
                String, '/said', lambda message: self.said.append(message.data), SAID
            )
            executor.add_node(self.manager)
            executor.add_node(self.observer)

        def command(self, name: str) -> list[str]:
            refusal = ['-p', 'refuses:=configure'] if name in self.refusing else []
            return command_of(namespace, name, *refusal)

        def call(self, service: str) -> None:
            client = self.observer.create_client(Trigger, service)
            spin_until(client.service_is_ready)
            answer = client.call_async(Trigger.Request())
            if not service.endswith('hang'):
                spin_until(answer.done)
                assert answer.result().success

        def until(self, state: str, timeout_s: float = 30.0, **nodes: str) -> None:
            spin_until(lambda: self.is_at(state, nodes), timeout_s)

        def is_at(self, state: str, nodes: dict[str, str]) -> bool:
            if not self.states or self.states[-1].state != state:
                return False
            seen = {node.name: node.state for node in self.states[-1].nodes}
            return all(seen[name] == wanted for name, wanted in nodes.items())

        def node(self, name: str):
            return next(node for node in self.states[-1].nodes if node.name == name)

    return BroughtUp


def test_killed_process_is_restarted_and_waits_to_be_told(bring_up):
    graph = bring_up(('guard', 'policy'), autostart=True)
    graph.until('active', guard='active', policy='active')
    assert graph.said.index('guard start') < graph.said.index('policy start')
    first = graph.manager.process_id('policy')
    began_s = time.monotonic()
    os.kill(first, signal.SIGKILL)
    graph.until('degraded', policy='starting')
    assert time.monotonic() - began_s < 0.5  # the heartbeat's timeout; a process's end is faster
    graph.until('inactive', guard='active', policy='inactive')
    assert graph.manager.process_id('policy') != first
    assert graph.node('policy').restarts == 1
    assert graph.said.count('policy start') == 1
    graph.call('bringup_manager/activate')
    graph.until('active', guard='active', policy='active')


def test_reactivate_brings_a_killed_process_back_into_action(bring_up):
    graph = bring_up(('guard', 'policy'), autostart=True, reactivate=True)
    graph.until('active')
    os.kill(graph.manager.process_id('policy'), signal.SIGKILL)
    graph.until('degraded')
    graph.until('active', guard='active', policy='active')
    assert graph.said.count('policy start') == 2
    assert graph.said.count('guard stop') == 0


def test_hanging_process_is_lost_by_its_silence_then_replaced(bring_up):
    graph = bring_up(('guard', 'policy'), autostart=True, hang_timeout_s=0.5, stop_timeout_s=0.2)
    graph.until('active')
    first = graph.manager.process_id('policy')
    graph.call('policy/hang')
    graph.until('degraded', policy='lost')
    assert 'silent for 0.5' in graph.node('policy').detail
    graph.until('inactive', policy='inactive')
    assert not is_alive(first)
    assert graph.node('policy').restarts == 1


def test_orders_take_everything_down_and_up_again(bring_up):
    graph = bring_up(('guard', 'policy'))
    graph.until('down')
    graph.call('bringup_manager/activate')
    graph.until('active')
    graph.call('bringup_manager/deactivate')
    graph.until('inactive', guard='inactive', policy='inactive')
    assert graph.said == ['guard start', 'policy start', 'policy stop', 'guard stop']
    processes = [graph.manager.process_id(name) for name in ('guard', 'policy')]
    graph.call('bringup_manager/shutdown')
    graph.until('down', guard='lost', policy='lost')
    assert not any(map(is_alive, processes))


def test_refused_configure_is_reported_and_tried_again_when_told(bring_up):
    graph = bring_up(('guard', 'policy'))
    graph.refusing.add('policy')
    graph.call('bringup_manager/activate')
    graph.until('failed', guard='inactive', policy='unconfigured')
    assert 'configure failed' in graph.node('policy').detail
    graph.refusing.clear()
    os.kill(graph.manager.process_id('policy'), signal.SIGTERM)
    graph.until('failed', policy='lost')
    graph.call('bringup_manager/activate')
    graph.until('active')


def test_process_that_dies_again_and_again_is_given_up(bring_up):
    graph = bring_up(('guard', 'policy'), autostart=True, max_restarts=1)
    graph.until('active')
    os.kill(graph.manager.process_id('policy'), signal.SIGKILL)
    graph.until('inactive')
    os.kill(graph.manager.process_id('policy'), signal.SIGKILL)
    graph.until('failed', policy='lost', guard='active')
    assert 'given up after 1 restarts' in graph.node('policy').detail
    assert graph.manager.process_id('policy') is None


def test_nothing_outlives_the_manager(bring_up):
    graph = bring_up(('guard', 'policy'), autostart=True)
    graph.until('active')
    processes = [graph.manager.process_id(name) for name in ('guard', 'policy')]
    graph.manager.destroy_node()
    assert not any(map(is_alive, processes))


def test_only_the_packages_own_nodes_can_be_processes(ros):
    from rclpy.parameter import Parameter

    from vla_cache_ros.core.errors import UnknownNameError
    from vla_cache_ros.nodes.bringup_manager import BringupManager

    overrides = [Parameter(name, value=['/bin/sh']) for name in ('node_names', 'processes')]
    with pytest.raises(UnknownNameError, match='policy_node'):
        BringupManager(parameter_overrides=overrides)


def test_real_guard_is_brought_up_by_the_real_command_and_dies_with_a_killed_manager(ros):
    arguments = [
        *('-p', 'node_names:=[command_guard]', '-p', 'processes:=[command_guard]'),
        *('-p', 'hold_nodes:=[command_guard]', '-p', 'autostart:=true'),
        *('-r', '__ns:=/own_command'),
    ]
    manager = subprocess.Popen(
        [sys.executable, '-m', 'vla_cache_ros.nodes', 'bringup_manager', '--ros-args', *arguments],
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        for line in manager.stderr:
            if 'active: command_guard active' in line:
                break
        (child,) = children_of(manager.pid)
        manager.kill()
        manager.wait()
        end_s = time.monotonic() + 10
        while is_alive(child):
            assert time.monotonic() < end_s, 'the guard outlived its manager'
            time.sleep(0.05)
    finally:
        manager.kill()
        manager.stderr.close()


def children_of(process_id: int) -> list[int]:
    listed = Path(f'/proc/{process_id}/task/{process_id}/children').read_text(encoding='utf-8')
    return [int(word) for word in listed.split()]
