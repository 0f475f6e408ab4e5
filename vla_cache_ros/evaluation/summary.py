"""What may be claimed from rows: `summarise(rows).as_dict()` is what result.json holds.

    arms      success, work and times of each arm under each condition
    tasks     success by task
    paired    each arm against the dense one on the same episodes
    failures  episodes that the simulator, not the policy, failed

Shares of work and times are over policy steps (a long episode counts by its steps), success over
episodes. Simulator errors are in no rate.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from vla_cache_ros.evaluation.episode import EpisodeRow, EpisodeSpec, PolicyStep, TaskName
from vla_cache_ros.evaluation.paired import compare, pair_rows
from vla_cache_ros.evaluation.statistics import (
    NonInferiority,
    PairedComparison,
    Quantiles,
    Rate,
    bootstrap_mean_interval,
    non_inferiority,
    quantiles,
    wilson_rate,
)

DENSE = 'off'
"""The arm that the others are compared with."""

DEFAULT_MARGIN = 0.01
"""The loss of success that non-inferiority tolerates: one point."""

ALL = 'all'
"""Stands for steps of every mode."""


@dataclass(frozen=True)
class Interval:
    """A mean and its 95 % bootstrap interval, episodes resampled within their tasks."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class ArmSummary:
    """One arm under one condition.

    Attributes:
        condition, arm: Which.
        success: Over judged episodes.
        simulator_errors: Episodes that are not in it.
        steps_to_success: Median control steps of successful episodes.
        policy_steps: Chunks computed.
        recompute_ratio: Share of token-layers recomputed.
        vision_recompute_ratio: The same of vision tokens alone.
        step_ms: Mode ('all', 'dense', 'keyframe', 'cached') -> time of a policy step.
        stage_ms: Mode -> stage -> time, milliseconds.
        control_step_ms: Policy time per executed action: what another arm must be held against.
        overhead_ms: The harness's own time per control step, median over episodes.
        wall_s: Wall-clock time of an episode, mean.
        modes, flushes, keyframes: Mode or reason -> policy steps.
        divergence_mean: Mean over steps of the difference from the dense chunk, action units.
        divergence_max: Greatest difference of one component.
        gripper_flips: Executed actions with another gripper command than the dense one.
        compared_steps: Steps whose divergence is known.
    """

    condition: str
    arm: str
    success: Rate
    simulator_errors: int
    steps_to_success: float | None
    policy_steps: int
    recompute_ratio: float | None
    vision_recompute_ratio: float | None
    step_ms: Mapping[str, Quantiles]
    stage_ms: Mapping[str, Mapping[str, Quantiles]]
    control_step_ms: Interval | None
    overhead_ms: float | None
    wall_s: float | None
    modes: Mapping[str, int]
    flushes: Mapping[str, int]
    keyframes: Mapping[str, int]
    divergence_mean: float | None
    divergence_max: float | None
    gripper_flips: int
    compared_steps: int

    @property
    def vision_work_saved(self) -> float | None:
        """Share of the vision tokens' decoder work that was not done."""
        ratio = self.vision_recompute_ratio
        return None if ratio is None else 1.0 - ratio


@dataclass(frozen=True)
class TaskSummary:
    """Success of one arm in one task under one condition."""

    condition: str
    arm: str
    task: str
    success: Rate


@dataclass(frozen=True)
class PairedSummary:
    """One arm against the dense one on the same episodes under one condition.

    Attributes:
        condition, arm: Which.
        simulator_errors: Pairs left out, the simulator having failed in one of both.
        comparison: Rates' difference, arm minus dense; None without a judged pair.
        non_inferiority: At the margin asked for; None likewise.
    """

    condition: str
    arm: str
    simulator_errors: int
    comparison: PairedComparison | None
    non_inferiority: NonInferiority | None

    def in_words(self) -> str:
        """What may be claimed."""
        found, test = self.comparison, self.non_inferiority
        if found is None or test is None:
            return f'{self.arm}: no pair could be judged.'
        # Never '-0.0 points'.
        loss = -100 * found.difference + 0.0
        moved = (
            f'loses {loss:.1f} points'
            if loss > 0
            else f'gains {-loss:.1f} points'
            if loss < 0
            else 'neither loses nor gains'
        )
        margin = points_in_words(test.margin)
        verdict = {
            'non-inferior': f'non-inferior at a margin of {margin}',
            'inferior': f'inferior: the loss exceeds the margin of {margin}',
            'undecided': f'undecided at a margin of {margin}',
        }[test.verdict]
        text = (
            f'{self.arm} {moved} (difference {_signed(found.difference)} '
            f'[{_signed(found.low)}, {_signed(found.high)}] over {found.pairs} pairs): {verdict}. '
            f'{_bound_in_words(test.ruled_out)}'
        )
        if test.verdict == 'undecided':
            text += f'; a claim at {margin} would need about {test.pairs_needed:,} pairs'
        return text + '.'


