"""`vla-cache bench`: time of one policy step, dense against cached, stage by stage.

Both policies see the same recorded frames, one after the other at every frame, in alternating
order: whatever else the machine does hits both alike. Ratios are taken frame by frame.
"""

import dataclasses
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vla_cache_ros.cli.checkpoints import CheckpointPolicies, ModelOptions, find_checkpoint
from vla_cache_ros.cli.progress import Progress
from vla_cache_ros.cli.recording import load_observations, record_episode
from vla_cache_ros.cli.tasks import parse_task
from vla_cache_ros.core.errors import ConfigError
from vla_cache_ros.core.protocols import Policy
from vla_cache_ros.core.types import Observation, StepReport
from vla_cache_ros.evaluation.episode import EpisodeSpec
from vla_cache_ros.evaluation.statistics import quantiles

WARM_UP_FRAMES = 3
DECISION_STAGES = ('diff', 'selection')
RESAMPLES = 2000


@dataclass(frozen=True)
class StepTimes:
    """One policy step on one frame.

    Attributes:
        report: The policy's own account.
        wall_ms: Time of the whole call, measured from outside.
    """

    report: StepReport
    wall_ms: float


@dataclass(frozen=True)
class BenchResult:
    """Dense and cached times of the same frames, warm-up excluded."""

    dense: tuple[StepTimes, ...]
    cached: tuple[StepTimes, ...]


def time_policies(
    dense: Policy, cached: Policy, observations: Sequence[Observation], repeats: int = 1
) -> BenchResult:
    """Replay an episode through both policies, interleaved.

    Args:
        dense: The policy without reuse.
        cached: The same weights with reuse.
        observations: Frames of one episode, in order; both policies see each of them.
        repeats: Passes over the episode; the policies are reset before each.

    Raises:
        ConfigError: The episode is too short to leave any frame after the warm-up.
    """
    if len(observations) <= WARM_UP_FRAMES or repeats < 1:
        raise ConfigError(
            f'timing takes more than {WARM_UP_FRAMES} frames and at least one pass; '
            f'got {len(observations)} frames and {repeats} passes.'
        )
    arms: dict[str, tuple[Policy, list[StepTimes]]] = {
        'dense': (dense, []),
        'cached': (cached, []),
    }
    with Progress('frames', total=repeats * len(observations)) as progress:
        for repeat in range(repeats):
            for policy, _ in arms.values():
                policy.reset('benchmark pass')
            for index, observation in enumerate(observations):
                order = list(arms) if (index + repeat) % 2 == 0 else list(reversed(arms))
                for arm in order:
                    policy, times = arms[arm]
                    step = _time_step(policy, observation)
                    if repeat > 0 or index >= WARM_UP_FRAMES:
                        times.append(step)
                progress.advance()
    return BenchResult(tuple(arms['dense'][1]), tuple(arms['cached'][1]))


def _time_step(policy: Policy, observation: Observation) -> StepTimes:
    begin = time.perf_counter()
    chunk = policy.act(observation)
    wall_ms = (time.perf_counter() - begin) * 1e3
    if chunk.report is None:
        raise ConfigError(f'{type(policy).__name__} reports no stage times; nothing to compare.')
    return StepTimes(chunk.report, wall_ms)


def summarize(result: BenchResult) -> dict[str, Any]:
    """Compute medians per stage, the ratio of the steps and the price of deciding.

    The ratio's interval is a percentile bootstrap over frames.
    """
    arms = {'dense': result.dense, 'cached': result.cached}
    stage_ms = {arm: _stage_medians(times) for arm, times in arms.items()}
    step_ms = {
        arm: dataclasses.asdict(quantiles([step.wall_ms for step in times]))
        for arm, times in arms.items()
    }
    dense = np.array([step.wall_ms for step in result.dense])
    cached = np.array([step.wall_ms for step in result.cached])
    cached_only = np.array([step.report.mode == 'cached' for step in result.cached])
    decision = np.array(
        [
            sum(step.report.stage_ms.get(stage, 0.0) for stage in DECISION_STAGES)
            for step in result.cached
        ]
    )
    low, high = _ratio_interval(dense, cached)
    modes = [step.report.mode for step in result.cached]
    return {
        'frames': len(result.dense),
        'stage_ms': stage_ms,
        'step_ms': step_ms,
        'ratio': float(np.median(dense) / np.median(cached)),
        'ratio_low': low,
        'ratio_high': high,
        'ratio_per_frame': float(np.median(dense / cached)),
        'ratio_cached_steps': (
            float(np.median(dense[cached_only]) / np.median(cached[cached_only]))
            if cached_only.any()
            else None
        ),
        'mean_ratio': float(dense.mean() / cached.mean()),
        'decision_ms': float(np.median(decision[cached_only])) if cached_only.any() else None,
        'decision_share_of_dense': (
            float(np.median(decision[cached_only]) / np.median(dense))
            if cached_only.any()
            else None
        ),
        'recompute_ratio': float(
            np.mean([step.report.plan.recompute_ratio for step in result.cached])
        ),
        'modes': {mode: modes.count(mode) for mode in dict.fromkeys(modes)},
    }


