"""The bring-up manager: brings lifecycle nodes up in order, and everything down when one is lost.

What it does when is decided in core/supervision.py; here are its senses and hands: heartbeats and
get_state, change_state, and the processes that it owns. Nothing here waits: every call to another
node is asynchronous, and its deadline is the supervisor's.

A plain node on purpose: whoever supervises the lifecycle of the others has none to be supervised.
"""

import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState, GetState
from rclpy.node import Node
from rclpy.task import Future
from std_srvs.srv import Trigger
from vla_cache_interfaces.msg import BringupState, Heartbeat, NodeState

from vla_cache_ros.core.errors import UnknownNameError
from vla_cache_ros.core.supervised_node import SupervisionConfig
from vla_cache_ros.core.supervision import Request, Supervisor
from vla_cache_ros.nodes import qos
from vla_cache_ros.nodes.child_processes import (
    ChildProcesses,
    CommandOf,
    node_command,
    passed_on,
    sibling_enclave,
)
from vla_cache_ros.nodes.parameter_tables.bringup_manager import BringupParameters
from vla_cache_ros.nodes.parameters import declare
from vla_cache_ros.nodes.running import run_nodes, steady_timer

_PERIOD_S = 0.02

_TRANSITIONS = {
    'configure': Transition.TRANSITION_CONFIGURE,
    'activate': Transition.TRANSITION_ACTIVATE,
    'deactivate': Transition.TRANSITION_DEACTIVATE,
}
_SHUTDOWNS = {
    'unconfigured': Transition.TRANSITION_UNCONFIGURED_SHUTDOWN,
    'inactive': Transition.TRANSITION_INACTIVE_SHUTDOWN,
    'active': Transition.TRANSITION_ACTIVE_SHUTDOWN,
}


class BringupManager(Node):
    """Supervises the lifecycle nodes of its own namespace.

    Subscribes:
        <node>/heartbeat (vla_cache_interfaces/Heartbeat), for each node.
    Publishes:
        ~/state (vla_cache_interfaces/BringupState, transient local), at every change.
    Serves (std_srvs/Trigger; the answer says that it was understood, ~/state what came of it):
        ~/activate: configure and activate everything; what was given up is tried again.
        ~/deactivate: deactivate everything, in reverse order.
        ~/shutdown: shut every node down and stop the manager's own processes.
    Calls:
        <node>/change_state, <node>/get_state (lifecycle_msgs).
    """

    def __init__(
        self,
        command_of: CommandOf | None = None,
        node_name: str = 'bringup_manager',
        **node_arguments: Any,
    ) -> None:
        """Begin to watch; with autostart, to bring up.

        Args:
            command_of: Says how a node is run as a process; default: as the package's own.
            node_name: Name of the node.
            **node_arguments: Passed on to rclpy's Node.

        Raises:
            ConfigError: A parameter is out of its range, or the names contradict one another.
            UnknownNameError: A process is none of the package's nodes.
        """
        super().__init__(node_name, **node_arguments)
        parameters = declare(self, BringupParameters)
        if command_of is None:
            _check_processes(parameters.processes)
            command_of = self._command_of
        self._stop_timeout_s = parameters.stop_timeout_s
        self._supervisor = Supervisor(_config(parameters), time.monotonic())
        self._children = ChildProcesses(command_of)
        self._callers = {name: _NodeServices(self, name) for name in parameters.node_names}
        self._unsent: list[Request] = []
        self._reported: tuple[Any, ...] = ()

        self._publisher = qos.publish(self, BringupState, '~/state', qos.latched())
        for name in parameters.node_names:
            on_heartbeat = partial(self._on_heartbeat, name)
            qos.subscribe(self, Heartbeat, f'{name}/heartbeat', on_heartbeat, qos.heartbeat())
        for verb, order in (
            ('activate', self._supervisor.activate),
            ('deactivate', self._supervisor.deactivate),
            ('shutdown', self._supervisor.end),
        ):
            self.create_service(Trigger, f'~/{verb}', partial(self._on_order, verb, order))
        if parameters.autostart:
            self._supervisor.activate()
        steady_timer(self, _PERIOD_S, self._tick)

    @property
    def state(self) -> str:
        """The whole in one word, as on ~/state."""
        return self._supervisor.state

    def process_id(self, name: str) -> int | None:
        """Process id of a node that the manager runs; None when it is not running."""
        return self._children.process_id(name)

    def destroy_node(self) -> None:
        """Stop the manager's own processes and wait for their end, then destroy the node."""
        self._children.close(self._stop_timeout_s)
        super().destroy_node()

    def _command_of(self, name: str) -> list[str]:
        """How a node of this package is run below the manager, which alone activates it."""
        use_sim_time = str(self.get_parameter('use_sim_time').value).lower()
        own = ['-p', 'autostart:=false', '-p', f'use_sim_time:={use_sim_time}']
        own += sibling_enclave(sys.argv, name)
        return node_command(name, [*passed_on(sys.argv), *own])

    # Senses

    def _on_heartbeat(self, name: str, message: Heartbeat) -> None:
        self._supervisor.heard(name, message.state, time.monotonic())

    def _on_order(
        self,
        verb: str,
        order: Callable[[], None],
        _: Trigger.Request,
        response: Trigger.Response,
    ) -> Trigger.Response:
        order()
        self.get_logger().info(f'told to {verb}')
        response.success = True
        response.message = f'{verb}: begun; what comes of it is on {self.get_name()}/state'
        return response

    def _on_state(self, name: str, answer: Future) -> None:
        response = answer.result()
        if response is not None:
            self._supervisor.observed(name, response.current_state.label, time.monotonic())

    def _on_changed(self, name: str, transition: str, answer: Future) -> None:
        response = answer.result()
        success = response is not None and response.success
        self._supervisor.answered(name, transition, success, time.monotonic())

    # Hands

    def _tick(self) -> None:
        for name, why in self._children.ended().items():
            self._supervisor.process_ended(name, why, time.monotonic())
        for request in self._supervisor.tick(time.monotonic()):
            if request.action == 'start':
                self._start(request.node)
            elif request.action == 'stop':
                self._children.stop(request.node, self._stop_timeout_s)
            else:
                self._unsent.append(request)
        self._unsent = [request for request in self._unsent if not self._send(request)]
        self._report()

    def _start(self, name: str) -> None:
        try:
            self._children.start(name)
        except OSError as error:
            self._supervisor.process_ended(name, f'cannot start: {error}', time.monotonic())

    def _send(self, request: Request) -> bool:
        """Call a service, unless it is not there yet; what is no longer wanted is dropped."""
        node = next(node for node in self._supervisor.nodes if node.name == request.node)
        services = self._callers[request.node]
        if request.action == 'ask':
            if node.asked_s is None:
                return True
            return services.ask(partial(self._on_state, request.node))
        if node.pending != request.action:
            return True
        transition = _TRANSITIONS.get(request.action) or _SHUTDOWNS[node.state]
        return services.change(transition, partial(self._on_changed, node.name, request.action))

    def _report(self) -> None:
        """Publish the state where it has changed."""
        nodes = [
            NodeState(name=node.name, state=node.state, restarts=node.restarts, detail=node.detail)
            for node in self._supervisor.nodes
        ]
        report = (self._supervisor.state, *((n.state, n.restarts, n.detail) for n in nodes))
        if report == self._reported:
            return
        self._reported = report
        message = BringupState(state=self._supervisor.state, nodes=nodes)
        message.header.stamp = self.get_clock().now().to_msg()
        self._publisher.publish(message)
        told = (f'{n.name} {n.state}' + (f' ({n.detail})' if n.detail else '') for n in nodes)
        self.get_logger().info(f'{message.state}: {", ".join(told)}')