@dataclass(frozen=True)
class SimulatorFailure:
    """An episode that says nothing about the policy."""

    spec: EpisodeSpec
    note: str


@dataclass(frozen=True)
class EvaluationSummary:
    """An evaluation in numbers.

    Attributes:
        episodes: Rows, simulator errors included.
        arms, tasks, paired: See the module.
        failures: The simulator's.
    """

    episodes: int
    arms: tuple[ArmSummary, ...]
    tasks: tuple[TaskSummary, ...]
    paired: tuple[PairedSummary, ...]
    failures: tuple[SimulatorFailure, ...]

    @property
    def conditions(self) -> list[str]:
        """The conditions, in order of appearance."""
        return list(dict.fromkeys(arm.condition for arm in self.arms))

    @property
    def arm_names(self) -> list[str]:
        """The arms, dense first."""
        names = list(dict.fromkeys(arm.arm for arm in self.arms))
        return sorted(names, key=lambda name: name != DENSE)

    def find(self, arm: str, condition: str) -> ArmSummary | None:
        """The arm under the condition, if it ran."""
        return next((a for a in self.arms if (a.arm, a.condition) == (arm, condition)), None)

    def find_paired(self, arm: str, condition: str) -> PairedSummary | None:
        """The comparison with the dense arm, if there is one."""
        return next((p for p in self.paired if (p.arm, p.condition) == (arm, condition)), None)

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON; derived figures and words included."""
        return {
            'episodes': self.episodes,
            'simulator_errors': len(self.failures),
            'arms': [
                asdict(arm)
                | {'success': _rate(arm.success), 'vision_work_saved': arm.vision_work_saved}
                for arm in self.arms
            ],
            'tasks': [asdict(task) | {'success': _rate(task.success)} for task in self.tasks],
            'paired': [
                asdict(pair)
                | {'pairs': pair.comparison.pairs if pair.comparison else 0}
                | {'in_words': pair.in_words()}
                for pair in self.paired
            ],
            'failures': [asdict(failure) for failure in self.failures],
        }


def summarise(
    rows: Sequence[EpisodeRow], margin: float = DEFAULT_MARGIN, alpha: float = 0.025
) -> EvaluationSummary:
    """Compute what the rows say.

    Args:
        rows: Of one evaluation, in any order.
        margin: The loss of success that non-inferiority tolerates, as a share.
        alpha: One-sided error of its verdict.

    Raises:
        ConfigError: margin or alpha is out of range.
    """
    groups = _grouped(rows)
    return EvaluationSummary(
        episodes=len(rows),
        arms=tuple(_summarise_arm(*key, group) for key, group in groups.items()),
        tasks=tuple(
            TaskSummary(condition, arm, str(task), success_rate(mine))
            for (condition, arm), group in groups.items()
            for task, mine in _by_task(group).items()
        ),
        paired=tuple(
            _summarise_pairs(condition, arm, rows, margin, alpha)
            for condition, arm in groups
            if arm != DENSE and (condition, DENSE) in groups
        ),
        failures=tuple(SimulatorFailure(row.spec, row.note) for row in rows if not row.judged),
    )


def success_rate(rows: Iterable[EpisodeRow]) -> Rate:
    """Success of the judged rows."""
    judged = [row for row in rows if row.judged]
    return wilson_rate(sum(row.success for row in judged), len(judged))


def _grouped(rows: Sequence[EpisodeRow]) -> dict[tuple[str, str], list[EpisodeRow]]:
    """(condition, arm) -> rows, the dense arm first under each condition."""
    groups: dict[tuple[str, str], list[EpisodeRow]] = {}
    for row in rows:
        groups.setdefault((row.spec.condition, row.spec.arm), []).append(row)
    conditions = list(dict.fromkeys(condition for condition, _ in groups))
    return {
        key: groups[key]
        for key in sorted(groups, key=lambda key: (conditions.index(key[0]), key[1] != DENSE))
    }


def _by_task(rows: Sequence[EpisodeRow]) -> dict[TaskName, list[EpisodeRow]]:
    tasks: dict[TaskName, list[EpisodeRow]] = {}
    for row in rows:
        tasks.setdefault(row.spec.name, []).append(row)
    return {name: tasks[name] for name in sorted(tasks, key=lambda name: (name.suite, name.task))}


def _summarise_arm(condition: str, arm: str, rows: Sequence[EpisodeRow]) -> ArmSummary:
    judged = [row for row in rows if row.judged]
    steps = [step for row in judged for step in row.trace]
    divergences = [step.divergence for step in steps if step.divergence is not None]
    by_mode = {ALL: steps} | {
        mode: [step for step in steps if step.mode == mode]
        for mode in dict.fromkeys(step.mode for step in steps)
    }
    to_success = [row.steps for row in judged if row.success]
    return ArmSummary(
        condition=condition,
        arm=arm,
        success=success_rate(rows),
        simulator_errors=len(rows) - len(judged),
        steps_to_success=float(np.median(to_success)) if to_success else None,
        policy_steps=len(steps),
        recompute_ratio=_mean([step.recompute_ratio for step in steps]),
        vision_recompute_ratio=_mean([step.vision_recompute_ratio for step in steps]),
        step_ms={
            mode: quantiles([step.step_ms for step in mine])
            for mode, mine in by_mode.items()
            if mine
        },
        stage_ms={mode: _stages(mine) for mode, mine in by_mode.items() if mine},
        control_step_ms=_control_step_ms(judged),
        overhead_ms=float(np.median([row.overhead_ms for row in judged])) if judged else None,
        wall_s=_mean([row.wall_s for row in judged]),
        modes=dict(Counter(step.mode for step in steps)),
        flushes=dict(Counter(step.flush_reason for step in steps if step.flush_reason)),
        keyframes=dict(Counter(s.keyframe_reason for s in steps if s.keyframe_reason)),
        divergence_mean=_mean([divergence.mean for divergence in divergences]),
        divergence_max=max((divergence.max for divergence in divergences), default=None),
        gripper_flips=sum(divergence.gripper_flips for divergence in divergences),
        compared_steps=len(divergences),
    )


def _stages(steps: Sequence[PolicyStep]) -> dict[str, Quantiles]:
    names = dict.fromkeys(stage for step in steps for stage in step.stage_ms)
    return {
        stage: quantiles([step.stage_ms[stage] for step in steps if stage in step.stage_ms])
        for stage in names
    }


def _control_step_ms(rows: Sequence[EpisodeRow]) -> Interval | None:
    """Mean over episodes of the policy's time over the actions executed."""
    ran = [row for row in rows if row.steps and row.trace]
    if not ran:
        return None
    values = [sum(step.step_ms for step in row.trace) / row.steps for row in ran]
    low, high = bootstrap_mean_interval(values, strata=[row.spec.name for row in ran])
    return Interval(float(np.mean(values)), low, high)


