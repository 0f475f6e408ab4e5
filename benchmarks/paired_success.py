"""Success of cached arms against the dense one on the same initial states.

    python benchmarks/paired_success.py --init-states 0-19 --workers 2

Takes the options of `vla-cache eval` and keeps its episodes in --out, so it can be stopped and
started again. Writes benchmarks/results/paired_success.json; `python benchmarks/make_tables.py`
renders it.
"""

from dataclasses import dataclass
from pathlib import Path

import tyro
from closed_loop import TASKS, provenance, run_grid, write_result
from tyro.conf import Positional

from vla_cache_ros.cli.evaluate import EvaluateConfig
from vla_cache_ros.evaluation.summary import summarise


@dataclass(frozen=True)
class Options(EvaluateConfig):
    """Paired success of one checkpoint."""

    tasks: Positional[str] = TASKS
    init_states: str = '0-19'
    cache: str = 'off,safe,paper'
    out: Path = Path('runs/paired_success')
    name: str = 'paired_success'
    """The result's name."""


def main() -> None:
    """Run the missing episodes and write the comparison."""
    options = tyro.cli(Options, description=__doc__)
    summary = summarise(run_grid(options), options.margin)
    write_result(
        options.name, {**provenance(options, 'paired_success.py'), 'summary': summary.as_dict()}
    )


if __name__ == '__main__':
    main()
