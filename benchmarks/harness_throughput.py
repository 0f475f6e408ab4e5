"""Episodes per hour against worker processes, and what the harness itself costs per control step.

    python benchmarks/harness_throughput.py --init-states 0-3

Each count of workers runs the same episodes once, from nothing. Counts that the result has already
are not run again unless --again is given, so an interrupted benchmark goes on. Writes
benchmarks/results/harness_throughput.json; `python benchmarks/make_tables.py` renders it.
"""

import contextlib
import datetime
import json
import sqlite3
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from closed_loop import RESULTS, provenance, run_grid, write_result
from tyro.conf import Positional

from vla_cache_ros.cli.evaluate import EvaluateConfig
from vla_cache_ros.cli.tasks import parse_indices
from vla_cache_ros.evaluation.episode import EpisodeRow
from vla_cache_ros.evaluation.store import FILE
from vla_cache_ros.evaluation.summary import success_rate

NAME = 'harness_throughput'
MOST_WORKERS = 1000


@dataclass(frozen=True)
class Options(EvaluateConfig):
    """Episodes per hour."""

    tasks: Positional[str] = 'libero_object/0,libero_object/1,libero_object/2,libero_object/3'
    init_states: str = '0-3'
    cache: str = 'off'
    videos: int = 0
    counts: str = '1-2,4'
    """Worker processes to try."""
    again: bool = False
    """Measure counts again that the result has already."""


def measure(options: EvaluateConfig, workers: int) -> dict[str, Any]:
    """Run the episodes once with so many workers."""
    with tempfile.TemporaryDirectory(prefix='throughput-') as folder:
        out = Path(folder)
        begin = time.time()
        rows = run_grid(replace(options, workers=workers, out=out))
        finished = finished_s(out / FILE)  # the report that follows is no part of it
        return summarise_run(rows, finished, finished[-1] - begin, workers)


def finished_s(database: Path) -> list[float]:
    """When each episode was finished, seconds, ascending."""
    with contextlib.closing(sqlite3.connect(database)) as connection:
        stamps = connection.execute('SELECT finished_utc FROM episodes ORDER BY finished_utc')
        return [
            datetime.datetime.fromisoformat(stamp.replace('Z', '+00:00')).timestamp()
            for (stamp,) in stamps
        ]


def summarise_run(
    rows: Sequence[EpisodeRow], finished: Sequence[float], wall_s: float, workers: int
) -> dict[str, Any]:
    """Rates and shares of one run.

    Args:
        rows: Its episodes.
        finished: When each was finished, seconds, ascending.
        wall_s: From the start of the command to the last episode's end.
        workers: How many processes ran them.
    """
    judged = [row for row in rows if row.judged]
    steps = sum(row.steps for row in judged)
    episode_s = sum(row.wall_s for row in judged)
    harness_s = sum(row.overhead_ms * row.steps for row in judged) / 1e3
    policy_s = sum(step.step_ms for row in judged for step in row.trace) / 1e3
    # The first of each worker waits for imports, weights and the simulator to be built.
    steady = finished[workers - 1 :]
    between_s = steady[-1] - steady[0] if len(steady) > 1 else 0.0
    return {
        'workers': workers,
        'episodes': len(judged),
        'successes': success_rate(rows).successes,
        'control_steps': steps,
        'wall_s': wall_s,
        'episodes_per_hour': 3600 * len(judged) / wall_s,
        'steady_episodes_per_hour': 3600 * (len(steady) - 1) / between_s if between_s else None,
        'control_steps_per_s': steps / wall_s,
        'overhead_ms': float(np.median([row.overhead_ms for row in judged])),
        'overhead_ms_p95': float(np.percentile([row.overhead_ms for row in judged], 95)),
        'harness_share': harness_s / episode_s,
        'policy_share': policy_s / episode_s,
    }


def main() -> None:
    """Measure what is missing, and write after each count of workers."""
    options = tyro.cli(Options, description=__doc__)
    path = RESULTS / f'{NAME}.json'
    runs: dict[str, Any] = {}
    if path.exists() and not options.again:
        runs = json.loads(path.read_text(encoding='utf-8'))['runs']
    for workers in parse_indices(options.counts, MOST_WORKERS):
        if workers and str(workers) not in runs:
            runs[str(workers)] = measure(options, workers)
            write_result(NAME, {**provenance(options, f'{NAME}.py'), 'runs': runs})


if __name__ == '__main__':
    main()
