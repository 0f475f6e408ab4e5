"""Episodes in closed loop for the benchmarks, run and kept as `vla-cache eval` does.

An interrupted benchmark goes on when it is started again, and its folder can be extended by arms,
tasks, initial states and conditions.
"""

import json
import os
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

os.environ.setdefault('MUJOCO_GL', 'egl')  # read once, at the simulator's import

from vla_cache_ros.cli.evaluate import EvaluateConfig, episode_grid, run_evaluate
from vla_cache_ros.cli.report.machine import describe_machine, describe_versions
from vla_cache_ros.evaluation.episode import EpisodeRow
from vla_cache_ros.evaluation.runner import failed_row
from vla_cache_ros.evaluation.store import EpisodeStore

RESULTS = Path(__file__).parent / 'results'
IMAGES = Path(__file__).parents[1] / 'docs' / 'images'
TASKS = 'libero_object/*,libero_spatial/2'
"""Those that the weights of the package were trained for."""


def run_grid(config: EvaluateConfig) -> list[EpisodeRow]:
    """Run the episodes that the folder does not hold yet.

    Returns:
        A row per episode; the simulator's failures are rows, too.

    Raises:
        SystemExit: It was stopped, and the same command goes on; or it was a dry run.
    """
    status = run_evaluate(config)
    if config.dry_run:
        sys.exit(status)
    specs = episode_grid(config)
    with EpisodeStore.read(config.out) as store:
        found = {row.spec: row for row in store.rows(specs)}
        failed = {attempt.spec: attempt.note for attempt in store.attempts()}
    if missing := [spec for spec in specs if spec not in found and spec not in failed]:
        sys.exit(f'{len(missing)} episodes were not run; start the same command again.')
    return [found.get(spec) or failed_row(spec, failed[spec]) for spec in specs]


def provenance(config: EvaluateConfig, script: str) -> dict[str, Any]:
    """The command that made a result, what it ran, and on what."""
    return {
        'command': f'python benchmarks/{script} {shlex.join(sys.argv[1:])}'.strip(),
        'tasks': config.tasks,
        'init_states': config.init_states,
        'workers': config.workers or os.cpu_count() or 1,
        'backend': config.backend,
        'divergence': config.divergence,
        'margin': config.margin,
        'machine': describe_machine(),
        'versions': describe_versions(),
    }


def write_result(name: str, result: Mapping[str, Any]) -> None:
    """Keep a result where make_tables finds it."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f'{name}.json'
    path.write_text(json.dumps(result, indent=2, allow_nan=False) + '\n', encoding='utf-8')
    print(f'wrote {path}')
