"""Which episode to run, and what is kept of one that ran."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from vla_cache_ros.core.shadow import Divergence
from vla_cache_ros.core.types import StepReport

UNDISTURBED = 'none'
"""The condition of an ordinary episode."""


@dataclass(frozen=True)
class TaskName:
    """A suite and the task's index in it."""

    suite: str
    task: int

    def __str__(self) -> str:
        """Format as 'libero_object/2'."""
        return f'{self.suite}/{self.task}'


@dataclass(frozen=True)
class EpisodeSpec:
    """Which episode to run; equal specs are the same episode.

    Attributes:
        suite, task: What is to be done.
        init_state: Index of the official initial state (SIMPLER: episode id).
        arm: How the policy runs, as `arms.parse_arm` reads it.
        seed: Seeds whatever the simulator draws.
        condition: What disturbs the episode; 'none': nothing.
    """

    suite: str
    task: int
    init_state: int
    arm: str = 'off'
    seed: int = 0
    condition: str = UNDISTURBED

    @property
    def name(self) -> TaskName:
        """The task."""
        return TaskName(self.suite, self.task)


@dataclass(frozen=True)
class PolicyStep:
    """One refresh of the policy within an episode.

    Attributes:
        control_step: Actions executed before it; None where nobody counted.
        mode: 'dense', 'keyframe' or 'cached'.
        step_ms: Time of the policy step, milliseconds.
        stage_ms: Stage -> milliseconds.
        recompute_ratio: Share of token-layers recomputed, all tokens counted.
        vision_recompute_ratio: The same of vision tokens alone.
        flush_reason, keyframe_reason: As in StepReport.
        divergence: From the dense chunk; None where it was not computed.
    """

    control_step: int | None
    mode: str
    step_ms: float
    stage_ms: Mapping[str, float]
    recompute_ratio: float
    vision_recompute_ratio: float
    flush_reason: str = ''
    keyframe_reason: str = ''
    divergence: Divergence | None = None

    @classmethod
    def of(
        cls, report: StepReport, control_step: int | None, divergence: Divergence | None = None
    ) -> 'PolicyStep':
        """What is kept of a policy's report."""
        return cls(
            control_step,
            report.mode,
            report.total_ms,
            dict(report.stage_ms),
            report.plan.recompute_ratio,
            report.plan.vision_recompute_ratio,
            report.flush_reason,
            report.keyframe_reason,
            divergence,
        )


@dataclass(frozen=True)
class TraceSummary:
    """Medians, means and counts over an episode's policy steps; None where there were none.

    Attributes:
        policy_steps: Chunks computed.
        step_ms: Median of a policy step's total, milliseconds.
        stage_ms: Stage -> median, milliseconds.
        recompute_ratio: Mean share of token-layers recomputed.
        vision_recompute_ratio: The same of vision tokens alone.
        divergence_mean: Mean over the steps of `Divergence.mean`.
        divergence_max: Greatest of `Divergence.max`.
        gripper_flips: Actions with another gripper command than the dense one.
        modes: Policy step's mode -> how many.
        flushes, keyframes: Reason -> how many.
    """

    policy_steps: int
    step_ms: float | None
    stage_ms: Mapping[str, float]
    recompute_ratio: float | None
    vision_recompute_ratio: float | None
    divergence_mean: float | None
    divergence_max: float | None
    gripper_flips: int | None
    modes: Mapping[str, int]
    flushes: Mapping[str, int]
    keyframes: Mapping[str, int]

    @classmethod
    def of(cls, trace: tuple[PolicyStep, ...]) -> 'TraceSummary':
        """Summarise the policy's steps."""
        stages = list(dict.fromkeys(stage for step in trace for stage in step.stage_ms))
        divergences = [step.divergence for step in trace if step.divergence is not None]
        return cls(
            policy_steps=len(trace),
            step_ms=float(np.median([step.step_ms for step in trace])) if trace else None,
            stage_ms={
                stage: float(np.median([s.stage_ms[stage] for s in trace if stage in s.stage_ms]))
                for stage in stages
            },
            recompute_ratio=_mean([step.recompute_ratio for step in trace]),
            vision_recompute_ratio=_mean([step.vision_recompute_ratio for step in trace]),
            divergence_mean=_mean([divergence.mean for divergence in divergences]),
            divergence_max=max((divergence.max for divergence in divergences), default=None),
            gripper_flips=sum(d.gripper_flips for d in divergences) if divergences else None,
            modes=dict(Counter(step.mode for step in trace)),
            flushes=dict(Counter(step.flush_reason for step in trace if step.flush_reason)),
            keyframes=dict(Counter(s.keyframe_reason for s in trace if s.keyframe_reason)),
        )


def _mean(values: list[float]) -> float | None:
    return float(np.mean(values)) if values else None


@dataclass(frozen=True)
class EpisodeRow:
    """What is kept of a finished episode.

    Attributes:
        spec: Which episode it was.
        outcome: 'success', 'failure' (of the policy) or 'simulator_error'.
        steps: Control steps taken.
        wall_s: Wall-clock time of the episode, reset included.
        overhead_ms: Wall-clock time per control step that was neither policy nor simulator,
            milliseconds: what the harness itself costs.
        trace: The policy's steps.
        fingerprint: Names the weights and settings that produced the row.
        note: What went wrong, when something did.
    """

    spec: EpisodeSpec
    outcome: str
    steps: int = 0
    wall_s: float = 0.0
    overhead_ms: float = 0.0
    trace: tuple[PolicyStep, ...] = field(default=(), repr=False)
    fingerprint: str = ''
    note: str = ''

    @property
    def success(self) -> bool:
        """Whether the policy solved the task."""
        return self.outcome == 'success'

    @property
    def judged(self) -> bool:
        """Whether the episode says something about the policy."""
        return self.outcome != 'simulator_error'

    @cached_property
    def summary(self) -> TraceSummary:
        """The policy's steps in numbers."""
        return TraceSummary.of(self.trace)

    def as_dict(self) -> dict[str, Any]:
        """The row with its trace summarised, flat, for JSON and tables."""
        return {
            **asdict(self.spec),
            'outcome': self.outcome,
            'steps': self.steps,
            'wall_s': self.wall_s,
            'overhead_ms': self.overhead_ms,
            **asdict(self.summary),
            'fingerprint': self.fingerprint,
            'note': self.note,
        }
