"""Joints follow a tool: within a millimetre, within limits, or not at all."""

import time
from collections import deque

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vla_cache_ros.core.errors import ConfigError, RobotError, UnknownNameError
from vla_cache_ros.robot.inverse_kinematics import IkConfig, _damped, solve
from vla_cache_ros.robot.joint_targets import JointTargets, TargetConfig
from vla_cache_ros.robot.kinematics import Pose

PERIOD_S = 0.05
READY = np.array([0.0, -0.785, 0.0, -2.356, 0.0, 1.571, 0.785])
SHARES = st.lists(st.floats(0.02, 0.98), min_size=7, max_size=7).map(np.array)
DELTAS = st.lists(st.floats(-1, 1), min_size=6, max_size=6).map(np.array)


def square(side_m: float, steps: int) -> list[np.ndarray]:
    """Deltas along the four sides of a square in the plane of y and z."""
    deltas = []
    for axis, sign in ((1, 1), (2, 1), (1, -1), (2, -1)):
        delta = np.zeros(6)
        delta[axis] = sign * side_m / steps
        deltas += [delta] * steps
    return deltas


def tracker(arm, joints, **settings) -> JointTargets:
    targets = JointTargets(arm, TargetConfig(PERIOD_S, **settings))
    targets.anchor(joints)
    return targets


def test_the_tool_follows_a_square_within_a_millimetre(seven):
    targets = tracker(seven, READY)
    start = wanted = seven.pose(READY)
    worst_m = 0.0
    for delta in square(0.1, 20):  # 5 mm a step: 10 cm/s at 20 Hz
        joints = targets.advance(delta)
        wanted = Pose(wanted.position_m + delta[:3], start.rotation)
        pose = seven.pose(joints)
        worst_m = max(worst_m, np.linalg.norm(pose.position_m - wanted.position_m))
        assert pose.rotation == pytest.approx(start.rotation, abs=0.01)
    assert worst_m < 1e-5
    assert seven.pose(joints).position_m == pytest.approx(start.position_m, abs=1e-5)


def test_five_joints_follow_in_position_and_leave_orientation_free(five):
    joints = np.array([0.1, 0.3, 0.4, 0.5, 7.0])
    ik = IkConfig(rotation_tolerance_rad=3.2, rotation_weight_m=0.01)
    targets = tracker(five, joints, ik=ik)
    wanted_m = five.pose(joints).position_m
    for delta in square(0.04, 20):
        reached = five.pose(targets.advance(delta)).position_m
        wanted_m = wanted_m + delta[:3]
        assert reached == pytest.approx(wanted_m, abs=1e-3)


@given(SHARES)
def test_from_any_state_the_square_is_followed_within_limits_or_refused(seven, shares):
    joints = seven.lower + shares * (seven.upper - seven.lower)
    targets = tracker(seven, joints)
    wanted_m, before = seven.pose(joints).position_m, joints
    lower, upper = seven.lower + 0.02, seven.upper - 0.02
    for delta in square(0.06, 12):
        try:
            reached = targets.advance(delta)
        except RobotError:
            assert (targets.joints == before).all()
            continue
        wanted_m = wanted_m + delta[:3]
        assert np.linalg.norm(seven.pose(reached).position_m - wanted_m) <= 1e-3
        assert (np.abs(reached - before) <= 1.0 * PERIOD_S + 1e-9).all()
        assert (reached >= np.minimum(lower, joints) - 1e-12).all()
        assert (reached <= np.maximum(upper, joints) + 1e-12).all()
        before = reached


@given(st.lists(st.floats(-0.3, 0.3), min_size=7, max_size=7).map(np.array))
def test_around_the_ready_pose_no_step_of_the_square_is_refused(seven, offsets):
    joints = READY + offsets
    targets = tracker(seven, joints)
    wanted_m = seven.pose(joints).position_m
    for delta in square(0.06, 12):
        wanted_m = wanted_m + delta[:3]
        assert seven.pose(targets.advance(delta)).position_m == pytest.approx(wanted_m, abs=1e-4)


@given(DELTAS, st.sampled_from(['base', 'tool']))
def test_a_delta_acts_along_the_axes_of_its_frame(seven, delta, frame):
    displacement = delta * np.repeat([0.01, 0.02], 3)
    targets = tracker(seven, READY, delta_frame=frame, max_speed=2.0)
    before, after = seven.pose(READY), seven.pose(targets.advance(displacement))
    shift_m = after.position_m - before.position_m
    turn = seven.log(after.rotation @ before.rotation.T)
    if frame == 'tool':
        shift_m, turn = before.rotation.T @ shift_m, before.rotation.T @ turn
    assert shift_m == pytest.approx(displacement[:3], abs=1e-6)
    assert turn == pytest.approx(displacement[3:], abs=1e-5)


@given(st.lists(DELTAS, min_size=1, max_size=10))
def test_what_was_done_can_be_undone(seven, deltas):
    targets = tracker(seven, READY)
    scale = np.repeat([0.004, 0.01], 3) * [1, 1, 1, 0, 0, 0]
    for delta in deltas:
        targets.advance(delta * scale)
    for delta in deltas[::-1]:
        targets.advance(-delta * scale)
    assert seven.pose(targets.joints).position_m == pytest.approx(
        seven.pose(READY).position_m, abs=1e-5
    )


