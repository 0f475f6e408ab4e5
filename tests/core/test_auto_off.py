from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from vla_cache_ros.core.auto_off import AutoOff
from vla_cache_ros.core.config import ReuseConfig

CONFIG = replace(
    ReuseConfig(), auto_off_min_steps=3, auto_off_window_steps=5, auto_off_probe_steps=4
)


def feed(judge: AutoOff, dense_ms: float, cached_ms: float, times: int) -> None:
    for _ in range(times):
        judge.record(cached=False, step_ms=dense_ms)
        judge.record(cached=True, step_ms=cached_ms)


def test_it_does_not_judge_before_it_has_seen_enough():
    judge = AutoOff(CONFIG)
    feed(judge, 10, 20, 2)
    assert judge.reason == ''
    feed(judge, 10, 20, 1)
    assert judge.reason == 'does not pay: cached 20.00 ms, dense 10.00 ms'


def test_outliers_do_not_decide():
    judge = AutoOff(CONFIG)
    for cached_ms in (5, 5, 900, 5, 900):
        feed(judge, 10, cached_ms, 1)
    assert judge.reason == ''


def test_the_margin_asks_for_a_clear_gain():
    judge = AutoOff(replace(CONFIG, auto_off_margin=0.2))
    feed(judge, 10, 9, 3)
    assert judge.reason


def test_it_probes_again_and_judges_by_new_times_alone():
    judge = AutoOff(CONFIG)
    feed(judge, 10, 20, 3)
    for _ in range(4):
        assert judge.reason
        judge.record(cached=False, step_ms=10)
    assert judge.reason == ''
    assert judge.probing
    for _ in range(3):
        judge.record(cached=True, step_ms=5)
    assert judge.reason == ''
    assert not judge.probing


def test_it_can_be_disabled():
    judge = AutoOff(replace(CONFIG, auto_off=False))
    feed(judge, 1, 100, 20)
    assert judge.reason == ''


@given(st.lists(st.tuples(st.booleans(), st.floats(0.1, 100)), max_size=60))
def test_it_depends_on_its_inputs_alone(times):
    reasons = []
    for _ in range(2):
        judge = AutoOff(CONFIG)
        reasons.append([(judge.record(*time), judge.reason) for time in times])
    assert reasons[0] == reasons[1]