def _stage_medians(times: Sequence[StepTimes]) -> dict[str, float]:
    stages = list(dict.fromkeys(stage for step in times for stage in step.report.stage_ms))
    medians = {
        stage: float(np.median([step.report.stage_ms.get(stage, 0.0) for step in times]))
        for stage in stages
    }
    between = [step.wall_ms - step.report.total_ms for step in times]
    return {**medians, 'between stages': max(0.0, float(np.median(between)))}


def _ratio_interval(
    dense: NDArray[np.float64], cached: NDArray[np.float64], seed: int = 0
) -> tuple[float, float]:
    """95 % percentile bootstrap of the ratio of medians, frames resampled in pairs."""
    drawn = np.random.default_rng(seed).integers(dense.size, size=(RESAMPLES, dense.size))
    ratios = np.median(dense[drawn], axis=1) / np.median(cached[drawn], axis=1)
    low, high = np.percentile(ratios, [2.5, 97.5])
    return float(low), float(high)


@dataclass(frozen=True)
class BenchConfig(ModelOptions):
    """Time one policy step, dense against cached, on recorded frames."""

    cache: str = 'safe'
    """Reuse preset to compare with dense: safe, paper."""
    frames: Path | None = None
    """Recorded frames (.npz); default: record an episode of TASK first."""
    task: str = 'libero_object/0'
    """Task to record."""
    init_state: int = 0
    """Initial state to record."""
    repeats: int = 2
    """Passes over the frames."""
    threads: int = 0
    """Threads of the model; 0: as many as there are cores."""
    out: Path = Path('runs/bench')
    """Folder for step_latency.json, its chart and the recorded frames."""
    json: bool = False
    """Print step_latency.json on stdout, nothing else."""


def run_bench(config: BenchConfig) -> int:
    """Time the policies, print a table and write JSON and PNG; returns the exit code."""
    import torch
    from rich.console import Console

    from vla_cache_ros.cli.report.charts import draw_latency
    from vla_cache_ros.cli.report.machine import describe_machine, describe_versions

    if config.threads:
        torch.set_num_threads(config.threads)
    policies = CheckpointPolicies.chosen(config, config.cache)
    dense, cached = policies('off'), policies(config.cache)
    if (path := config.frames) is None:
        name = parse_task(config.task)
        spec = EpisodeSpec(name.suite, name.task, config.init_state)
        driver = (
            CheckpointPolicies(find_checkpoint(None))('off') if config.random_weights else dense
        )
        path = record_episode(driver, spec, config.out, dense.image_size_px)
    observations, about = load_observations(path)
    result = time_policies(dense, cached, observations, config.repeats)
    summary = {
        'what': 'step_latency',
        'cache': config.cache,
        'dtype': policies.dtype,
        'backend': policies.backend,
        'precision': policies.precision,
        'threads': torch.get_num_threads(),
        'frames_from': about,
        'weights': policies.weights(config.cache),
        **summarize(result),
        'machine': describe_machine(),
        'versions': describe_versions(),
    }
    config.out.mkdir(parents=True, exist_ok=True)
    text = json.dumps(summary, indent=2)
    (config.out / 'step_latency.json').write_text(text + '\n', encoding='utf-8')
    draw_latency(
        config.out / 'step_latency.png',
        summary['stage_ms'],
        {
            'dense': [step.wall_ms for step in result.dense],
            'cached': [step.wall_ms for step in result.cached],
        },
    )
    if config.json:
        Console(soft_wrap=True).print(text, markup=False, highlight=False)
    else:
        _print_table(summary)
    return 0


def _print_table(summary: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table('median, ms', 'dense', 'cached', 'dense / cached')
    dense, cached = summary['stage_ms']['dense'], summary['stage_ms']['cached']
    for stage in dict.fromkeys((*dense, *cached)):
        table.add_row(stage, *_cells(dense.get(stage, 0.0), cached.get(stage, 0.0)))
    table.add_section()
    steps = summary['step_ms']
    table.add_row('policy step', *_cells(steps['dense']['p50'], steps['cached']['p50']))
    table.add_row('policy step, p95', *_cells(steps['dense']['p95'], steps['cached']['p95']))
    console = Console()
    console.print(table)
    console.print(
        f'{summary["frames"]} frames of {summary["frames_from"]}; dense / cached '
        f'{summary["ratio"]:.2f} [{summary["ratio_low"]:.2f}, {summary["ratio_high"]:.2f}]; '
        f'recomputed {summary["recompute_ratio"]:.0%} of the token-layers; {summary["modes"]}'
    )
    if summary['decision_ms'] is not None:
        console.print(
            f'deciding (diff + selection) {summary["decision_ms"]:.2f} ms, '
            f'{summary["decision_share_of_dense"]:.1%} of a dense step'
        )


def _cells(dense: float, cached: float) -> tuple[str, str, str]:
    ratio = f'{dense / cached:.2f}' if cached > 0.005 and dense > 0.005 else '-'
    return f'{dense:.2f}', f'{cached:.2f}', ratio
