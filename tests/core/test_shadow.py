"""Comparisons are made when they are due, and what is too far from dense is stopped."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vla_cache_ros.core.errors import ConfigError
from vla_cache_ros.core.shadow import Divergence, Shadow, ShadowConfig, compare_actions


def far(mean: float, flips: int = 0) -> Divergence:
    return Divergence(mean, 2 * mean, flips)


@given(st.lists(st.booleans(), max_size=60), st.integers(1, 6))
def test_every_so_many_steps_one_is_compared_whatever_waits(cached, every):
    shadow = Shadow(ShadowConfig(every_steps=every, gives_way=False))
    since = 0
    for is_cached in cached:
        since += 1
        due = shadow.due(is_cached, is_idle=False)
        assert due == (is_cached and since >= every)
        since = 0 if due else since


@given(st.lists(st.tuples(st.booleans(), st.booleans()), max_size=60), st.integers(0, 6))
def test_a_comparison_that_gives_way_is_made_only_when_idle_and_not_forgotten(steps, every):
    shadow = Shadow(ShadowConfig(every_steps=every))
    since = 0
    for is_cached, is_idle in steps:
        since += 1
        due = shadow.due(is_cached, is_idle)
        assert due == (is_cached and is_idle and 0 < every <= since)
        since = 0 if due else since


def test_when_idle_every_idle_cached_step_is_compared():
    shadow = Shadow(ShadowConfig(when_idle=True))
    assert [shadow.due(cached, idle) for cached in (True, False) for idle in (True, False)] == [
        *(True, False),
        *(False, False),
    ]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=40))
def test_alarm_and_off_follow_the_running_mean_and_off_latches(means):
    config = ShadowConfig(every_steps=1, alarm_budget=0.2, off_budget=0.5, window=4)
    shadow = Shadow(config)
    was_off = False
    for count, mean in enumerate(means, start=1):
        verdict = shadow.record(far(mean))
        running = np.mean(means[max(0, count - 4) : count])
        assert verdict.running == pytest.approx(running)
        if abs(running - 0.5) > 1e-9:
            was_off = was_off or (count >= 3 and running > 0.5)
            assert verdict.off == was_off
        was_off = verdict.off
        if verdict.off:
            assert verdict.alarm
        elif abs(running - 0.2) > 1e-9:
            assert verdict.alarm == (running > 0.2)
    shadow.reset()
    assert not shadow.record(far(0.0)).off


def test_a_gripper_that_differs_alarms_at_once_and_switches_nothing_off():
    shadow = Shadow(ShadowConfig(every_steps=1))
    verdict = shadow.record(far(0.0, flips=1))
    assert (verdict.alarm, verdict.off) == (True, False)
    assert not shadow.record(far(0.0)).alarm


def test_actions_are_compared_as_far_as_they_are_executed():
    cached, dense = np.zeros((2, 7), np.float32), np.zeros((4, 7), np.float32)
    dense[1, 2], dense[0, 6], cached[0, 6], dense[3] = 0.6, 1.0, -1.0, 9.0
    divergence = compare_actions(cached, dense)
    assert divergence is not None
    assert divergence.mean == pytest.approx(0.05)
    assert divergence.max == pytest.approx(0.6)
    assert divergence.gripper_flips == 1
    dense[0, 0] = np.nan
    assert compare_actions(cached, dense) is None


@pytest.mark.parametrize(
    'changes',
    [
        {'every_steps': -1},
        {'window': 0},
        {'alarm_budget': 0.0},
        {'alarm_budget': 0.2, 'off_budget': 0.1},
        {'off_budget': float('inf')},
    ],
)
def test_settings_that_contradict_are_refused(changes):
    with pytest.raises(ConfigError, match='valid'):
        ShadowConfig(**changes)
