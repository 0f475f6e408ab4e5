"""The nearest value is found whatever the order of arrival, and the memory stays bounded."""

from hypothesis import given
from hypothesis import strategies as st

from vla_cache_ros.core.time_series import TimeSeries

HORIZON_NS = 100


@given(
    st.lists(st.integers(0, HORIZON_NS), min_size=1, max_size=60),
    st.integers(-20, 120),
    st.integers(0, 30),
)
def test_the_nearest_within_the_tolerance_is_found_in_any_order(stamps, wanted, tolerance):
    series = TimeSeries[int](HORIZON_NS)
    for stamp_ns in stamps:
        series.add(stamp_ns, stamp_ns)
    found = series.nearest(wanted, tolerance)
    distance = min(abs(stamp_ns - wanted) for stamp_ns in stamps)
    if distance > tolerance:
        assert found is None
    else:
        assert found is not None
        assert abs(found - wanted) == distance


@given(st.lists(st.integers(1, 40), max_size=300), st.integers(2, 50))
def test_what_is_younger_than_the_horizon_is_kept_and_no_more_than_allowed(gaps, most):
    series = TimeSeries[int](HORIZON_NS, most=most)
    stamps = [0]
    for gap_ns in gaps:
        stamps.append(stamps[-1] + gap_ns)
    for stamp_ns in stamps:
        series.add(stamp_ns, stamp_ns)
        assert len(series) <= most
    young = [s for s in stamps if s >= stamps[-1] - HORIZON_NS][-(most // 2) :]
    assert all(series.nearest(stamp_ns, 0) == stamp_ns for stamp_ns in young)
    assert len(series) <= len([s for s in stamps if s >= stamps[-1] - 2 * HORIZON_NS])


def test_a_clock_that_is_set_back_begins_anew():
    series = TimeSeries[str](HORIZON_NS)
    series.add(1000, 'before')
    series.add(10, 'after')
    assert series.nearest(1000, 1000) == 'after'
    assert len(series) == 1


def test_an_empty_history_has_nothing_near():
    assert TimeSeries[int](HORIZON_NS).nearest(0, 10**9) is None
