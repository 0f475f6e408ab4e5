"""A command is taken once, fresh, in order, and from a guard that lives."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vla_cache_ros.core.command_gate import CommandGate, GateConfig
from vla_cache_ros.core.errors import ConfigError

SECOND_NS = 1_000_000_000
CONFIG = GateConfig(max_age_s=0.2, guard_timeout_s=0.1)


@pytest.fixture
def gate() -> CommandGate:
    gate = CommandGate(CONFIG)
    gate.beat(is_active=True, now_s=10.0)
    return gate


def test_a_fresh_command_is_taken_once(gate):
    assert gate.check(SECOND_NS, SECOND_NS, 10.0) == ''
    assert gate.check(SECOND_NS, SECOND_NS, 10.0) == 'repeated'
    assert gate.check(SECOND_NS - 1, SECOND_NS, 10.0) == 'repeated'
    assert gate.check(SECOND_NS + 1, SECOND_NS, 10.0) == ''
    gate.count('taken')
    assert gate.counts == {'taken': 1, 'repeated': 2}


def test_an_old_command_is_refused(gate):
    assert gate.check(0, 200_000_001, 10.0) == 'stale'


def test_a_command_from_the_future_is_refused(gate):
    assert gate.check(SECOND_NS, SECOND_NS - 20_000_001, 10.0) == 'future_stamp'
    assert gate.check(SECOND_NS, SECOND_NS - 20_000_000, 10.0) == ''


@pytest.mark.parametrize('silence_s', [0.101, 1.0, 1e6])
def test_nothing_is_taken_from_a_guard_that_is_silent(gate, silence_s):
    assert gate.check(SECOND_NS, SECOND_NS, 10.0 + silence_s) == 'guard_lost'
    gate.beat(is_active=True, now_s=10.0 + silence_s)
    assert gate.check(SECOND_NS, SECOND_NS, 10.0 + silence_s) == ''


def test_nothing_is_taken_before_the_guard_was_heard_or_while_it_is_not_active(gate):
    assert CommandGate(CONFIG).check(SECOND_NS, SECOND_NS, 0.0) == 'guard_lost'
    gate.beat(is_active=False, now_s=10.0)
    assert gate.check(SECOND_NS, SECOND_NS, 10.0) == 'guard_lost'


def test_a_clock_that_jumps_back_costs_one_command_and_stamps_begin_anew(gate):
    assert gate.check(100 * SECOND_NS, 100 * SECOND_NS, 10.0) == ''
    assert gate.check(50 * SECOND_NS, 50 * SECOND_NS, 10.01) == 'clock_backwards'
    assert gate.check(50 * SECOND_NS + 1, 50 * SECOND_NS + 1, 10.02) == ''


def test_a_clock_that_is_set_back_a_little_lets_no_command_in_twice(gate):
    assert gate.check(SECOND_NS, SECOND_NS, 10.0) == ''
    assert gate.check(SECOND_NS, SECOND_NS - 1000, 10.0) == 'clock_backwards'
    assert gate.check(SECOND_NS, SECOND_NS - 1000, 10.0) == 'repeated'


def test_a_clock_that_jumps_forward_makes_what_was_under_way_stale(gate):
    assert gate.check(SECOND_NS, 100 * SECOND_NS, 10.0) == 'stale'


@given(
    st.lists(
        st.tuples(
            st.integers(-300_000_000, 300_000_000),  # age of the stamp
            st.integers(0, 100_000_000),  # time until the command
            st.booleans(),  # whether the guard beats before
        ),
        max_size=30,
    )
)
def test_whatever_comes_what_is_taken_is_fresh_new_and_guarded(events):
    gate = CommandGate(CONFIG)
    now_ns, beat_ns, taken = SECOND_NS, None, []
    for age_ns, wait_ns, beats in events:
        now_ns += wait_ns
        if beats:
            beat_ns = now_ns
            gate.beat(is_active=True, now_s=now_ns / 1e9)
        if gate.check(now_ns - age_ns, now_ns, now_ns / 1e9) == '':
            assert -20_000_000 <= age_ns <= 200_000_000
            assert beat_ns is not None
            assert now_ns - beat_ns <= 100_001_000  # the rounding of seconds
            taken.append(now_ns - age_ns)
    assert taken == sorted(set(taken))


@pytest.mark.parametrize('values', [(0, 0.1), (0.2, 0), (-1, 1)])
def test_limits_that_are_not_positive_are_refused(values):
    with pytest.raises(ConfigError, match='above 0'):
        GateConfig(*values)