def test_null_deltas_do_not_drift(seven):
    targets = tracker(seven, READY)
    for _ in range(1000):
        targets.advance(np.zeros(6))
    assert targets.joints == pytest.approx(READY, abs=1e-9)


def test_a_target_beyond_the_arms_reach_is_refused_and_the_way_back_is_free(seven):
    targets = tracker(seven, READY, max_speed=3.0)
    out = np.array([0.02, 0, 0, 0, 0, 0])
    with pytest.raises(RobotError, match='out of reach.*singular value'):
        deque((targets.advance(out) for _ in range(60)), maxlen=0)
    stuck = targets.joints.copy()
    with pytest.raises(RobotError, match='out of reach'):
        targets.advance(out)
    assert (targets.joints == stuck).all()
    before = seven.pose(stuck).position_m
    for _ in range(5):
        targets.advance(-out)
    assert seven.pose(targets.joints).position_m[0] < before[0] - 0.08


def test_a_delta_that_is_faster_than_the_joints_is_refused_by_name(seven):
    targets = tracker(seven, READY, max_speed=0.1)
    with pytest.raises(RobotError, match='limit of position or speed: joint'):
        targets.advance(np.array([0.05, 0, 0, 0, 0, 0]))


@given(st.integers(0, 2**32 - 1), st.integers(0, 6), st.floats(0, 1), st.integers(1, 7))
def test_damping_bounds_lost_directions_and_leaves_the_others_exact(seed, kept, scale, joints):
    random = np.random.default_rng(seed)
    left, values, right = np.linalg.svd(random.normal(size=(6, joints)), full_matrices=False)
    lost = np.minimum(scale * 0.02 * values, 0.0199)
    values = np.where(np.arange(len(values)) < kept, values + 0.02, lost)
    jacobian, error = (left * values) @ right, random.normal(size=6)
    step = _damped(jacobian, error)
    assert np.isfinite(step).all()
    # s / (s^2 + l^2 (1 - s^2 / l^2)) = s / l^2 with s_0 = l: at most 1 / l, and 0 where s is.
    assert np.linalg.norm(right[kept:] @ step) <= np.linalg.norm(error) / 0.02 + 1e-9
    wanted = (left.T @ error)[:kept] / values[:kept]
    assert (right @ step)[:kept] == pytest.approx(wanted, rel=1e-6, abs=1e-9)


def test_an_arm_that_lies_flat_in_a_singularity_gives_no_infinite_step():
    assert not _damped(np.zeros((6, 7)), np.ones(6)).any()


def test_joints_in_a_singularity_move_slowly_or_not_at_all(seven):
    stretched = np.array([0.0, 0.0, 0.0, -0.0898, 0.0, 1.66, 0.785])
    targets = tracker(seven, stretched, max_speed=2.0)
    for _ in range(20):
        before = targets.joints
        try:
            after = targets.advance(np.array([0.0, 0, 0.001, 0, 0, 0]))
        except RobotError:
            continue
        assert np.abs(after - before).max() <= 2.0 * PERIOD_S + 1e-9


def test_an_arm_that_rests_beyond_its_limits_may_only_come_back(seven):
    joints = READY.copy()
    joints[0] = seven.upper[0] + 0.05
    targets = tracker(seven, joints)
    radius_m = seven.pose(joints).position_m
    tangent = np.array([-radius_m[1], radius_m[0]]) / np.linalg.norm(radius_m[:2])
    delta = np.zeros(6)
    for sign in (-1, 1):
        delta[:2] = sign * 0.005 * tangent
        for _ in range(3):
            targets.advance(delta)
            assert targets.joints[0] <= joints[0]


def test_before_the_first_joint_state_there_is_no_target(seven):
    targets = JointTargets(seven, TargetConfig(PERIOD_S))
    assert targets.joints is None
    assert targets.lag(READY) == 0.0
    with pytest.raises(RobotError, match='no joint state'):
        targets.advance(np.zeros(6))
    targets.anchor(READY)
    assert targets.lag(READY + 0.1) == pytest.approx(0.1)


def test_a_step_is_computed_well_within_a_control_step(seven):
    targets = tracker(seven, READY)
    deltas = square(0.1, 20)
    started_s = time.process_time()
    for delta in deltas:
        targets.advance(delta)
    mean_s = (time.process_time() - started_s) / len(deltas)
    print(f'{1e3 * mean_s:.2f} ms of CPU time a step')  # noqa: T201
    assert mean_s < 0.01


def test_a_start_out_of_reach_of_the_target_leaves_no_nan(seven):
    far = Pose(np.array([50.0, 0, 0]), np.eye(3))
    with pytest.raises(RobotError, match='out of reach'):
        solve(seven, READY, far, seven.lower, seven.upper, IkConfig())


@pytest.mark.parametrize(
    ('settings', 'error'),
    [
        ({'delta_frame': 'world'}, UnknownNameError),
        ({'max_speed': 0.0}, ConfigError),
        ({'limit_margin': -0.1}, ConfigError),
        ({'max_following_error': 0.0}, ConfigError),
    ],
)
def test_settings_out_of_range_are_refused(settings, error):
    with pytest.raises(error):
        TargetConfig(PERIOD_S, **settings)


def test_tolerances_out_of_range_are_refused():
    with pytest.raises(ConfigError, match='position_tolerance_m'):
        IkConfig(position_tolerance_m=0.0)
