"""What users would do instead of the cache, in the same harness: success against milliseconds.

    python benchmarks/baselines.py --init-states 0-9 --workers 2

Arms: dense; safe and paper; reuse of random tokens and of all static ones, at safe's ratio; and
fewer refreshes at equal compute. The last is dense with N instead of N0 actions of each chunk
executed, where a control step costs as much of the policy's time as under --equal-to:

    N = N0 / share,   share = policy time per control step, cached / dense

measured on the episodes of the other arms, rounded, and at most a whole chunk. Comparing actions
with the dense ones is left out: it would warm other memory between the timed steps.

Takes the options of `vla-cache eval` and keeps its episodes in --out, so it can be stopped and
started again. Writes benchmarks/results/baselines.json and docs/images/baselines.png;
`python benchmarks/make_tables.py` renders them.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import tyro
from closed_loop import IMAGES, TASKS, provenance, run_grid, write_result
from tyro.conf import Positional

from vla_cache_ros.cli.checkpoints import CheckpointPolicies
from vla_cache_ros.cli.evaluate import EvaluateConfig
from vla_cache_ros.cli.report.evaluation_charts import draw_success_against_time
from vla_cache_ros.core.errors import ConfigError
from vla_cache_ros.evaluation.episode import UNDISTURBED, EpisodeRow
from vla_cache_ros.evaluation.summary import DENSE, EvaluationSummary, summarise


@dataclass(frozen=True)
class Options(EvaluateConfig):
    """The cache and what users would do instead."""

    tasks: Positional[str] = TASKS
    init_states: str = '0-9'
    cache: str = 'off,safe,paper,random,static_only'
    divergence: bool = False
    videos: int = 0
    out: Path = Path('runs/baselines')
    equal_to: str = 'safe'
    """The arm whose compute fewer refreshes are to match."""
    execute_steps: int | None = None
    """N; default: as measured."""
    name: str = 'baselines'
    """The result's name."""


@dataclass(frozen=True)
class OpenLoop:
    """Fewer refreshes at equal compute.

    Attributes:
        executed: N0, actions of each chunk that the other arms execute.
        share: Policy time per control step, cached over dense.
        equal: N0 / share.
        steps: N.
        chunk_size: The most that N may be.
    """

    executed: int
    share: float
    equal: float
    steps: int
    chunk_size: int


def choose_open_loop(
    summary: EvaluationSummary,
    rows: Sequence[EpisodeRow],
    equal_to: str,
    chunk_size: int,
    steps: int | None = None,
) -> OpenLoop:
    """Find how many actions a dense policy must execute to cost as much as a cached one.

    Args:
        summary: Of the rows.
        rows: Holds dense episodes and those of `equal_to`.
        equal_to: The cached arm.
        chunk_size: Actions per chunk.
        steps: N, if it is given.

    Raises:
        ConfigError: There are no such episodes.
    """
    found = [summary.find(arm, UNDISTURBED) for arm in (DENSE, equal_to)]
    times = [arm.control_step_ms for arm in found if arm is not None]
    if len(times) != 2 or times[0] is None or times[1] is None:
        raise ConfigError(f'--cache must hold {DENSE} and {equal_to}: their times are compared.')
    executed = _executed(rows)
    share = times[1].mean / times[0].mean
    equal = executed / share
    return OpenLoop(executed, share, equal, steps or min(chunk_size, round(equal)), chunk_size)


def _executed(rows: Sequence[EpisodeRow]) -> int:
    """Actions between two refreshes of the dense arm."""
    for row in rows:
        if row.spec.arm == DENSE and len(row.trace) > 1:
            first, second = (step.control_step for step in row.trace[:2])
            if first is not None and second is not None:
                return second - first
    raise ConfigError(f'no episode of {DENSE} took two policy steps.')


def main() -> None:
    """Run the missing episodes, draw and write the comparison."""
    options = tyro.cli(Options, description=__doc__)
    rows = run_grid(options)
    chunk_size = CheckpointPolicies.chosen(options)(DENSE).chunk_size
    open_loop = choose_open_loop(
        summarise(rows), rows, options.equal_to, chunk_size, options.execute_steps
    )
    arm = f'{DENSE}@{open_loop.steps}'
    # The others are done: asked for again, they are part of the report.
    rows = run_grid(replace(options, cache=f'{options.cache},{arm}'))
    summary = summarise(rows, options.margin)
    ran = [each for each in summary.arms if each.control_step_ms and each.success.trials]
    image = f'{options.name}.png'
    draw_success_against_time(
        IMAGES / image,
        {each.arm: each.success for each in ran},
        {each.arm: each.control_step_ms for each in ran if each.control_step_ms},
    )
    write_result(
        options.name,
        {
            **provenance(options, 'baselines.py'),
            'image': image,
            'equal_to': options.equal_to,
            'open_loop': asdict(open_loop),
            'summary': summary.as_dict(),
        },
    )


if __name__ == '__main__':
    main()
