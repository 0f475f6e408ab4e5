"""Episode rows out of thin air: what an evaluation of a few arms would leave behind."""

from collections.abc import Sequence

import numpy as np

from vla_cache_ros.evaluation.episode import Divergence, EpisodeRow, EpisodeSpec, PolicyStep

STAGES = ('preprocess', 'diff', 'selection', 'vision', 'decoder', 'head')
EXECUTED = 4


def make_step(
    rng: np.random.Generator, index: int, arm: str, vision_ratio: float = 0.4
) -> PolicyStep:
    """A step of an arm: dense ones recompute everything and have no divergence."""
    dense = arm.startswith('off')
    keyframe = not dense and index % 16 == 0
    ratio = 1.0 if dense or keyframe else vision_ratio + 0.1 * rng.random()
    times = [0.4, 0.3, 0.2, 6.0, 9.0 * ratio, 0.3] * (1 + 0.1 * rng.random(6))
    divergence = None
    if not dense:
        mean = 0.0 if keyframe else float(0.02 * rng.random())
        divergence = Divergence(mean, 4 * mean, int(mean > 0.019))
    return PolicyStep(
        control_step=EXECUTED * index,
        mode='dense' if dense else 'keyframe' if keyframe else 'cached',
        step_ms=float(times.sum()),
        stage_ms=dict(zip(STAGES, times.tolist(), strict=True)),
        recompute_ratio=0.1 + 0.9 * ratio,
        vision_recompute_ratio=ratio,
        flush_reason='episode start' if not dense and index == 0 else '',
        keyframe_reason='period' if keyframe and index else '',
        divergence=divergence,
    )


def make_row(
    spec: EpisodeSpec, outcome: str = 'success', policy_steps: int = 20, note: str = ''
) -> EpisodeRow:
    """A row with a trace; of a simulator error, without."""
    if outcome == 'simulator_error':
        return EpisodeRow(spec, outcome, note=note or 'advance failed: RuntimeError: QACC')
    rng = np.random.default_rng((spec.task, spec.init_state, len(spec.arm)))
    trace = tuple(make_step(rng, index, spec.arm) for index in range(policy_steps))
    return EpisodeRow(
        spec,
        outcome,
        steps=EXECUTED * policy_steps,
        wall_s=6.0 + policy_steps / 10,
        overhead_ms=0.05,
        trace=trace,
        fingerprint='abc',
        note=note,
    )


def make_rows(
    arms: Sequence[str] = ('off', 'safe'),
    tasks: int = 3,
    init_states: int = 10,
    conditions: Sequence[str] = ('none',),
    suite: str = 'libero_object',
    rate: float = 0.9,
) -> list[EpisodeRow]:
    """Rows of a whole grid; outcomes are drawn, the same on every call."""
    rng = np.random.default_rng(len(arms) + tasks + init_states)
    rows: list[EpisodeRow] = []
    for condition in conditions:
        for task in range(tasks):
            for init_state in range(init_states):
                difficulty = rng.random()
                for arm in arms:
                    spec = EpisodeSpec(suite, task, init_state, arm, condition=condition)
                    success = difficulty + 0.03 * rng.standard_normal() < rate
                    steps = 20 + int(rng.integers(10)) if success else 60
                    rows.append(make_row(spec, 'success' if success else 'failure', steps))
    return rows
