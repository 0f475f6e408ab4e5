"""The gripper is told when something changes, until it has taken it over."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vla_cache_ros.core.errors import ConfigError
from vla_cache_ros.core.gripper_switch import GripperSwitch


@pytest.fixture
def switch() -> GripperSwitch:
    return GripperSwitch(0.2)


def test_it_is_told_on_change_alone(switch):
    assert switch.update(1.0, moves=True) is True
    switch.told()
    assert switch.update(1.0, moves=True) is None
    assert switch.update(-1.0, moves=True) is False
    switch.told()
    assert switch.update(-0.9, moves=False) is None


def test_it_is_told_again_until_it_got_through(switch):
    assert switch.update(1.0, moves=True) is True
    assert switch.update(1.0, moves=True) is True
    switch.told()
    switch.forget()
    assert switch.update(1.0, moves=False) is True


def test_values_near_zero_hold(switch):
    assert switch.update(0.2, moves=True) is None
    assert switch.update(0.21, moves=True) is True
    switch.told()
    assert switch.update(-0.2, moves=True) is None
    assert switch.update(0.0, moves=True) is None
    assert switch.update(-0.21, moves=True) is False


def test_a_change_that_was_overtaken_is_not_told(switch):
    assert switch.update(1.0, moves=True) is True
    switch.told()
    assert switch.update(-1.0, moves=True) is False  # did not get through
    assert switch.update(1.0, moves=True) is None


def test_null_actions_before_the_first_motion_leave_the_gripper_alone(switch):
    assert switch.update(-1.0, moves=False) is None
    assert switch.update(-1.0, moves=True) is False


@pytest.mark.parametrize('value', [math.nan, math.inf])
def test_a_value_that_is_not_finite_changes_nothing(switch, value):
    assert switch.update(value, moves=True) is None


def test_asleep_it_leaves_what_it_holds_to_a_guard_that_began_anew(switch):
    assert switch.update(1.0, moves=True) is True
    switch.told()
    switch.sleep()
    assert switch.update(-1.0, moves=False) is None  # a new guard's null action
    assert switch.update(1.0, moves=True) is None
    assert switch.update(-1.0, moves=True) is False


@given(st.lists(st.floats(-1, 1)), st.floats(0, 0.9))
def test_it_follows_the_last_value_beyond_the_threshold(values, threshold):
    switch = GripperSwitch(threshold)
    closed = None
    for value in values:
        change = switch.update(value, moves=True)
        switch.told()
        closed = closed if change is None else change
    clear = [value for value in values if abs(value) > threshold]
    assert closed == (clear[-1] > 0 if clear else None)


@pytest.mark.parametrize('threshold', [-0.1, 1.0, math.nan])
def test_a_threshold_out_of_range_is_refused(threshold):
    with pytest.raises(ConfigError, match='gripper_threshold'):
        GripperSwitch(threshold)
