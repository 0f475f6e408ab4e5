"""How evenly the guard sends commands, at 50 to 1000 Hz, alone and on a busy machine.

    python benchmarks/command_jitter.py

The guard has a process of its own and a source of chunks beside it, as on a robot. An interval
runs from one publication of a command to the next (CLOCK_MONOTONIC, taken in the guard):

    jitter = |interval - period|,   missed = sum(round(interval / period) - 1)

Load: one process per core that never sleeps. Writes benchmarks/results/command_jitter.json;
`python benchmarks/make_tables.py` renders it.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

os.environ.setdefault('ROS_AUTOMATIC_DISCOVERY_RANGE', 'LOCALHOST')
os.environ.setdefault('ROS_DOMAIN_ID', str(os.getpid() % 100 + 1))

import numpy as np
import tyro
from node_graph.processes import NodeProcesses, NodeSpec, node_processes
from node_graph.results import merge_result
from node_graph.robot_graph import NODES, EventLog, Observed
from node_graph.verdict import Event

WARM_UP_S = 1.5


@dataclass(frozen=True)
class Options:
    """Command jitter."""

    rates_hz: tuple[float, ...] = (50.0, 100.0, 500.0, 1000.0)
    """Command rates."""
    seconds: float = 20.0
    """Of each measurement."""
    loads: tuple[str, ...] = ('idle', 'busy')
    """Machine: idle, or one process per core that never sleeps."""


def main() -> None:
    """Measure each rate under each load."""
    options = tyro.cli(Options, description=__doc__)
    rows = {}
    for load in options.loads:
        for rate_hz in options.rates_hz:
            with tempfile.TemporaryDirectory() as folder, busy_cores(load == 'busy'):
                label = f'{rate_hz:g} Hz, {load}'
                rows[label] = measure(Path(folder), rate_hz, options.seconds)
            print(label, *(f'{key} {value:.3f}' for key, value in rows[label].items()), flush=True)
    merge_result(
        'command_jitter',
        {'rows': rows},
        options=asdict(options),
        command='python benchmarks/command_jitter.py',
    )


def measure(folder: Path, rate_hz: float, seconds: float) -> dict[str, float]:
    """Run guard and source for a while."""
    with node_processes(folder) as processes:
        observed = _start(processes, rate_hz)
        observed.wait_for_motion()
        time.sleep(WARM_UP_S)
        guard = processes.usage()['command_guard']
        observed.new()
        guard.cpu_percent()
        began_s = time.monotonic()
        time.sleep(seconds)
        share = guard.cpu_percent() / 100
        window_ns = (round(1e9 * began_s), time.monotonic_ns())
        time.sleep(0.5)  # what was sent within the window has arrived by then
        events = EventLog(folder / 'events.jsonl').new()
    return {**jitter(events, 1e3 / rate_hz, window_ns), 'cpu_share': share}


def _start(processes: NodeProcesses, rate_hz: float) -> Observed:
    observed = Observed(processes, topics=('vla/status',))
    rate = {'control_frequency_hz': rate_hz, 'autostart': True}
    steps = {
        'actions_per_chunk': int(rate_hz) // 2,
        'stale_image_timeout_s': 1.0,
        # Two periods of a fast rate are less than the time between two heartbeats.
        'heartbeat_timeout_periods': max(2.0, 0.1 * rate_hz),
    }
    processes.start(NodeSpec('command_guard', f'{NODES}.command_guard', rate | steps))
    processes.start(
        NodeSpec('policy_node', 'stand_ins.py', rate, arguments=('source', '{"motion": 0.1}'))
    )
    return observed


def jitter(events: list[Event], period_ms: float, window_ns: tuple[int, int]) -> dict[str, float]:
    """Evaluate the intervals between the commands of a window.

    Args:
        events: Of which the statuses count.
        period_ms: Wanted interval.
        window_ns: First and last moment, CLOCK_MONOTONIC.

    Returns:
        Percentiles of the jitter in milliseconds, missed periods and their share, nulls.
    """
    low, high = window_ns
    statuses = [e for e in events if e['kind'] == 'status' and low <= e['published_ns'] < high]
    intervals_ms = np.diff([status['published_ns'] for status in statuses]) / 1e6
    error_ms = np.abs(intervals_ms - period_ms)
    p50, p99 = np.percentile(error_ms, (50, 99))
    missed = np.maximum(np.round(intervals_ms / period_ms) - 1, 0).sum()
    return {
        'p50_ms': float(p50),
        'p99_ms': float(p99),
        'max_ms': float(error_ms.max()),
        'missed_periods': int(missed),
        'missed_share': float(missed / (intervals_ms.sum() / period_ms)),
        'sent_hz': float(1e3 / intervals_ms.mean()),
        'null_share': float(np.mean([status['is_null'] for status in statuses])),
    }


@contextmanager
def busy_cores(wanted: bool) -> Iterator[None]:
    """Keep every core busy for the length of the block."""
    spin = [sys.executable, '-c', 'while True: pass']
    count = len(os.sched_getaffinity(0)) if wanted else 0
    busy = [subprocess.Popen(spin) for _ in range(count)]
    try:
        yield
    finally:
        for process in busy:
            process.kill()
            process.wait()


if __name__ == '__main__':
    main()
