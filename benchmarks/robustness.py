"""Success and vision work of dense and cached arms under disturbances, on the same episodes.

    python benchmarks/robustness.py --init-states 0-4 --workers 2

Takes the options of `vla-cache eval` and keeps its episodes in --out, so it can be stopped and
started again. Writes benchmarks/results/robustness.json and docs/images/robustness.png;
`python benchmarks/make_tables.py` renders them.
"""

from dataclasses import dataclass
from pathlib import Path

import tyro
from closed_loop import IMAGES, TASKS, provenance, run_grid, write_result
from tyro.conf import Positional

from vla_cache_ros.cli.evaluate import EvaluateConfig
from vla_cache_ros.cli.report.evaluation_charts import draw_conditions
from vla_cache_ros.evaluation.summary import summarise
from vla_cache_sim.conditions import CONDITIONS


@dataclass(frozen=True)
class Options(EvaluateConfig):
    """Success under disturbances."""

    tasks: Positional[str] = TASKS
    init_states: str = '0-4'
    cache: str = 'off,safe'
    conditions: str = ','.join(CONDITIONS)
    out: Path = Path('runs/robustness')
    name: str = 'robustness'
    """The result's name."""


def main() -> None:
    """Run the missing episodes, draw and write the comparison."""
    options = tyro.cli(Options, description=__doc__)
    summary = summarise(run_grid(options), options.margin)
    image = f'{options.name}.png'
    draw_conditions(IMAGES / image, summary)
    write_result(
        options.name,
        {
            **provenance(options, 'robustness.py'),
            'image': image,
            'conditions': {name: CONDITIONS[name].description for name in summary.conditions},
            'summary': summary.as_dict(),
        },
    )


if __name__ == '__main__':
    main()
