"""Health and figures of the running graph: /diagnostics, percentiles, rates, drops.

The two rates are told apart: how often the policy looks (refresh) and how often the robot is
commanded. All times are wall time, also where simulated time stands still during inference.
"""

import time
from collections import Counter, OrderedDict
from functools import partial
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray
from rclpy.node import Node
from sensor_msgs.msg import TimeReference
from vla_cache_interfaces.msg import GuardStatus, Heartbeat, ShadowReport, StepReport

from vla_cache_ros.core.errors import ObservationError
from vla_cache_ros.core.timing import LatencyWindow, RateMeter
from vla_cache_ros.nodes import qos
from vla_cache_ros.nodes.conversions import stamp_to_ns
from vla_cache_ros.nodes.diagnostics import Diagnostics
from vla_cache_ros.nodes.parameter_tables.monitor import MonitorParameters
from vla_cache_ros.nodes.parameters import declare
from vla_cache_ros.nodes.report_checks import MAX_NAMES
from vla_cache_ros.nodes.report_messages import (
    CommandReport,
    ShadowResult,
    message_to_guard,
    message_to_shadow,
)
from vla_cache_ros.nodes.running import run_nodes, steady_timer
from vla_cache_ros.nodes.snapshot import NodeHealth, Snapshot
from vla_cache_ros.nodes.step_messages import PolicyStep, message_to_step

_KEPT_STEPS = 64
"""Steps kept while the parts of one (capture, step, first command) find one another."""

_DETAIL_LENGTH = 400
"""Characters kept of a reason in words."""


class Recent(OrderedDict[int, Any]):
    """A mapping that keeps its newest entries."""

    def __setitem__(self, key: int, value: Any) -> None:
        super().__setitem__(key, value)
        while len(self) > _KEPT_STEPS:
            self.popitem(last=False)


