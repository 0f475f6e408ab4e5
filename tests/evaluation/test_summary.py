import json
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.evaluation.synthetic_rows import make_row, make_rows
from vla_cache_ros.core.errors import ConfigError
from vla_cache_ros.evaluation.episode import EpisodeRow, EpisodeSpec
from vla_cache_ros.evaluation.summary import ALL, summarise


def outcomes(arm: str, wins: int, losses: int, condition: str = 'none') -> list[EpisodeRow]:
    """`wins` successes, then `losses` failures of an arm."""
    return [
        make_row(
            EpisodeSpec('libero_object', 0, state, arm, condition=condition),
            'success' if state < wins else 'failure',
            policy_steps=3,
        )
        for state in range(wins + losses)
    ]


def test_work_and_times_are_over_policy_steps():
    rows = make_rows(tasks=2, init_states=4)
    arm = summarise(rows).find('safe', 'none')
    assert arm is not None
    steps = [step for row in rows if row.spec.arm == 'safe' for step in row.trace]
    mean = float(np.mean([step.vision_recompute_ratio for step in steps]))
    assert arm.vision_recompute_ratio == pytest.approx(mean)
    assert arm.vision_work_saved == pytest.approx(1 - mean)
    assert arm.policy_steps == len(steps) == sum(arm.modes.values())
    assert arm.step_ms[ALL].p50 == pytest.approx(float(np.median([s.step_ms for s in steps])))
    assert arm.step_ms['cached'].count + arm.step_ms['keyframe'].count == len(steps)
    decoder = [step.stage_ms['decoder'] for step in steps if step.mode == 'cached']
    assert arm.stage_ms['cached']['decoder'].p95 == pytest.approx(np.percentile(decoder, 95))
    assert arm.flushes == {'episode start': 8}
    assert arm.keyframes.keys() == {'period'}


def test_the_dense_arm_comes_first_saves_nothing_and_is_not_compared_with_itself():
    rows = make_rows(arms=('safe', 'paper', 'off'))
    summary = summarise(rows)
    assert summary.arm_names == ['off', 'safe', 'paper']
    dense = summary.find('off', 'none')
    assert dense is not None
    assert (dense.vision_work_saved, dense.compared_steps, dense.divergence_mean) == (0.0, 0, None)
    assert [pair.arm for pair in summary.paired] == ['safe', 'paper']


def test_policy_time_per_action_is_what_longer_chunks_save():
    closed, open_loop = make_rows(arms=('off', 'off@8'))[:2]
    open_loop = replace(open_loop, steps=2 * closed.steps, trace=closed.trace)
    summary = summarise([closed, open_loop])
    times = [arm.control_step_ms for arm in summary.arms]
    assert times[0] is not None
    assert times[1] is not None
    assert times[1].mean == pytest.approx(times[0].mean / 2)
    assert times[0].low <= times[0].mean <= times[0].high


def test_simulator_errors_are_listed_apart_and_count_in_no_rate():
    spec = EpisodeSpec('libero_object', 2, 7, 'safe')
    rows = [*outcomes('off', 3, 0), *outcomes('safe', 3, 0)]
    rows += [make_row(replace(spec, arm='off')), make_row(spec, 'simulator_error', note='hung')]
    summary = summarise(rows)
    arm = summary.find('safe', 'none')
    assert arm is not None
    assert (arm.success.successes, arm.success.trials, arm.simulator_errors) == (3, 3, 1)
    assert [(failure.spec, failure.note) for failure in summary.failures] == [(spec, 'hung')]
    (pair,) = summary.paired
    assert pair.simulator_errors == 1
    assert pair.comparison is not None
    assert pair.comparison.pairs == 3


def test_conditions_are_kept_apart():
    rows = [
        *outcomes('off', 8, 2),
        *outcomes('safe', 8, 2),
        *outcomes('off', 6, 4, 'shake'),
        *outcomes('safe', 3, 7, 'shake'),
    ]
    summary = summarise(rows)
    assert summary.conditions == ['none', 'shake']
    quiet, shaken = (summary.find_paired('safe', name) for name in ('none', 'shake'))
    assert quiet is not None
    assert quiet.comparison is not None
    assert quiet.comparison.difference == 0.0
    assert shaken is not None
    assert shaken.comparison is not None
    assert shaken.comparison.difference == pytest.approx(-0.3)


@pytest.mark.parametrize(
    ('dense', 'cached', 'margin', 'says'),
    [
        ((218, 2), (216, 4), 0.05, 'loses 0.9 points'),
        ((218, 2), (216, 4), 0.05, 'non-inferior at a margin of 5 points.'),
        ((218, 2), (216, 4), 0.01, 'undecided at a margin of 1 point.'),
        ((218, 2), (216, 4), 0.01, 'a claim at 1 point would need about '),
        ((218, 2), (218, 2), 0.01, 'neither loses nor gains'),
        ((200, 20), (120, 100), 0.01, 'inferior: the loss exceeds the margin of 1 point'),
        ((120, 100), (200, 20), 0.01, 'gains 36.4 points'),
        ((120, 100), (200, 20), 0.01, 'A gain of'),
    ],
)
def test_the_claim_in_words(dense, cached, margin, says):
    (pair,) = summarise([*outcomes('off', *dense), *outcomes('safe', *cached)], margin).paired
    assert says in pair.in_words()


def test_pairs_that_cannot_be_judged_claim_nothing():
    rows = [
        make_row(EpisodeSpec('s', 0, 0, arm), outcome)
        for arm, outcome in (('off', 'success'), ('safe', 'simulator_error'))
    ]
    (pair,) = summarise(rows).paired
    assert pair.in_words() == 'safe: no pair could be judged.'


def test_a_margin_out_of_range_is_refused():
    with pytest.raises(ConfigError, match='margin must lie between 0 and 1; got 5'):
        summarise(make_rows(), margin=5)


@given(
    st.lists(
        st.tuples(
            st.integers(0, 3),
            st.integers(0, 3),
            st.sampled_from(('off', 'safe', 'off@7')),
            st.sampled_from(('none', 'noise')),
            st.sampled_from(('success', 'failure', 'simulator_error')),
            st.integers(0, 3),
        ),
        max_size=12,
        unique_by=lambda item: item[:4],
    )
)
def test_any_rows_give_json_without_nan_and_count_every_episode_once(items):
    rows = [
        make_row(EpisodeSpec('s', task, state, arm, condition=condition), outcome, steps)
        for task, state, arm, condition, outcome, steps in items
    ]
    summary = summarise(rows)
    document = json.loads(json.dumps(summary.as_dict(), allow_nan=False))
    counted = sum(arm['success']['trials'] for arm in document['arms'])
    assert counted + document['simulator_errors'] == document['episodes'] == len(rows)
    assert counted == sum(task['success']['trials'] for task in document['tasks'])
    for pair in document['paired']:
        comparison = pair['comparison']
        assert comparison is None or math.isfinite(comparison['low'])
