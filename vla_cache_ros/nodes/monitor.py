"""Health and figures of the running graph: /diagnostics, percentiles, rates, drops.

The two rates are told apart: how often the policy looks (refresh) and how often the robot is
commanded. All times are wall time, also where simulated time stands still during inference.
"""

import json
import time
from collections import Counter, OrderedDict
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rclpy.node import Node
from sensor_msgs.msg import TimeReference
from std_msgs.msg import String

from vla_cache_ros.core.timing import LatencySummary, LatencyWindow, RateMeter
from vla_cache_ros.nodes import qos
from vla_cache_ros.nodes.conversions import stamp_to_ns
from vla_cache_ros.nodes.parameter_tables.monitor import MonitorParameters
from vla_cache_ros.nodes.parameters import declare
from vla_cache_ros.nodes.running import run_nodes, steady_timer

_KEPT_STEPS = 64
"""Steps kept while the parts of one (capture, step, first command) find one another."""


@dataclass(frozen=True)
class Snapshot:
    """The graph's figures at one moment.

    Attributes:
        latency: Name -> percentiles over the window, milliseconds. 'image_to_command' runs from
            the image's stamp to the first command computed from it, 'overhead' is the part of it
            that is not inference; 'transport', 'queue', the policy's own stages and 'publish'
            are parts of it, too.
        refresh_hz: Policy steps per second.
        command_hz: Commands per second.
        steps: Policy steps since start.
        commands: Commands since start, null actions included.
        null_commands: Null actions since start.
        deadline_misses: Steps whose first command came later than deadline_ms.
        drops: Dropped observations by reason.
        guard: The guard's counts by reason.
        last_step: The newest step report.
    """

    latency: Mapping[str, LatencySummary]
    refresh_hz: float
    command_hz: float
    steps: int
    commands: int
    null_commands: int
    deadline_misses: int
    drops: Mapping[str, int]
    guard: Mapping[str, int]
    last_step: Mapping[str, Any]


class Recent(OrderedDict[int, Any]):
    """A mapping that keeps its newest entries."""

    def __setitem__(self, key: int, value: Any) -> None:
        super().__setitem__(key, value)
        while len(self) > _KEPT_STEPS:
            self.popitem(last=False)


