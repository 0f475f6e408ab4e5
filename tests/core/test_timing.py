import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vla_cache_ros.core.errors import ConfigError
from vla_cache_ros.core.timing import LatencyWindow, RateMeter, StageClock


class FakeClock:
    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def test_stages_are_timed_in_order_and_repeats_add_up():
    clock = FakeClock()
    stages = StageClock(clock)
    for name, seconds in (('vision', 0.25), ('decoder', 0.5), ('vision', 0.125)):
        with stages(name):
            clock.seconds += seconds
    stages.add('diff', 1.5)
    assert list(stages.stage_ms.items()) == [('vision', 375), ('decoder', 500), ('diff', 1.5)]
    stages.reset()
    assert stages.stage_ms == {}


def test_a_stage_that_raises_is_timed():
    clock = FakeClock()
    stages = StageClock(clock)

    def fail():
        with stages('vision'):
            clock.seconds += 1
            raise ValueError

    with pytest.raises(ValueError):  # noqa: PT011 - raised above, and it carries no message
        fail()
    assert stages.stage_ms == {'vision': 1000}


@given(st.lists(st.floats(0, 1e4), min_size=1, max_size=40), st.integers(1, 20))
def test_every_statistic_is_over_the_same_window(values, size):
    window = LatencyWindow(size)
    for value in values:
        window.add(value)
    kept = np.array(values[-size:])
    summary = window.summary()
    assert summary is not None
    assert summary.count == len(window) == len(kept)
    assert summary.max_ms == kept.max()
    assert summary.mean_ms == pytest.approx(kept.mean())
    percentiles = (summary.p50_ms, summary.p95_ms, summary.p99_ms)
    assert percentiles == pytest.approx(tuple(np.percentile(kept, (50, 95, 99))))


def test_an_empty_window_has_no_summary():
    assert LatencyWindow().summary() is None


@given(st.integers(1, 10**9), st.integers(1, 30))
def test_a_steady_stream_is_measured_exactly(period_ns, ticks):
    meter = RateMeter(window=10, deadline_ms=period_ns / 1e6 * 1.5)
    for tick in range(ticks):
        meter.tick(tick * period_ns)
    assert meter.hz() == pytest.approx(1e9 / period_ns if ticks > 1 else 0)
    assert (meter.ticks, meter.deadline_misses, meter.clock_jumps) == (ticks, 0, 0)


def test_late_events_miss_the_deadline():
    meter = RateMeter(deadline_ms=50)
    for stamp_ms in (0, 50, 101, 120, 300):
        meter.tick(stamp_ms * 1_000_000)
    assert meter.deadline_misses == 2


def test_the_rate_of_a_stalled_stream_falls():
    meter = RateMeter()
    for stamp_ms in (0, 100, 200):
        meter.tick(stamp_ms * 1_000_000)
    assert meter.hz(300_000_000) == pytest.approx(10)
    assert meter.hz(1_200_000_000) == pytest.approx(2 / 1.1)


def test_a_restarted_clock_restarts_the_window():
    meter = RateMeter(deadline_ms=50)
    for stamp_ms in (5000, 5040, 0, 20, 40):
        meter.tick(stamp_ms * 1_000_000)
    assert meter.clock_jumps == 1
    assert meter.hz() == pytest.approx(50)
    assert meter.deadline_misses == 0


@pytest.mark.parametrize(
    'make',
    [
        lambda: LatencyWindow(0),
        lambda: RateMeter(window=0),
        lambda: RateMeter(deadline_ms=0),
        lambda: RateMeter(deadline_ms=float('nan')),
    ],
)
def test_windows_and_deadlines_must_be_positive(make):
    with pytest.raises(ConfigError, match='at least 1|greater than 0'):
        make()
