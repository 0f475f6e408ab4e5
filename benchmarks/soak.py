"""A long run in the loop: memory, files, threads, latency, and what became of every frame.

    python benchmarks/soak.py --minutes 60

A process per node, LIBERO in realtime, one episode after another, as long as told. Everything is
written to --out while it runs; `--summarise` makes the result of what lies there, so a run that
was cut short still says what it saw. Writes benchmarks/results/soak.json and
docs/images/soak.png; `python benchmarks/make_tables.py` renders them.
"""

import json
import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault('ROS_AUTOMATIC_DISCOVERY_RANGE', 'LOCALHOST')
os.environ.setdefault('ROS_DOMAIN_ID', str(os.getpid() % 100 + 1))

import numpy as np
import psutil
import tyro
from node_graph.accounting import Accounts, growth
from node_graph.loop import soak_nodes
from node_graph.processes import NodeProcesses, node_processes
from node_graph.robot_graph import EventLog, Observed

from vla_cache_ros.cli.report.machine import describe_machine, describe_versions

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / 'benchmarks' / 'results'
IMAGES = ROOT / 'docs' / 'images'
FIGURES = ('rss_mib', 'files', 'threads')
WINDOWS = 6
"""Parts of the run whose latencies are compared: 10 minutes each in an hour."""


@dataclass(frozen=True)
class Options:
    """Soak."""

    minutes: float = 60.0
    """How long the graph runs."""
    warm_up_minutes: float = 10.0
    """Growth is counted from here on; at most a sixth of the run."""
    sample_s: float = 10.0
    """Between two samples of memory, files and threads."""
    tasks: int = 10
    """Tasks of the suite that take turns."""
    init_states: int = 50
    """Initial states of each that take turns."""
    suite: str = 'libero_object'
    """LIBERO's suite."""
    stand_in: bool = False
    """A simulator and a policy that cost nothing instead."""
    out: Path = Path('runs/soak')
    """Logs, samples and events."""
    summarise: bool = False
    """Run nothing: make the result of what --out holds."""
    name: str = 'soak'
    """The result's name."""


def main() -> None:
    """Run, then write result and picture."""
    options = tyro.cli(Options, description=__doc__)
    if not options.summarise:
        run(options)
    result = summarise(options)
    path = RESULTS / f'{options.name}.json'
    path.write_text(json.dumps(result, indent=2) + '\n', encoding='utf-8')
    draw(options, IMAGES / f'{options.name}.png')
    print(json.dumps(result['growth'], indent=2))
    print(json.dumps(result['frames'], indent=2))
    print(f'wrote {path.relative_to(ROOT)}')


def run(options: Options) -> None:
    """Keep the graph running, and sample it."""
    options.out.mkdir(parents=True, exist_ok=True)
    samples_path = options.out / 'samples.jsonl'
    for path in (samples_path, *options.out.glob('*.log')):
        path.unlink(missing_ok=True)
    with node_processes(options.out) as processes, samples_path.open('a') as file:
        observed = Observed(processes)
        for spec in soak_nodes(options.out, options.suite, options.stand_in):
            processes.start(spec)
        episodes = _Episodes(options, observed)
        began_s = time.monotonic()
        next_sample_s = 0.0
        accounts = Accounts()
        restarts = 0
        while (at_s := time.monotonic() - began_s) < 60 * options.minutes:
            for event in observed.new():
                accounts.add(event)
                episodes.watch(event)
            for name, status in processes.ended().items():
                print(f'{at_s:6.0f} s: {name} ended with {status}')
                restarts += 1
                processes.forget(name)
            if at_s >= next_sample_s:
                next_sample_s += options.sample_s
                rows = _samples(processes, at_s, restarts)
                file.writelines(json.dumps(row) + '\n' for row in rows)
                file.flush()
                _print(at_s, rows, accounts)
            time.sleep(0.1)


class _Episodes:
    """Begins the next episode when one has ended."""

    def __init__(self, options: Options, observed: Observed) -> None:
        self._options = options
        self._observed = observed
        self._begun = 0

    def watch(self, event: Mapping[str, Any]) -> None:
        """Begin the first one once the simulator is active, each other at an end."""
        is_active = event['kind'] == 'state' and event['state'] == 'active'
        is_first = is_active and event['node'] == 'sim_bridge' and not self._begun
        if is_first or (event['kind'] == 'episode' and event['event'] == 'end'):
            self._begin()

    def _begin(self) -> None:
        task = self._begun % self._options.tasks
        init_state = self._begun // self._options.tasks % self._options.init_states
        self._begun += 1
        self._observed.order(episode=[task, init_state])


def _samples(processes: NodeProcesses, at_s: float, restarts: int) -> list[dict[str, Any]]:
    rows = []
    for name, process in processes.usage().items():
        try:
            rows.append(
                {
                    'at_s': at_s,
                    'node': name,
                    'rss_mib': process.memory_info().rss / 2**20,
                    'files': process.num_fds(),
                    'threads': process.num_threads(),
                    'cpu_s': sum(process.cpu_times()[:2]),
                    'monotonic_s': time.monotonic(),
                    'restarts': restarts,
                }
            )
        except psutil.NoSuchProcess:
            continue  # it ended between the two calls; the loop says so
    return rows


