from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vla_cache_ros.core.errors import ConfigError, UnknownNameError
from vla_cache_ros.core.guard import NULL_REASONS, CommandGuard
from vla_cache_ros.core.guard_config import AXES, GuardConfig

MS = 1_000_000
CONFIG = GuardConfig(
    lower=(-0.5,) * 6 + (-1.0,),
    upper=(0.5,) * 6 + (1.0,),
    max_age_ms=100,
    max_future_ms=5,
    initial_gripper=-1.0,
)


def make_action(delta: float = 0.1, gripper: float = 1.0) -> np.ndarray:
    return np.array([delta] * 6 + [gripper], np.float32)


def assert_null(command, gripper: float, *reasons: str) -> None:
    assert command.is_null
    assert command.reasons == reasons
    assert command.action.tolist() == [0] * 6 + [gripper]


def test_a_good_action_passes_unchanged():
    guard = CommandGuard(CONFIG)
    command = guard.check(make_action(), 0, 10 * MS, sequence=0)
    assert command.action.tolist() == make_action().tolist()
    assert command.action.dtype == np.float32
    assert (command.reasons, command.is_null) == ((), False)
    assert guard.counts == {'passed': 1}


def test_the_null_action_holds_the_last_commanded_gripper():
    guard = CommandGuard(CONFIG)
    assert_null(guard.check(None, 0, 0), -1, 'no_action')
    guard.check(make_action(gripper=0.5), 0, MS, sequence=0)
    assert_null(guard.check(None, 0, 2 * MS), 0.5, 'no_action')


@pytest.mark.parametrize(
    ('action', 'stamp_ms', 'reason'),
    [
        (make_action(), 899, 'stale'),
        (make_action(), 1006, 'future_stamp'),
        (make_action(float('nan')), 1000, 'non_finite'),
        (make_action(gripper=float('inf')), 1000, 'non_finite'),
        (np.array([1e300] * 7), 1000, 'non_finite'),
        (np.zeros(6, np.float32), 1000, 'bad_shape'),
        (np.zeros((1, 7), np.float32), 1000, 'bad_shape'),
        (None, 1000, 'no_action'),
    ],
)
def test_what_cannot_pass_becomes_null_and_is_counted(action, stamp_ms, reason):
    guard = CommandGuard(CONFIG)
    assert_null(guard.check(action, stamp_ms * MS, 1000 * MS, sequence=0), -1, reason)
    assert guard.counts == {reason: 1}


@pytest.mark.parametrize('stamp_ms', [900, 1000, 1005])
def test_the_age_limits_are_inclusive(stamp_ms):
    assert not CommandGuard(CONFIG).check(make_action(), stamp_ms * MS, 1000 * MS, 0).is_null


def test_values_out_of_limits_are_clipped_and_counted_per_axis():
    guard = CommandGuard(CONFIG)
    action = make_action()
    action[[1, 6]] = [-2, 3]
    command = guard.check(action, 0, 0, sequence=0)
    assert command.reasons == ('limit_y', 'limit_gripper')
    assert not command.is_null
    assert command.action[[1, 6]].tolist() == [-0.5, 1]
    assert guard.counts == {'limit_y': 1, 'limit_gripper': 1, 'passed': 1}
    assert_null(guard.check(None, 0, 0), 1, 'no_action')


def test_or_refused_by_policy():
    guard = CommandGuard(replace(CONFIG, on_limit='null'))
    assert_null(
        guard.check(make_action(0.7), 0, 0, 0), -1, *(f'limit_{axis}' for axis in AXES[:6])
    )


def test_a_delta_passes_once():
    guard = CommandGuard(CONFIG)
    assert not guard.check(make_action(), 0, MS, sequence=3).is_null
    assert_null(guard.check(make_action(), 0, 2 * MS, sequence=3), 1, 'repeated')
    assert_null(guard.check(make_action(), 0, 2 * MS, sequence=2), 1, 'repeated')
    assert not guard.check(make_action(), 0, 3 * MS, sequence=4).is_null


def test_without_a_sequence_the_stamp_is_the_number():
    guard = CommandGuard(CONFIG)
    assert not guard.check(make_action(), MS, MS).is_null
    assert_null(guard.check(make_action(), MS, 2 * MS), 1, 'repeated')
    assert not guard.check(make_action(), 2 * MS, 2 * MS).is_null