class Monitor(Node):
    """Watches the other nodes.

    Subscribes (relative names, remappable):
        policy_node/step_report, vla/status (std_msgs/String, JSON).
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
        self._guard_counts: dict[str, int] = {}
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
            qos.subscribe(self, String, 'policy_node/step_report', self._on_step, qos.report()),
            qos.subscribe(self, String, 'vla/status', self._on_status, qos.report()),
        ]
        steady_timer(self, self._settings.publish_period_s, self._publish)

    def unconnected(self) -> list[str]:
        """Topics that nobody publishes yet."""
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
        self._last_step: dict[str, Any] = {}
        self._last_drop = ''
        self._captured_ns = Recent()
        self._steps = Recent()
        self._first_commands = Recent()
        self._published: Counter[str] = Counter()

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
            drops=dict(self._drops),
            guard={
                reason: count - self._guard_before.get(reason, 0)
                for reason, count in self._guard_counts.items()
                if count > self._guard_before.get(reason, 0)
            },
            last_step=dict(self._last_step),
        )

    def samples(self, name: str) -> tuple[float, ...]:
        """The latencies behind a snapshot's percentiles, oldest first, milliseconds."""
        return self._latency[name].values if name in self._latency else ()

    # Inputs

    def _on_time_reference(self, message: TimeReference) -> None:
        if message.source == 'CLOCK_MONOTONIC':
            stamp_ns = stamp_to_ns(message.header.stamp)
            self._captured_ns[stamp_ns] = stamp_to_ns(message.time_ref)
            self._join(stamp_ns)

    def _on_step(self, message: String) -> None:
        report = self._parse(message)
        if report is None:
            return
        if 'dropped' in report:
            self._drops[report['dropped']] += 1
            self._last_drop = report['detail']
            return
        self._last_step = report
        self._refresh_rate.tick(report['published_ns'])
        stages = {
            'queue': report['queue_ms'],
            **report.get('stage_ms', {}),
            'inference': report['inference_ms'],
            'publish': report['publish_ms'],
        }
        for name, value_ms in stages.items():
            self._add(name, value_ms)
        self._steps[report['stamp_ns']] = report
        self._join(report['stamp_ns'])

    def _on_status(self, message: String) -> None:
        status = self._parse(message)
        if status is None:
            return
        self._command_rate.tick(status['published_ns'])
        self._guard_counts = status['counts']
        self._null_commands += status['is_null']
        if status['index'] == 0:
            self._first_commands[status['image_stamp_ns']] = status['published_ns']
            self._join(status['image_stamp_ns'])

    def _parse(self, message: String) -> dict[str, Any] | None:
        try:
            content = json.loads(message.data)
        except ValueError:
            content = None
        if isinstance(content, dict):
            return content
        self._drops['bad_report'] += 1
        self._last_drop = f'a report is not a JSON object: {message.data[:80]!r}'
        return None

    def _join(self, stamp_ns: int) -> None:
        """Take a step's latency once its parts are there: topics keep no order among them."""
        if stamp_ns not in self._steps or stamp_ns not in self._first_commands:
            return
        if stamp_ns not in self._captured_ns and self._time_references.get_publisher_count():
            return
        report = self._steps.pop(stamp_ns)
        commanded_ns = self._first_commands.pop(stamp_ns)
        received_ns = report['received_ns']
        captured_ns = self._captured_ns.pop(stamp_ns, received_ns - round(1e6 * report['age_ms']))
        latency_ms = (commanded_ns - captured_ns) / 1e6
        self._add('transport', (received_ns - captured_ns) / 1e6)
        self._add('image_to_command', latency_ms)
        self._add('overhead', latency_ms - report['inference_ms'])
        self._deadline_misses += latency_ms > self._settings.deadline_ms

    def _add(self, name: str, value_ms: float) -> None:
        if name not in self._latency:
            self._latency[name] = LatencyWindow(self._settings.window)
        self._latency[name].add(value_ms)

    # Diagnostics

    def _publish(self) -> None:
        snapshot = self.snapshot()
        message = DiagnosticArray()
        message.header.stamp = self.get_clock().now().to_msg()
        message.status = [
            self._policy_status(snapshot),
            self._latency_status(snapshot),
            self._command_status(snapshot),
            self._cache_status(snapshot),
        ]
        self._publisher.publish(message)

    def _since_last(self, name: str, total: int) -> int:
        """Growth of a count since the message before."""
        growth, self._published[name] = total - self._published[name], total
        return growth

    def _is_silent(self, snapshot: Snapshot) -> bool:
        published_ns = snapshot.last_step.get('published_ns')
        if published_ns is None:
            return True
        return time.monotonic_ns() - published_ns > 1e9 * self._settings.stale_after_s

    def _policy_status(self, snapshot: Snapshot) -> DiagnosticStatus:
        faults = self._since_last('faults', snapshot.drops.get('inference_fault', 0))
        drops = self._since_last('drops', sum(snapshot.drops.values()))
        if faults:
            level, text = DiagnosticStatus.ERROR, f'{faults} faults: {self._last_drop}'
        elif drops:
            level, text = DiagnosticStatus.WARN, f'{drops} drops: {self._last_drop}'
        elif self._is_silent(snapshot):
            level, text = DiagnosticStatus.STALE, 'no policy step'
        else:
            level, text = DiagnosticStatus.OK, f'{snapshot.refresh_hz:.1f} Hz refresh'
        values = {'steps': snapshot.steps, 'refresh_hz': f'{snapshot.refresh_hz:.2f}'}
        values |= {f'dropped {reason}': count for reason, count in snapshot.drops.items()}
        return self._status('policy', level, text, values)

    def _latency_status(self, snapshot: Snapshot) -> DiagnosticStatus:
        misses = self._since_last('misses', snapshot.deadline_misses)
        whole = snapshot.latency.get('image_to_command')
        if misses:
            level, text = DiagnosticStatus.WARN, f'{misses} deadline misses'
        elif whole is None or self._is_silent(snapshot):
            level, text = DiagnosticStatus.STALE, 'no latency measured'
        else:
            level, text = DiagnosticStatus.OK, f'image to command p50 {whole.p50_ms:.1f} ms'
        values: dict[str, Any] = {
            'deadline_ms': self._settings.deadline_ms,
            'deadline_misses': snapshot.deadline_misses,
        }
        for name, summary in snapshot.latency.items():
            for key, value in asdict(summary).items():
                values[f'{name} {key}'] = value if key == 'count' else f'{value:.3f}'
        return self._status('latency', level, text, values)

    def _command_status(self, snapshot: Snapshot) -> DiagnosticStatus:
        commands = self._since_last('commands', snapshot.commands)
        nulls = self._since_last('nulls', snapshot.null_commands)
        if not commands:
            level, text = DiagnosticStatus.STALE, 'no command'
        elif nulls == commands:
            level, text = DiagnosticStatus.ERROR, 'every command was the null action'
        elif nulls:
            level, text = DiagnosticStatus.WARN, f'{nulls} of {commands} were the null action'
        else:
            level, text = DiagnosticStatus.OK, f'{snapshot.command_hz:.1f} Hz commands'
        values = {
            'command_hz': f'{snapshot.command_hz:.2f}',
            'commands': snapshot.commands,
            'null_commands': snapshot.null_commands,
        }
        values |= {f'guard {reason}': count for reason, count in snapshot.guard.items()}
        return self._status('commands', level, text, values)

    def _cache_status(self, snapshot: Snapshot) -> DiagnosticStatus:
        step = snapshot.last_step
        if 'mode' not in step or self._is_silent(snapshot):
            return self._status('cache', DiagnosticStatus.STALE, 'no policy step', {})
        values = {
            'mode': step['mode'],
            'recompute_ratio': f'{step["recompute_ratio"]:.3f}',
            'age_mean_steps': f'{step["age_mean"]:.2f}',
            'age_max_steps': step['age_max'],
            'flush_reason': step['flush_reason'],
            'keyframe_reason': step['keyframe_reason'],
        }
        values |= {
            f'reused {camera}': f'{count}/{step["tokens"][camera]}'
            for camera, count in step['reused'].items()
        }
        return self._status('cache', DiagnosticStatus.OK, step['mode'], values)

    def _status(
        self, name: str, level: bytes, text: str, values: Mapping[str, Any]
    ) -> DiagnosticStatus:
        return DiagnosticStatus(
            level=level,
            name=f'vla_cache: {name}',
            message=text,
            hardware_id=self.get_namespace(),
            values=[KeyValue(key=key, value=str(value)) for key, value in values.items()],
        )


def main(args: list[str] | None = None) -> int:
    """Run the node on its own."""
    return run_nodes(Monitor, args=args)