def _print(at_s: float, rows: list[dict[str, Any]], accounts: Accounts) -> None:
    memory = '  '.join(f'{row["node"]} {row["rss_mib"]:.0f}' for row in rows)
    frames = accounts.frames()
    print(
        f'{at_s:6.0f} s  MiB: {memory}  frames {frames["processed"]}/{frames["sent"]}, lost '
        f'{frames["lost_in_transport"]}  episodes {sum(accounts.episodes.values())}',
        flush=True,
    )


def summarise(options: Options) -> dict[str, Any]:
    """Make the result of what a run has written."""
    samples, accounts = _load(options.out)
    minutes = samples[-1]['at_s'] / 60
    from_s = min(60 * options.warm_up_minutes, samples[-1]['at_s'] / 6)
    nodes = {row['node']: [] for row in samples}
    for row in samples:
        nodes[row['node']].append(row)
    return {
        'options': {key: str(value) for key, value in asdict(options).items()},
        'minutes': minutes,
        'growth_from_minute': from_s / 60,
        'growth': {
            node: {
                **{key: growth(rows, key, from_s) for key in FIGURES},
                'cpu_share': _cpu_share(rows),
            }
            for node, rows in nodes.items()
            if node != 'observer'
        },
        'latency': _latency_windows(accounts, samples),
        'frames': accounts.frames(),
        'episodes': dict(accounts.episodes),
        'null_actions': dict(accounts.nulls),
        'commands': sum(accounts.nulls.values()) + accounts.passed,
        'restarts': samples[-1]['restarts'],
        'image': f'{options.name}.png',
        'machine': describe_machine(),
        'versions': describe_versions(),
        'command': f'python benchmarks/soak.py --minutes {options.minutes:g}'
        + (' --stand-in' if options.stand_in else ''),
    }


def _load(folder: Path) -> tuple[list[dict[str, Any]], Accounts]:
    lines = (folder / 'samples.jsonl').read_text(encoding='utf-8').splitlines()
    accounts = Accounts()
    for event in EventLog(folder / 'events.jsonl').new():
        accounts.add(event)
    return [json.loads(line) for line in lines], accounts


def _cpu_share(rows: list[dict[str, Any]]) -> float:
    first, last = rows[0], rows[-1]
    return (last['cpu_s'] - first['cpu_s']) / max(1e-9, last['at_s'] - first['at_s'])


def _latency_windows(accounts: Accounts, samples: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Image-to-command times of each sixth of the run."""
    times = accounts.latencies_ms()
    began_s = samples[0]['monotonic_s'] - samples[0]['at_s']
    edges_s = np.linspace(0, samples[-1]['at_s'], WINDOWS + 1)
    windows = []
    for low, high in zip(edges_s, edges_s[1:], strict=False):
        at_s = times[:, 0] - began_s
        inside = times[(at_s >= low) & (at_s < high), 1]
        if len(inside):
            p50, p99 = np.percentile(inside, (50, 99))
            windows.append(
                {
                    'from_minute': low / 60,
                    'to_minute': high / 60,
                    'count': len(inside),
                    'p50_ms': float(p50),
                    'p99_ms': float(p99),
                    'max_ms': float(inside.max()),
                }
            )
    return windows


def draw(options: Options, path: Path) -> None:
    """Memory and p99 over time."""
    import matplotlib as mpl

    mpl.use('agg')
    import matplotlib.pyplot as plt

    samples, accounts = _load(options.out)
    figure, (memory, latency) = plt.subplots(2, 1, sharex=True, figsize=(8, 6))
    for node in dict.fromkeys(row['node'] for row in samples if row['node'] != 'observer'):
        rows = [row for row in samples if row['node'] == node]
        minutes = [row['at_s'] / 60 for row in rows]
        memory.plot(minutes, [row['rss_mib'] for row in rows], label=node)
    memory.set(ylabel='resident memory, MiB', ylim=(0, None))
    memory.legend(loc='center right', fontsize='small')
    began_s = samples[0]['monotonic_s'] - samples[0]['at_s']
    times = accounts.latencies_ms()
    window_s = max(10.0, samples[-1]['at_s'] / 60)
    edges_s = np.arange(0, samples[-1]['at_s'] + window_s, window_s)
    for quantile in (50, 99):
        points = []
        for low, high in zip(edges_s, edges_s[1:], strict=False):
            at_s = times[:, 0] - began_s
            inside = times[(at_s >= low) & (at_s < high), 1]
            if len(inside):
                points.append(((low + high) / 120, np.percentile(inside, quantile)))
        if points:
            latency.plot(*zip(*points, strict=True), label=f'p{quantile}')
    latency.set(ylabel='image to command, ms', xlabel='minutes', ylim=(0, None))
    latency.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=110)


if __name__ == '__main__':
    main()