def test_a_restarted_clock_gives_one_null_action_and_then_goes_on():
    guard = CommandGuard(CONFIG)
    guard.check(make_action(), 5000 * MS, 5000 * MS)
    assert_null(guard.check(make_action(), MS, MS), 1, 'clock_backwards')
    assert not guard.check(make_action(), 2 * MS, 2 * MS).is_null


def test_a_clock_that_steps_back_a_little_repeats_nothing():
    guard = CommandGuard(CONFIG)
    guard.check(make_action(), 1000 * MS, 1010 * MS)
    assert_null(guard.check(make_action(), 1000 * MS, 1005 * MS), 1, 'clock_backwards', 'repeated')
    assert_null(guard.check(make_action(), 1000 * MS, 1006 * MS), 1, 'repeated')


def test_reset_accepts_a_new_source_and_keeps_the_gripper_and_the_counts():
    guard = CommandGuard(CONFIG)
    guard.check(make_action(gripper=0.5), 5000 * MS, 5000 * MS, sequence=9)
    guard.reset()
    assert not guard.check(make_action(gripper=0.5), MS, MS, sequence=0).is_null
    assert_null(guard.check(None, 0, MS), 0.5, 'no_action')
    assert guard.counts['passed'] == 2


values = st.one_of(
    st.floats(-2, 2), st.sampled_from([np.nan, np.inf, -np.inf, 0.5, -0.5, 1e-45, 1e300])
)
actions = st.one_of(
    st.none(),
    st.lists(values, min_size=7, max_size=7).map(np.array),
    st.lists(values, max_size=9).map(np.array),
)
ticks = st.lists(
    st.tuples(actions, st.integers(-300, 300), st.integers(-40, 60), st.integers(0, 12)),
    max_size=40,
)


@given(ticks, st.sampled_from(['clip', 'null']))
def test_nothing_stale_not_finite_out_of_limits_or_repeated_passes(sequence_of_ticks, on_limit):
    guard = CommandGuard(replace(CONFIG, on_limit=on_limit))
    lower, upper = np.float32(CONFIG.lower), np.float32(CONFIG.upper)
    now_ms, before_ms, gripper, passed = 1000, None, np.float32(-1), []
    for action, age_ms, advance_ms, number in sequence_of_ticks:
        now_ms += advance_ms
        command = guard.check(action, (now_ms - age_ms) * MS, now_ms * MS, sequence=number)
        assert command.action.shape == (7,)
        assert np.isfinite(command.action).all()
        assert (command.action >= lower).all()
        assert (command.action <= upper).all()
        assert set(command.reasons) <= {*NULL_REASONS, *(f'limit_{axis}' for axis in AXES)}
        if command.is_null:
            assert command.reasons
            assert not command.action[:6].any()
            assert command.action[6] == gripper
        else:
            assert action is not None
            assert np.array_equal(command.action, np.float32(action).clip(lower, upper))
            assert -CONFIG.max_future_ms <= age_ms <= CONFIG.max_age_ms
            assert before_ms is None or now_ms >= before_ms
            passed.append(number)
        gripper, before_ms = command.action[6], now_ms
    assert passed == sorted(set(passed))
    assert guard.counts.get('passed', 0) == len(passed)


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 9)), max_size=60))
def test_without_sequences_and_on_a_forward_clock_no_stamp_passes_twice(stream):
    guard = CommandGuard(CONFIG)
    now_ms, passed = 1000, []
    for age_ms, advance_ms in stream:
        now_ms += advance_ms
        stamp_ms = now_ms - age_ms
        if not guard.check(make_action(), stamp_ms * MS, now_ms * MS).is_null:
            passed.append(stamp_ms)
    assert passed == sorted(set(passed))


@pytest.mark.parametrize(
    'change',
    [
        {'lower': (-1.0,) * 6},
        {'lower': (0.1,) + (-1.0,) * 6},
        {'upper': (float('nan'),) + (1.0,) * 6},
        {'initial_gripper': 2.0},
        {'max_age_ms': 0.0},
        {'max_future_ms': -1.0},
    ],
)
def test_limits_that_contradict_the_null_action_are_refused(change):
    with pytest.raises(ConfigError, match='limits|max_age_ms'):
        replace(CONFIG, **change)


def test_an_unknown_limit_policy_names_the_valid_ones():
    with pytest.raises(UnknownNameError, match='valid: clip, null'):
        replace(CONFIG, on_limit='wrap')