class _NodeServices:
    """One node's lifecycle services, called without waiting."""

    def __init__(self, node: Node, name: str) -> None:
        self._change = node.create_client(ChangeState, f'{name}/change_state')
        self._state = node.create_client(GetState, f'{name}/get_state')
        self._waiting: dict[Any, Future] = {}

    def ask(self, done: Callable[[Future], None]) -> bool:
        """Ask for the state; False when the service is not there."""
        return self._call(self._state, GetState.Request(), done)

    def change(self, transition: int, done: Callable[[Future], None]) -> bool:
        """Ask for a transition; False when the service is not there."""
        request = ChangeState.Request(transition=Transition(id=transition))
        return self._call(self._change, request, done)

    def _call(self, client: Any, request: Any, done: Callable[[Future], None]) -> bool:
        if not client.service_is_ready():
            return False
        if client in self._waiting:
            client.remove_pending_request(self._waiting.pop(client))
        self._waiting[client] = future = client.call_async(request)
        future.add_done_callback(done)
        return True


def _config(parameters: BringupParameters) -> SupervisionConfig:
    return SupervisionConfig(
        nodes=parameters.node_names,
        processes=parameters.processes,
        holders=parameters.hold_nodes,
        reactivate=parameters.reactivate,
        heartbeat_timeout_s=parameters.heartbeat_timeout_s,
        configure_timeout_s=parameters.configure_timeout_s,
        transition_timeout_s=parameters.transition_timeout_s,
        startup_timeout_s=parameters.startup_timeout_s,
        hang_timeout_s=parameters.hang_timeout_s,
        max_restarts=parameters.max_restarts,
        restart_window_s=parameters.restart_window_s,
    )


def _check_processes(names: tuple[str, ...]) -> None:
    """Make sure that only the package's own nodes are ever run."""
    from vla_cache_ros.nodes.parameter_tables.overview import NODES

    for name in names:
        if name not in NODES:
            raise UnknownNameError('process', name, NODES)


def main(args: list[str] | None = None) -> int:
    """Run the node on its own."""
    return run_nodes(BringupManager, args=args)
