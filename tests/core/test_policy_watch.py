from hypothesis import given
from hypothesis import strategies as st

from vla_cache_ros.core.policy_watch import PolicyWatch


def looks(watch: PolicyWatch, start_s: float, end_s: float) -> list[float]:
    """Look every period; the times at which the policy was lost."""
    count = round((end_s - start_s) / watch.period_s)
    times = [start_s + (number + 1) * watch.period_s for number in range(count)]
    return [now_s for now_s in times if watch.look(now_s)]


def test_what_has_never_shown_a_sign_of_life_is_lost():
    watch = PolicyWatch(0.1)
    assert watch.lost
    assert not watch.beat('active', 0.0)
    assert not watch.lost


@given(st.floats(0, 0.9))
def test_silence_is_noticed_within_the_timeout_whatever_its_phase(phase):
    watch = PolicyWatch(0.1)
    watch.beat('active', 0.0)
    lost_s = looks(watch, phase * watch.period_s, 1.0)
    assert len(lost_s) == 1
    assert 0.1 - 2 * watch.period_s <= lost_s[0] <= 0.1 + 1e-9


def test_a_policy_that_says_it_is_not_active_is_lost_at_once():
    watch = PolicyWatch(0.1)
    watch.beat('active', 0.0)
    assert watch.beat('inactive', 0.01)
    assert watch.lost
    assert not watch.beat('inactive', 0.02)


def test_it_is_back_with_its_next_heartbeat():
    watch = PolicyWatch(0.1)
    watch.beat('active', 0.0)
    assert looks(watch, 0.0, 0.2)
    watch.beat('active', 0.3)
    assert not watch.lost


def test_a_watch_that_was_stalled_itself_first_reads_what_has_come():
    watch = PolicyWatch(0.1)
    watch.beat('active', 0.0)
    assert not watch.look(5.0)  # stalled for five seconds; the heartbeats wait in the queue
    watch.beat('active', 5.0)
    assert not looks(watch, 5.0, 5.08)


def test_without_a_timeout_nothing_is_ever_lost():
    watch = PolicyWatch(0.0)
    assert not watch.look(100.0)
    assert not watch.beat('inactive', 0.0)
    assert not watch.lost
    assert watch.period_s == 0
