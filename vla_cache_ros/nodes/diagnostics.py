"""Snapshots as /diagnostics: one status per part of the graph, levels as REP 107 means them.

OK: works. WARN: works, with something that ought not to last. ERROR: does not do its work, or
somebody must look. STALE: nothing was heard of it.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from diagnostic_msgs.msg import DiagnosticStatus, KeyValue

from vla_cache_ros.nodes.snapshot import NodeHealth, Snapshot
from vla_cache_ros.nodes.step_messages import ROUTINE_DROPS, PolicyStep

OK, WARN, ERROR, STALE = (
    DiagnosticStatus.OK,
    DiagnosticStatus.WARN,
    DiagnosticStatus.ERROR,
    DiagnosticStatus.STALE,
)


class Diagnostics:
    """Makes the statuses; remembers the counts of the message before, whose growth is the news."""

    def __init__(
        self,
        hardware_id: str,
        deadline_ms: float,
        stale_after_s: float,
        heartbeat_timeout_s: float,
    ) -> None:
        """Start with nothing published.

        Args:
            hardware_id: Which robot it is about.
            deadline_ms: Shown beside the latencies.
            stale_after_s: Silence after which the policy is reported STALE.
            heartbeat_timeout_s: Silence after which a node counts as lost.
        """
        self._hardware_id = hardware_id
        self._deadline_ms = deadline_ms
        self._stale_after_s = stale_after_s
        self._heartbeat_timeout_s = heartbeat_timeout_s
        self._published: Counter[str] = Counter()

    def statuses(self, snapshot: Snapshot, now_ns: int) -> list[DiagnosticStatus]:
        """Judge a snapshot.

        Args:
            snapshot: The figures.
            now_ns: CLOCK_MONOTONIC.
        """
        step = snapshot.last_step
        if step is not None and now_ns - step.published_ns > 1e9 * self._stale_after_s:
            step = None
        statuses = [
            self._policy(snapshot, step),
            self._latency(snapshot, step),
            self._commands(snapshot),
            self._cache(step),
        ]
        if snapshot.last_shadow is not None:
            statuses.append(self._shadow(snapshot))
        if snapshot.nodes:
            statuses.append(self._nodes(snapshot.nodes))
        return statuses

    def _growth(self, name: str, total: int) -> int:
        """Growth of a count since the message before; a new run begins at 0."""
        before, self._published[name] = self._published[name], total
        return total - before if total >= before else total

    def _policy(self, snapshot: Snapshot, step: PolicyStep | None) -> DiagnosticStatus:
        faults = self._growth('faults', snapshot.drops.get('inference_fault', 0))
        drops = self._growth(
            'drops',
            sum(n for reason, n in snapshot.drops.items() if reason not in ROUTINE_DROPS),
        )
        late = self._growth('late', snapshot.late_refreshes)
        if faults:
            level, text = ERROR, f'{faults} faults: {snapshot.last_drop}'
        elif drops:
            level, text = WARN, f'{drops} drops: {snapshot.last_drop}'
        elif step is None:
            level, text = STALE, 'no policy step'
        elif late:
            level, text = WARN, f'{late} late refreshes'
        else:
            level, text = OK, f'{snapshot.refresh_hz:.1f} Hz refresh'
        values = {
            'steps': snapshot.steps,
            'refresh_hz': f'{snapshot.refresh_hz:.2f}',
            'late_refreshes': snapshot.late_refreshes,
        }
        values |= {f'dropped {reason}': count for reason, count in snapshot.drops.items()}
        return self._status('policy', level, text, values)

    def _latency(self, snapshot: Snapshot, step: PolicyStep | None) -> DiagnosticStatus:
        misses = self._growth('misses', snapshot.deadline_misses)
        whole = snapshot.latency.get('image_to_command')
        if misses:
            level, text = WARN, f'{misses} deadline misses'
        elif whole is None or step is None:
            level, text = STALE, 'no latency measured'
        else:
            level, text = OK, f'image to command p50 {whole.p50_ms:.1f} ms'
        values: dict[str, Any] = {
            'deadline_ms': self._deadline_ms,
            'deadline_misses': snapshot.deadline_misses,
        }
        for name, summary in snapshot.latency.items():
            for key, value in asdict(summary).items():
                values[f'{name} {key}'] = value if key == 'count' else f'{value:.3f}'
        return self._status('latency', level, text, values)

    def _commands(self, snapshot: Snapshot) -> DiagnosticStatus:
        commands = self._growth('commands', snapshot.commands)
        nulls = self._growth('nulls', snapshot.null_commands)
        on_chunk = self._growth('on_chunk', snapshot.degradations.get('on_chunk', 0))
        last = snapshot.last_command
        if not commands or last is None:
            level, text = STALE, 'no command'
        elif last.e_stop:
            level, text = ERROR, 'the emergency stop is latched'
        elif nulls == commands:
            level, text = ERROR, 'every command was the null action'
        elif nulls:
            level, text = WARN, f'{nulls} of {commands} were the null action'
        elif on_chunk:
            level, text = WARN, f'{on_chunk} of {commands} ran on because the next chunk is late'
        else:
            level, text = OK, f'{snapshot.command_hz:.1f} Hz commands'
        values: dict[str, Any] = {
            'command_hz': f'{snapshot.command_hz:.2f}',
            'commands': snapshot.commands,
            'null_commands': snapshot.null_commands,
        }
        if last is not None:
            values['dry_run'] = last.dry_run
            text += ', dry run' if last.dry_run and level != STALE else ''
        values |= {f'ran {name}': count for name, count in snapshot.degradations.items()}
        values |= {f'guard {reason}': count for reason, count in snapshot.guard.items()}
        return self._status('commands', level, text, values)

    def _cache(self, step: PolicyStep | None) -> DiagnosticStatus:
        if step is None or not step.mode:
            return self._status('cache', STALE, 'no policy step', {})
        values: dict[str, Any] = {
            'mode': step.mode,
            'recompute_ratio': f'{step.recompute_ratio:.3f}',
            'reuse_pressure': f'{step.reuse_pressure:.2f}',
            'flush_reason': step.flush_reason,
            'keyframe_reason': step.keyframe_reason,
        }
        for camera in step.cameras:
            values[f'reused {camera.name}'] = f'{camera.reused}/{camera.rows * camera.columns}'
            if camera.age_steps.size:
                values[f'age_mean_steps {camera.name}'] = f'{camera.age_steps.mean():.2f}'
                values[f'age_max_steps {camera.name}'] = int(camera.age_steps.max())
        if step.off_reason:
            return self._status('cache', WARN, f'reuse is off: {step.off_reason}', values)
        return self._status('cache', OK, step.mode, values)

    def _shadow(self, snapshot: Snapshot) -> DiagnosticStatus:
        shadow = snapshot.last_shadow
        assert shadow is not None  # the caller checked
        alarms = self._growth('alarms', snapshot.shadow_alarms)
        if shadow.switched_off:
            level, text = ERROR, 'beyond the second budget: the cache is off until reset'
        elif alarms:
            level, text = WARN, f'{alarms} comparisons beyond the budget'
        else:
            level, text = OK, f'mean difference {shadow.mean_difference:.4f}'
        values = {name: value for name, value in asdict(shadow).items() if name != 'stamp_ns'}
        return self._status('shadow', level, text, values | {'alarms': snapshot.shadow_alarms})

    def _nodes(self, nodes: Mapping[str, NodeHealth]) -> DiagnosticStatus:
        lost = [
            name
            for name, node in nodes.items()
            if node.silent_s is not None and node.silent_s > self._heartbeat_timeout_s
        ]
        unheard = [name for name, node in nodes.items() if node.silent_s is None]
        idle = [name for name, node in nodes.items() if node.state != 'active']
        if lost:
            level, text = ERROR, f'no sign of life: {", ".join(lost)}'
        elif unheard:
            level, text = STALE, f'never heard: {", ".join(unheard)}'
        elif idle:
            level, text = WARN, f'not active: {", ".join(idle)}'
        else:
            level, text = OK, f'{len(nodes)} active'
        values = {
            name: 'never heard'
            if node.silent_s is None
            else f'{node.state}, {node.silent_s:.2f} s ago'
            for name, node in nodes.items()
        }
        return self._status('nodes', level, text, values)

    def _status(
        self, name: str, level: bytes, text: str, values: Mapping[str, Any]
    ) -> DiagnosticStatus:
        return DiagnosticStatus(
            level=level,
            name=f'vla_cache: {name}',
            message=text,
            hardware_id=self._hardware_id,
            values=[KeyValue(key=key, value=str(value)) for key, value in values.items()],
        )
