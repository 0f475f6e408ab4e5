"""Episodes in closed loop for the benchmarks: which, run by whom, kept where.

Rows live in a folder as `vla-cache eval` keeps them, so an interrupted benchmark goes on, and a
folder may be extended by arms, tasks and initial states.
"""

import json
import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

os.environ.setdefault('MUJOCO_GL', 'egl')  # read once, at the simulator's import

from vla_cache_ros.cli.checkpoints import CheckpointPolicies, PolicyOptions
from vla_cache_ros.cli.environments import make_libero
from vla_cache_ros.cli.progress import Progress
from vla_cache_ros.cli.report.machine import describe_machine, describe_versions
from vla_cache_ros.cli.tasks import parse_indices, parse_tasks
from vla_cache_ros.evaluation.arms import parse_arm
from vla_cache_ros.evaluation.crew import LocalCrew
from vla_cache_ros.evaluation.episode import UNDISTURBED, EpisodeRow, EpisodeSpec
from vla_cache_ros.evaluation.evaluate import evaluate
from vla_cache_ros.evaluation.runner import Job
from vla_cache_ros.evaluation.store import EpisodeStore
from vla_cache_ros.evaluation.summary import DEFAULT_MARGIN

RESULTS = Path(__file__).parent / 'results'
IMAGES = Path(__file__).parents[1] / 'docs' / 'images'
INITIAL_STATES = 50
"""Official ones per task of LIBERO."""


@dataclass(frozen=True)
class ClosedLoopOptions(PolicyOptions):
    """Which episodes, and who runs them."""

    tasks: str = 'libero_object/*,libero_spatial/2'
    """Comma-separated tasks; libero_object/* stands for all of a suite."""
    init_states: str = '0-19'
    """Official initial states per task: 0-19 or 0,3,7."""
    workers: int = 0
    """Worker processes of one thread each; 0 takes one per core."""
    margin: float = DEFAULT_MARGIN
    """Loss of success that non-inferiority tolerates, as a share."""

    @property
    def crew_size(self) -> int:
        """The number of workers."""
        return self.workers or len(os.sched_getaffinity(0))


def run_grid(
    options: ClosedLoopOptions,
    folder: Path,
    arms: Sequence[str],
    conditions: Sequence[str] = (UNDISTURBED,),
    divergence: bool = True,
) -> list[EpisodeRow]:
    """Run the episodes that the folder does not hold.

    Args:
        options: Policy, tasks, initial states and workers.
        folder: Holds the rows.
        arms: As `parse_arm` reads them; they share every initial state.
        conditions: What disturbs the episodes.
        divergence: Whether cached chunks are compared with dense ones, which takes a dense step
            per cached one (outside the times) and warms other memory.

    Returns:
        A row per episode.
    """
    presets = list(dict.fromkeys(parse_arm(arm).preset for arm in arms))
    policies = _policies(options, presets)
    for preset in presets:
        policies.prepare(preset)
    fingerprints = {preset: policies.fingerprint(preset) for preset in presets}
    specs = [
        EpisodeSpec(name.suite, name.task, init_state, arm, condition=condition)
        for name in parse_tasks(options.tasks)
        for init_state in parse_indices(options.init_states, INITIAL_STATES)
        for condition in conditions
        for arm in arms
    ]
    settings = {'divergence': divergence} | {
        f'weights.{preset}': name for preset, name in fingerprints.items()
    }
    with EpisodeStore.open(folder, settings) as store:
        missing = len(set(specs) - store.finished())
        with Progress('episodes', total=missing) as progress:
            return evaluate(
                Job(policies, make_libero, divergence),
                specs,
                LocalCrew(options.crew_size),
                store,
                fingerprints=fingerprints,
                on_row=lambda row: progress.advance(f'{row.spec.name} {row.spec.arm}'),
            )


def _policies(options: ClosedLoopOptions, presets: Sequence[str]) -> CheckpointPolicies:
    """Policies whose reuse does not judge by times: on a busy machine plans would depend on it."""
    dense_on = next((preset for preset in presets if preset != 'off'), 'off')
    return replace(CheckpointPolicies.chosen(options, dense_on), auto_off=False)


def provenance(options: ClosedLoopOptions, script: str) -> dict[str, Any]:
    """The command that made a result, what it ran, and on what."""
    return {
        'command': f'python benchmarks/{script} {shlex.join(sys.argv[1:])}'.strip(),
        'tasks': options.tasks,
        'init_states': options.init_states,
        'workers': options.crew_size,
        'backend': options.backend,
        'machine': describe_machine(),
        'versions': describe_versions(),
    }


def write_result(name: str, result: dict[str, Any]) -> None:
    """Keep a result where make_tables finds it."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f'{name}.json'
    path.write_text(json.dumps(result, indent=2, allow_nan=False) + '\n', encoding='utf-8')
    print(f'wrote {path}')