class Monitor(Node):
    """Watches the other nodes.

    Subscribes (relative names, remappable):
        policy_node/step_report (vla_cache_interfaces/StepReport): steps and drops.
        policy_node/shadow_report (vla_cache_interfaces/ShadowReport).
        vla/status (vla_cache_interfaces/GuardStatus): commands.
        <node>/heartbeat (vla_cache_interfaces/Heartbeat), for each of `heartbeat_nodes`.
        sim_bridge/time_reference (sensor_msgs/TimeReference): capture times on CLOCK_MONOTONIC;
            without it an image's age at receipt, by the policy node's clock, is used.
    Publishes:
        /diagnostics (diagnostic_msgs/DiagnosticArray).
    """

    def __init__(self, node_name: str = 'monitor', **node_arguments: Any) -> None:
        """Start watching.

        Args:
            node_name: Name of the node.
            **node_arguments: Passed on to rclpy's Node.

        Raises:
            ConfigError: A parameter is out of its range.
        """
        super().__init__(node_name, **node_arguments)
        self._settings = declare(self, MonitorParameters)
        self._diagnostics = Diagnostics(
            self.get_namespace(),
            self._settings.deadline_ms,
            self._settings.stale_after_s,
            self._settings.heartbeat_timeout_s,
        )
        self._guard_counts: dict[str, int] = {}
        self._beats: dict[str, tuple[str, int]] = {}  # node -> state, CLOCK_MONOTONIC at receipt
        self.clear()

        self._publisher = qos.publish(self, DiagnosticArray, '/diagnostics', qos.report())
        self._time_references = qos.subscribe(
            self,
            TimeReference,
            'sim_bridge/time_reference',
            self._on_time_reference,
            qos.report(),
        )
        self._inputs = [
            self._time_references,
            qos.subscribe(
                self, StepReport, 'policy_node/step_report', self._on_step, qos.report()
            ),
            qos.subscribe(self, GuardStatus, 'vla/status', self._on_status, qos.report()),
        ]
        qos.subscribe(
            self, ShadowReport, 'policy_node/shadow_report', self._on_shadow, qos.report()
        )
        for name in self._settings.heartbeat_nodes:
            qos.subscribe(
                self,
                Heartbeat,
                f'{name}/heartbeat',
                partial(self._on_heartbeat, name),
                qos.heartbeat(),
            )
        steady_timer(self, self._settings.publish_period_s, self._publish)

    def unconnected(self) -> list[str]:
        """Topics of an episode that nobody publishes yet."""
        return qos.unconnected([], self._inputs)

    def clear(self) -> None:
        """Forget all figures, for a new run."""
        window = self._settings.window
        self._latency: dict[str, LatencyWindow] = {}
        self._refresh_rate = RateMeter(window)
        self._command_rate = RateMeter(window)
        self._null_commands = 0
        self._deadline_misses = 0
        self._drops: Counter[str] = Counter()
        self._guard_before: dict[str, int] = dict(self._guard_counts)
        self._late_refreshes = 0
        self._degradations: Counter[str] = Counter()
        self._last_step: PolicyStep | None = None
        self._last_command: CommandReport | None = None
        self._last_drop = ''
        self._last_shadow: ShadowResult | None = None
        self._shadow_alarms = 0
        self._captured_ns = Recent()
        self._steps = Recent()
        self._first_commands = Recent()

    def snapshot(self) -> Snapshot:
        """Take the figures as they are now."""
        now_ns = time.monotonic_ns()
        summaries = {name: window.summary() for name, window in self._latency.items()}
        return Snapshot(
            latency={name: summary for name, summary in summaries.items() if summary is not None},
            refresh_hz=self._refresh_rate.hz(now_ns),
            command_hz=self._command_rate.hz(now_ns),
            steps=self._refresh_rate.ticks,
            commands=self._command_rate.ticks,
            null_commands=self._null_commands,
            deadline_misses=self._deadline_misses,
            late_refreshes=self._late_refreshes,
            drops=dict(self._drops),
            guard={
                reason: count - self._guard_before.get(reason, 0)
                for reason, count in self._guard_counts.items()
                if count > self._guard_before.get(reason, 0)
            },
            degradations=dict(self._degradations),
            last_step=self._last_step,
            last_command=self._last_command,
            last_drop=self._last_drop,
            last_shadow=self._last_shadow,
            shadow_alarms=self._shadow_alarms,
            nodes={name: self._health(name, now_ns) for name in self._settings.heartbeat_nodes},
        )

    def _health(self, name: str, now_ns: int) -> NodeHealth:
        if name not in self._beats:
            return NodeHealth()
        state, heard_ns = self._beats[name]
        return NodeHealth(state, (now_ns - heard_ns) / 1e9)

    def samples(self, name: str) -> tuple[float, ...]:
        """The latencies behind a snapshot's percentiles, oldest first, milliseconds."""
        return self._latency[name].values if name in self._latency else ()

    # Inputs

    def _on_time_reference(self, message: TimeReference) -> None:
        if message.source == 'CLOCK_MONOTONIC':
            stamp_ns = stamp_to_ns(message.header.stamp)
            self._captured_ns[stamp_ns] = stamp_to_ns(message.time_ref)
            self._join(stamp_ns)

    def _on_step(self, message: StepReport) -> None:
        if message.dropped:
            self._drop(message.dropped, message.detail)
            return
        try:
            step = message_to_step(message)
        except ObservationError as error:
            self._drop('bad_report', f'step report: {error}')
            return
        self._last_step = step
        self._late_refreshes += step.deadline_missed
        self._refresh_rate.tick(step.published_ns)
        self._add('queue', step.queue_ms)
        for name, value_ms in step.stage_ms.items():
            self._add(name, value_ms)
        self._add('inference', step.inference_ms)
        self._add('publish', step.publish_ms)
        self._steps[step.stamp_ns] = step
        self._join(step.stamp_ns)

    def _on_status(self, message: GuardStatus) -> None:
        try:
            command = message_to_guard(message)
        except ObservationError as error:
            self._drop('bad_report', f'guard status: {error}')
            return
        self._last_command = command
        self._command_rate.tick(command.published_ns)
        self._guard_counts = dict(command.counts)
        self._null_commands += command.is_null
        self._degradations[command.degradation] += 1
        if command.index == 0 and command.image_stamp_ns is not None:
            self._first_commands[command.image_stamp_ns] = command.published_ns
            self._join(command.image_stamp_ns)

    def _on_shadow(self, message: ShadowReport) -> None:
        try:
            self._last_shadow = message_to_shadow(message)
        except ObservationError as error:
            self._drop('bad_report', f'shadow report: {error}')
            return
        self._shadow_alarms += self._last_shadow.alarm

    def _on_heartbeat(self, name: str, message: Heartbeat) -> None:
        self._beats[name] = (message.state, time.monotonic_ns())

    def _drop(self, reason: str, detail: str) -> None:
        """Count what was not used; a sender that invents reasons fills no memory."""
        known = reason in self._drops or len(self._drops) < MAX_NAMES
        self._drops[reason if known else 'other'] += 1
        self._last_drop = detail[:_DETAIL_LENGTH]

    def _join(self, stamp_ns: int) -> None:
        """Take a step's latency once its parts are there: topics keep no order among them."""
        if stamp_ns not in self._steps or stamp_ns not in self._first_commands:
            return
        if stamp_ns not in self._captured_ns and self._time_references.get_publisher_count():
            return
        step = self._steps.pop(stamp_ns)
        commanded_ns = self._first_commands.pop(stamp_ns)
        captured_ns = self._captured_ns.pop(stamp_ns, step.received_ns - round(1e6 * step.age_ms))
        latency_ms = (commanded_ns - captured_ns) / 1e6
        self._add('transport', (step.received_ns - captured_ns) / 1e6)
        self._add('image_to_command', latency_ms)
        self._add('overhead', latency_ms - step.inference_ms)
        self._deadline_misses += latency_ms > self._settings.deadline_ms

    def _add(self, name: str, value_ms: float) -> None:
        if name not in self._latency:
            if len(self._latency) >= MAX_NAMES:
                return
            self._latency[name] = LatencyWindow(self._settings.window)
        self._latency[name].add(value_ms)

    def _publish(self) -> None:
        message = DiagnosticArray()
        message.header.stamp = self.get_clock().now().to_msg()
        message.status = self._diagnostics.statuses(self.snapshot(), time.monotonic_ns())
        self._publisher.publish(message)


def main(args: list[str] | None = None) -> int:
    """Run the node on its own."""
    return run_nodes(Monitor, args=args)
