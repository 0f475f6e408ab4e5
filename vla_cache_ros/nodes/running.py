"""Executors, autostart and the main function that all nodes share."""

import contextlib
import sys
from collections.abc import Callable
from typing import Any

import rclpy
from rclpy.clock import Clock
from rclpy.clock_type import ClockType
from rclpy.executors import Executor, ExternalShutdownException, SingleThreadedExecutor
from rclpy.lifecycle import LifecycleNode, TransitionCallbackReturn
from rclpy.node import Node

from vla_cache_ros.core.errors import VlaCacheError

_SPIN_TIMEOUT_S = 0.5


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
    """Spin nodes in one process until it is told to stop.

    Returns:
        Exit status: 0, or 1 when a node could not start, its reason on stderr.
    """
    nodes: list[Node] = []
    rclpy.init(args=args)
    try:
        executor = make_executor()
        for factory in factories:
            nodes.append(factory())
            executor.add_node(nodes[-1])
        spin(executor)
    except VlaCacheError as error:
        sys.stderr.write(f'error: {error}\n')
        return 1
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    except Exception:
        if rclpy.ok():
            raise
        # Told to stop while a node was still being made: what it wanted to create is refused.
    finally:
        with contextlib.suppress(KeyboardInterrupt):  # a second Ctrl-C must not stop the clean-up
            for node in reversed(nodes):
                node.destroy_node()
            rclpy.try_shutdown()
    return 0
