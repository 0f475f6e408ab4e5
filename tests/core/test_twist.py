"""A delta becomes a velocity that gives the delta back after one control step, and never more."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from vla_cache_ros.core.errors import ConfigError, ObservationError
from vla_cache_ros.core.twist import DeltaScale, TwistStream

UNITS = st.floats(-1, 1, allow_subnormal=False)
ACTIONS = st.lists(UNITS, min_size=7, max_size=7).map(np.array)
SCALES = st.builds(
    DeltaScale,
    translation_m=st.floats(1e-3, 1),
    rotation_rad=st.floats(1e-3, 1.5),
    control_frequency_hz=st.floats(1, 500),
)


@given(ACTIONS, SCALES)
def test_integrating_the_twist_over_one_period_gives_the_delta_back(action, scale):
    twist = scale.twist(action)
    steps = 64
    position, orientation = np.zeros(3), Rotation.identity()
    for _ in range(steps):
        position = position + twist[:3] * scale.period_s / steps
        orientation = Rotation.from_rotvec(twist[3:] * scale.period_s / steps) * orientation
    wanted = Rotation.from_rotvec(scale.rotation_rad * action[3:6])
    assert position == pytest.approx(scale.translation_m * action[:3], abs=1e-9)
    assert (wanted.inv() * orientation).magnitude() < 1e-9


@given(SCALES)
def test_zero_in_zero_out(scale):
    assert not scale.twist(np.zeros(7)).any()


@given(ACTIONS, st.integers(0, 5), st.sampled_from([math.nan, math.inf, -math.inf]), SCALES)
def test_an_action_that_is_not_finite_is_refused(action, axis, value, scale):
    action[axis] = value
    with pytest.raises(ObservationError, match='six finite numbers'):
        scale.twist(action)


def test_an_action_that_is_too_short_is_refused():
    with pytest.raises(ObservationError, match='six finite numbers'):
        DeltaScale(1.0, 1.0, 20.0).displacement(np.zeros(5))


@pytest.mark.parametrize('values', [(0, 1, 1), (1, -1, 1), (1, 1, 0), (math.nan, 1, 1)])
def test_scales_that_are_not_positive_are_refused(values):
    with pytest.raises(ConfigError, match='above 0'):
        DeltaScale(*values)


@given(ACTIONS, st.integers(1, 500), st.integers(1, 1000))
def test_what_is_handed_out_adds_up_to_one_control_step(action, control_hz, publish_hz):
    twist = DeltaScale(0.05, 0.5, control_hz).twist(action)
    stream = TwistStream(1 / control_hz, 1 / publish_hz)
    stream.load(twist, now_s=100.0)
    total = np.zeros(6)
    for tick in range(math.ceil(publish_hz / control_hz) + 2):
        total += stream.sample(100.0 + tick / publish_hz) / publish_hz
    # A value is a promise for a whole publish period; one that is longer than the control step
    # is scaled down to it.
    assert total == pytest.approx(twist / control_hz, rel=1e-5, abs=1e-9)
    assert not stream.sample(100.0 + 1 / control_hz + 1e-6).any()


@given(ACTIONS, st.lists(st.floats(0.5, 1.5), min_size=20, max_size=20))
def test_late_ticks_execute_no_more_than_the_delta_and_one_publish_period(action, jitter):
    period_s, publish_s = 0.05, 0.01
    twist = DeltaScale(0.05, 0.5, 1 / period_s).twist(action)
    stream = TwistStream(period_s, publish_s)
    stream.load(twist, now_s=0.0)
    now_s, total = 0.0, np.zeros(6)
    for share in jitter:
        total += stream.sample(now_s) * share * publish_s
        now_s += share * publish_s
    assert (np.abs(total - twist * period_s) <= np.abs(twist) * publish_s + 1e-12).all()


@given(st.lists(ACTIONS, min_size=2, max_size=5), st.floats(0.001, 0.2))
def test_the_speed_is_never_above_the_commanded_one(actions, interval_s):
    scale = DeltaScale(0.05, 0.5, 20.0)
    stream = TwistStream(scale.period_s, 0.01)
    for index, action in enumerate(actions):
        stream.load(scale.twist(action), index * interval_s)
        for tick in range(10):
            handed_out = stream.sample(index * interval_s + 0.01 * tick)
            assert (np.abs(handed_out) <= np.abs(scale.twist(action)) + 1e-12).all()


def test_stopping_drops_what_is_left():
    stream = TwistStream(0.05, 0.01)
    stream.load(np.ones(6), now_s=0.0)
    assert stream.sample(0.01).all()
    stream.stop()
    assert not stream.sample(0.011).any()


@pytest.mark.parametrize('periods', [(0, 0.01), (0.05, 0), (math.nan, 0.01)])
def test_periods_that_are_not_positive_are_refused(periods):
    with pytest.raises(ConfigError, match='above 0'):
        TwistStream(*periods)
