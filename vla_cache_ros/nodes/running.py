"""Executors, autostart and the main function that all nodes share."""

import signal
import sys
from collections.abc import Callable
from typing import Any

import rclpy
from rclpy.clock import Clock
from rclpy.clock_type import ClockType
from rclpy.executors import Executor, ExternalShutdownException, SingleThreadedExecutor
from rclpy.lifecycle import LifecycleNode, TransitionCallbackReturn
from rclpy.node import Node
from rclpy.signals import SignalHandlerOptions

from vla_cache_ros.core.errors import VlaCacheError
from vla_cache_ros.core.supervised_node import LIVING

_SPIN_TIMEOUT_S = 0.5
_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_HEED_WITHIN_S = 1.0


def make_executor() -> Executor:
    """Make the executor that every process of the project spins.

    It is rclpy's events executor, which needs less than half the time per message of the
    wait-set executors (docs/benchmarks.md), or the single-threaded one where rclpy has none
    (before Kilted). Neither needs threads here: inference has one of its own.
    """
    try:
        from rclpy.experimental.events_executor import EventsExecutor
    except ImportError:
        return SingleThreadedExecutor()
    return EventsExecutor()


def spin(executor: Executor, until: Callable[[], bool] = lambda: False) -> None:
    """Spin until a condition holds or the process is told to stop.

    Not `executor.spin()`: without a deadline, Kilted's events executor fires no timers.
    """
    while executor.context.ok() and not until():
        executor.spin_once(_SPIN_TIMEOUT_S)


def autostart(node: LifecycleNode) -> None:
    """Configure and activate a node as soon as it spins."""

    def start() -> None:
        timer.cancel()
        if node.trigger_configure() == TransitionCallbackReturn.SUCCESS:
            node.trigger_activate()
        else:
            node.get_logger().error('autostart failed; correct the cause, then configure by hand')

    timer = steady_timer(node, 0.0, start)


def steady_timer(node: Node, period_s: float, callback: Callable[[], None]) -> Any:
    """Create a timer on the wall's steady clock, which goes on while simulated time stands."""
    return node.create_timer(period_s, callback, clock=Clock(clock_type=ClockType.STEADY_TIME))


def run_nodes(*factories: Callable[[], Node], args: list[str] | None = None) -> int:
    """Spin nodes in one process until it is told to stop, by SIGINT or SIGTERM.

    Active nodes are then deactivated, which is their safety action, and every lifecycle node is
    shut down while its publishers still work: rclpy's own handlers would first close the context
    and leave a robot without its last command.

    Returns:
        Exit status: 0, or 1 when a node could not start, its reason on stderr.
    """
    nodes: list[Node] = []
    stop = StopSignals()
    rclpy.init(args=args, signal_handler_options=SignalHandlerOptions.NO)
    try:
        executor = make_executor()
        for factory in factories:
            if not stop.told:
                nodes.append(factory())
                executor.add_node(nodes[-1])
        spin(executor, until=lambda: stop.told)
    except VlaCacheError as error:
        sys.stderr.write(f'error: {error}\n')
        return 1
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    finally:
        stop.ignore()
        for node in reversed(nodes):
            end(node)
        rclpy.try_shutdown()
    return 0


class StopSignals:
    """SIGINT and SIGTERM as a flag that the loop looks at between two callbacks.

    What does not come back to the loop within a second (a model that loads) is broken into by
    KeyboardInterrupt. Further signals change nothing: terminal and launch system both send one.
    """

    def __init__(self) -> None:
        """Take over both signals; only the main thread may."""
        self.told = False
        for number in _STOP_SIGNALS:
            signal.signal(number, self._on_signal)

    def ignore(self) -> None:
        """Let no further signal interrupt the clean-up."""
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number in _STOP_SIGNALS:
            signal.signal(number, signal.SIG_IGN)

    def _on_signal(self, *_: object) -> None:
        if not self.told:
            self.told = True
            signal.signal(signal.SIGALRM, signal.default_int_handler)
            signal.setitimer(signal.ITIMER_REAL, _HEED_WITHIN_S)


def end(node: Node) -> None:
    """Take a node through its last transitions and destroy it, whatever one of them raises."""
    last_steps: list[Callable[[], Any]] = [node.destroy_node]
    if isinstance(node, LifecycleNode):
        last_steps.insert(0, lambda: _shut_down(node))
    for step in last_steps:
        try:
            step()
        except Exception as error:  # the next step and the next node have their turn
            sys.stderr.write(f'{node.get_name()}: {type(error).__name__}: {error}\n')


def _shut_down(node: LifecycleNode) -> None:
    """Deactivate, then shut down; a node in the midst of a transition is left as it is."""
    if node._state_machine.current_state[1] == 'active':
        node.trigger_deactivate()
    if node._state_machine.current_state[1] in LIVING:
        node.trigger_shutdown()