def _summarise_pairs(
    condition: str, arm: str, rows: Sequence[EpisodeRow], margin: float, alpha: float
) -> PairedSummary:
    pairs = pair_rows([row for row in rows if row.spec.condition == condition], arm, DENSE)
    found = compare(pairs)
    return PairedSummary(
        condition,
        arm,
        simulator_errors=sum(not pair.judged for pair in pairs),
        comparison=found,
        non_inferiority=non_inferiority(
            found.only_first, found.only_second, found.pairs, margin, alpha
        )
        if found
        else None,
    )


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None


def _rate(rate: Rate) -> dict[str, Any]:
    """A rate without NaN, which is no JSON."""
    return asdict(rate) | {'value': rate.value if rate.trials else None}


def _bound_in_words(ruled_out: float) -> str:
    """The lower bound of the difference."""
    if ruled_out < 0:
        return f'A gain of {points_in_words(-ruled_out, 1)} or more is shown'
    return f'A loss of more than {points_in_words(ruled_out, 1)} is ruled out'


def _signed(share: float) -> str:
    """Points with a sign, '0.0' without one."""
    text = f'{100 * share:+.1f}'
    return '0.0' if text in ('+0.0', '-0.0') else text


def points_in_words(share: float, digits: int = 0) -> str:
    """'1 point', '2.5 points'."""
    value = 100 * share
    text = f'{value:.{digits}f}' if digits else f'{value:g}'
    return f'{text} point' if text == '1' else f'{text} points'
