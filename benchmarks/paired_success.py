"""Success of cached arms against the dense one on the same initial states.

    python benchmarks/paired_success.py --arms off,safe,paper --init-states 0-19 --workers 2

Resumable: finished episodes stay in the folder. Writes benchmarks/results/paired_success.json;
`python benchmarks/make_tables.py` renders it.
"""

from dataclasses import dataclass
from pathlib import Path

import tyro
from closed_loop import ClosedLoopOptions, provenance, run_grid, write_result

from vla_cache_ros.evaluation.arms import parse_arms
from vla_cache_ros.evaluation.summary import summarise


@dataclass(frozen=True)
class Options(ClosedLoopOptions):
    """Paired success of one checkpoint."""

    arms: str = 'off,safe,paper'
    """Comma-separated arms: presets, or off@7 for 7 actions of each chunk."""
    folder: Path = Path('runs/paired_success')
    """Finished episodes."""
    name: str = 'paired_success'
    """The result's name."""


def main() -> None:
    """Run the missing episodes and write the comparison."""
    options = tyro.cli(Options, description=__doc__)
    rows = run_grid(options, options.folder, parse_arms(options.arms))
    summary = summarise(rows, options.margin)
    for pair in summary.paired:
        print(pair.in_words())
    write_result(
        options.name,
        provenance(options, 'paired_success.py')
        | {'margin': options.margin, 'summary': summary.as_dict()},
    )


if __name__ == '__main__':
    main()
