"""Faults injected into the running graph: what the arm did, how soon, and what came of it.

    python benchmarks/faults.py --repeats 5

A process per node, as on a robot; LIBERO in realtime behind the fault injector, or stand-ins.
Every fault begins at a random phase and is judged by the message stream alone
(node_graph/verdict.py). Writes benchmarks/results/faults.json; `python benchmarks/make_tables.py`
renders it.
"""

import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

os.environ.setdefault('ROS_AUTOMATIC_DISCOVERY_RANGE', 'LOCALHOST')
os.environ.setdefault('ROS_DOMAIN_ID', str(os.getpid() % 100 + 1))
os.environ.setdefault('MUJOCO_GL', 'egl')

import tyro
from node_graph.faults import (
    GUARD_CASES,
    INPUT_CASES,
    INSTRUCTION_CASE,
    NO_FAULT,
    POLICY_CASES,
    Case,
    FaultRun,
    cut_off,
    recorder_cases,
    with_nan_weights,
)
from node_graph.partition import RelayPartition, namespaces
from node_graph.processes import NodeSpec, node_processes
from node_graph.results import merge_result
from node_graph.robot_graph import RobotGraph

Row = dict[str, Any]


@dataclass(frozen=True)
class Options:
    """Faults."""

    repeats: int = 5
    """How often each fault is injected."""
    only: str = ''
    """Cases whose name holds this."""
    suite: str = 'libero_object'
    """LIBERO's suite."""
    stand_in: bool = False
    """A simulator and a policy that cost nothing instead."""
    seed: int = 0
    """Of the phases."""
    out: Path = Path('runs/faults')
    """Logs, events, recordings."""


def main() -> None:
    """Inject every fault, and merge what was seen into the result."""
    options = tyro.cli(Options, description=__doc__)
    shutil.rmtree(options.out, ignore_errors=True)
    graph = RobotGraph(
        faults=(options.out / 'faults').resolve(),
        stand_in={} if options.stand_in else None,
        suite=options.suite,
    )
    rows = {**robot_rows(options, graph), **partition_rows(options, graph)}
    merge_result(
        'faults',
        {'faults': rows},
        options={key: str(value) for key, value in asdict(options).items()},
        period_ms=graph.period_ms,
        limit_ms=graph.limit_ms,
        command='python benchmarks/faults.py' + (' --stand-in' if options.stand_in else ''),
    )


def robot_rows(options: Options, graph: RobotGraph) -> dict[str, Row]:
    """Every fault but the network's."""
    graph = replace(graph, recordings=(options.out / 'recordings').resolve())
    cases = [NO_FAULT, *INPUT_CASES, INSTRUCTION_CASE, *POLICY_CASES, *GUARD_CASES]
    if not options.stand_in:
        cases.append(with_nan_weights(options.out.resolve() / 'nan_checkpoint'))
    cases += recorder_cases(graph)
    return inject(options, graph, cases, options.out / 'robot')


def partition_rows(options: Options, graph: RobotGraph) -> dict[str, Row]:
    """The network cut, by namespaces where they are permitted."""
    if options.only not in 'network partition':
        return {}
    folder = options.out / 'partition'
    with namespaces() as partition:
        if partition is not None:
            return inject(options, graph, [cut_off(partition)], folder, partition.place)
    with node_processes(folder / 'relay') as processes:
        relay = RelayPartition(processes)
        return inject(options, graph, [cut_off(relay)], folder, relay.place)


def inject(
    options: Options,
    graph: RobotGraph,
    cases: Sequence[Case],
    folder: Path,
    place: Callable[[NodeSpec], NodeSpec] = lambda spec: spec,
) -> dict[str, Row]:
    """Inject each case several times on one graph."""
    wanted = [case for case in cases if options.only in case.name]
    rows: dict[str, Row] = {}
    if not wanted:
        return rows
    with node_processes(folder) as processes:
        run = FaultRun(graph, processes, options.seed, place)
        for case in wanted:
            began_s = time.monotonic()
            seen = [run.suffer(case) for _ in range(options.repeats)]
            rows[case.name] = combine(seen)
            print(
                f'{time.monotonic() - began_s:5.1f} s  {case.name}: {rows[case.name]}', flush=True
            )
    return rows


def combine(seen: Sequence[Row]) -> Row:
    """One row of several injections: the worst of everything, and all recovery times."""
    first = seen[0]
    reasons: Counter[str] = Counter()
    for row in seen:
        reasons.update(row['reasons'])
    times = ('first_null_ms', 'first_flag_ms', 'first_zero_ms', 'moving_ms', 'recovery_ms')
    worst = {key: _range([row[key] for row in seen]) for key in times}
    sums = {
        key: sum(row[key] for row in seen)
        for key in ('too_old', 'repeated', 'not_finite', 'commands', 'nulls')
    }
    notes = sorted({row['note'] for row in seen if row.get('note')})
    return {
        'injections': len(seen),
        'due': first['due'],
        'due_ms': first['due_ms'],
        'kept': sum(row['kept'] for row in seen),
        **worst,
        **sums,
        'oldest_ms': max(row['oldest_ms'] for row in seen),
        'reasons': dict(reasons),
        'note': '; '.join(notes),
    }


def _range(values: Sequence[float | None]) -> dict[str, float] | None:
    """Median and greatest of those that there are."""
    there = sorted(value for value in values if value is not None)
    if not there:
        return None
    return {'count': len(there), 'p50': there[len(there) // 2], 'max': there[-1]}


if __name__ == '__main__':
    main()
