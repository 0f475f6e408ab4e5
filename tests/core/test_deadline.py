"""The pressure rises at once, falls slowly, and never leaves [0, 1]."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vla_cache_ros.core.deadline import DeadlineConfig, ExpectedRefresh, ReusePressure
from vla_cache_ros.core.errors import ConfigError

TIMES = st.lists(st.floats(0, 1000), max_size=60)


@given(TIMES, st.floats(0.01, 1), st.floats(0.01, 1))
def test_the_pressure_stays_in_range_and_follows_the_rule(times_ms, rise, share):
    config = DeadlineConfig(100.0, rise=rise, fall=share * rise)
    pressure = ReusePressure(config)
    for time_ms in times_ms:
        before = pressure.value
        missed = pressure.record(time_ms)
        assert missed == (time_ms > 100)
        assert 0 <= pressure.value <= 1
        if missed:
            assert pressure.value == min(1.0, before + rise)
        elif time_ms <= 80:
            assert pressure.value == max(0.0, before - config.fall)
        else:
            assert pressure.value == before


@given(TIMES)
def test_without_a_deadline_nothing_is_late(times_ms):
    pressure = ReusePressure(DeadlineConfig())
    assert not any(pressure.record(time_ms) for time_ms in times_ms)
    assert pressure.value == 0


def test_it_is_up_after_two_late_refreshes_and_down_after_twenty_in_time():
    pressure = ReusePressure(DeadlineConfig(100.0))
    pressure.record(150.0)
    pressure.record(150.0)
    assert pressure.value == 1
    for _ in range(19):
        pressure.record(50.0)
        assert pressure.value > 0
    pressure.record(50.0)
    assert pressure.value == pytest.approx(0, abs=1e-9)


def test_a_time_that_is_no_number_is_late():
    assert ReusePressure(DeadlineConfig(100.0)).record(float('nan'))


@pytest.mark.parametrize(
    'changes',
    [{'deadline_ms': -1.0}, {'fall': 0.6}, {'fall': 0.0}, {'rise': 1.5}, {'comfort': 0.0}],
)
def test_settings_out_of_range_are_refused(changes):
    with pytest.raises(ConfigError, match='valid'):
        DeadlineConfig(**changes)


@given(st.lists(st.floats(0, 1000), min_size=1, max_size=30), st.integers(1, 10))
def test_the_expectation_is_the_longest_of_the_last(times_ms, window):
    expected = ExpectedRefresh(window)
    assert expected.ms == 0
    for time_ms in times_ms:
        expected.record(time_ms)
    assert expected.ms == max(times_ms[-window:])
