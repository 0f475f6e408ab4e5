"""Success dense against cached on the same initial states.

    python benchmarks/paired_success.py --tasks libero_object/0,libero_object/3,libero_object/5,\
libero_spatial/0 --init-states 0-12

Resumable: finished episodes stay in runs/paired_success.jsonl. Writes
benchmarks/results/paired_success.json; `python benchmarks/make_tables.py` renders it.
"""

import json
import os
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

import tyro

from vla_cache_ros.cli.checkpoints import CheckpointPolicies, find_checkpoint
from vla_cache_ros.cli.evaluate import EvaluateConfig, episode_grid, evaluate
from vla_cache_ros.evaluation.paired import pair_rows, summarize_pairs
from vla_cache_ros.cli.report.machine import describe_machine, describe_versions

RESULTS = Path(__file__).parent / 'results'


@dataclass(frozen=True)
class Options:
    """Paired success of one checkpoint."""

    checkpoint: Path | None = None
    """Folder of the checkpoint; default: the weights that the package brings."""
    tasks: str = 'libero_object/0'
    """Comma-separated tasks."""
    init_states: str = '0-12'
    """Official initial states per task."""
    cache: str = 'safe'
    """Preset to compare with dense."""
    workers: int = 0
    """Worker processes of one thread each; 0 takes one per core."""
    execute_steps: int | None = None
    """Actions executed of each chunk; default: the policy's own."""
    rows: Path = Path('runs/paired_success.jsonl')
    """Finished episodes, so that an interrupted run goes on."""
    out: Path = RESULTS / 'paired_success.json'
    """What make_tables reads."""


def main() -> None:
    """Run the missing episodes and write the comparison."""
    options = tyro.cli(Options, description=__doc__)
    checkpoint = find_checkpoint(options.checkpoint)
    policies = CheckpointPolicies(checkpoint, auto_off=False)
    caches = f'off,{options.cache}'
    rows = evaluate(
        policies,
        episode_grid(EvaluateConfig(checkpoint, options.tasks, options.init_states, cache=caches)),
        options.workers or os.cpu_count() or 1,
        options.rows,
        execute_steps=options.execute_steps,
        fingerprint=policies.fingerprint,
    )
    result = {
        'command': f'python benchmarks/paired_success.py {shlex.join(sys.argv[1:])}'.strip(),
        'cache': options.cache,
        'weights': {cache: policies.fingerprint(cache) for cache in caches.split(',')},
        **summarize_pairs(pair_rows(rows, options.cache)),
        'machine': describe_machine(),
        'versions': describe_versions(),
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=2) + '\n', encoding='utf-8')
    print(f'wrote {options.out}')


if __name__ == '__main__':
    main()
