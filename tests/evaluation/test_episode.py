import json
import pickle
from dataclasses import replace

from vla_cache_ros.evaluation.episode import (
    Divergence,
    EpisodeRow,
    EpisodeSpec,
    PolicyStep,
    TaskName,
    TraceSummary,
)

SPEC = EpisodeSpec('libero_goal', 4, 2, 'safe')
STEPS = (
    PolicyStep(0, 'keyframe', 4.0, {'vision': 3.0, 'head': 1.0}, 1.0, 1.0, '', 'first step'),
    PolicyStep(4, 'cached', 2.0, {'vision': 1.0}, 0.5, 0.4, '', '', Divergence(0.1, 0.3, 1)),
    PolicyStep(8, 'cached', 3.0, {'vision': 2.0}, 0.3, 0.1, 'fault', '', Divergence(0.3, 0.4, 2)),
)


def test_equal_specs_are_the_same_episode():
    assert SPEC.name == TaskName('libero_goal', 4)
    assert str(SPEC.name) == 'libero_goal/4'
    assert len({SPEC, EpisodeSpec('libero_goal', 4, 2, 'safe'), replace(SPEC, seed=1)}) == 2


def test_a_trace_is_summed_up_over_the_steps_that_know():
    summary = TraceSummary.of(STEPS)
    assert summary.policy_steps == 3
    assert summary.step_ms == 3.0
    assert summary.stage_ms == {'vision': 2.0, 'head': 1.0}
    assert summary.recompute_ratio == 0.6
    assert summary.vision_recompute_ratio == 0.5
    assert (summary.divergence_mean, summary.divergence_max) == (0.2, 0.4)
    assert summary.gripper_flips == 3
    assert summary.modes == {'keyframe': 1, 'cached': 2}
    assert (summary.flushes, summary.keyframes) == ({'fault': 1}, {'first step': 1})


def test_an_episode_without_steps_has_no_figures():
    summary = TraceSummary.of(())
    assert summary.policy_steps == 0
    assert summary.step_ms is summary.recompute_ratio is summary.gripper_flips is None


def test_a_row_travels_between_processes_and_into_json():
    row = EpisodeRow(SPEC, 'success', 12, trace=STEPS)
    assert row.summary.policy_steps == 3  # computed before it travels
    assert pickle.loads(pickle.dumps(row)) == row
    flat = json.loads(json.dumps(row.as_dict()))
    assert (flat['suite'], flat['arm'], flat['policy_steps']) == ('libero_goal', 'safe', 3)


def test_a_simulators_error_judges_nothing():
    row = EpisodeRow(SPEC, 'simulator_error')
    assert not row.judged
    assert not row.success
