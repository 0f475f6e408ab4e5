import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vla_cache_ros.core.errors import ConfigError
from vla_cache_ros.core.guard import CommandGuard
from vla_cache_ros.core.guard_config import GuardConfig, JointLimits
from vla_cache_ros.core.guard_limits import limit_change, limit_length, limit_workspace

MS = 1_000_000
PERIOD_MS = 50

numbers = st.floats(-2, 2, allow_subnormal=False)
vectors = st.tuples(numbers, numbers, numbers).map(np.array)


def make_guard(**changes) -> CommandGuard:
    """LIBERO's units: 0.05 m and 0.5 rad per unit and step, 20 steps per second."""
    scales = {'position_scale_m': 0.05, 'rotation_scale_rad': 0.5}
    return CommandGuard(GuardConfig(**(scales | changes)))


def move(*xyz: float, rotation=(0, 0, 0), gripper: float = -1) -> np.ndarray:
    return np.array([*xyz, *rotation, gripper], np.float32)


def send(guard: CommandGuard, *actions: np.ndarray, start: int = 0):
    """One action per step, each from an image of that step."""
    return [
        guard.check(action, number * PERIOD_MS * MS, number * PERIOD_MS * MS, number)
        for number, action in enumerate(actions, start=start)
    ]


# Pure functions


@given(vectors, st.floats(0.01, 3))
def test_a_limited_vector_keeps_its_direction_and_its_length_where_it_may(vector, limit):
    limited, changed = limit_length(vector, limit)
    assert changed == (np.linalg.norm(vector) > limit)
    assert np.linalg.norm(limited) <= limit * (1 + 1e-12)
    assert np.linalg.norm(np.cross(limited, vector)) == pytest.approx(0, abs=1e-9)
    assert limited @ vector >= 0
    assert changed or np.array_equal(limited, vector)


@given(vectors, vectors, st.floats(0.01, 3))
def test_a_limited_change_lies_between_before_and_after(vector, before, limit):
    limited, _ = limit_change(vector, before, limit)
    assert np.linalg.norm(limited - before) <= limit * (1 + 1e-9)
    assert np.linalg.norm(limited) <= max(np.linalg.norm(vector), np.linalg.norm(before)) + 1e-9


@given(vectors, vectors)
def test_nothing_leaves_the_workspace_and_from_outside_only_the_way_back_is_open(position, delta):
    lower, upper = np.full(3, -1.0), np.full(3, 1.0)
    moved, stopped, outside = limit_workspace(position, delta, lower, upper)
    assert outside == bool((abs(position) > 1).any())
    assert np.array_equal(moved, np.where(stopped, 0, delta))
    after = position + moved
    for axis in range(3):
        if abs(position[axis]) <= 1:
            assert abs(after[axis]) <= 1
            assert not (outside and moved[axis])
        else:
            assert abs(after[axis]) <= abs(position[axis])
    if not outside and (abs(position + delta) <= 1).all():
        assert np.array_equal(moved, delta)


# Speed, acceleration, jump


def test_speed_is_scaled_down_keeping_the_direction():
    guard = make_guard(max_linear_velocity_m_s=0.5)
    command = send(guard, move(0.6, 0.8, 0))[0]  # 0.05 m in 0.05 s: 1 m/s
    assert command.reasons == ('linear_velocity',)
    assert command.action[:3] == pytest.approx([0.3, 0.4, 0])


def test_rotation_has_a_limit_of_its_own():
    guard = make_guard(max_angular_velocity_rad_s=2.5, max_linear_velocity_m_s=9)
    command = send(guard, move(1, 0, 0, rotation=(0, 0.5, 0)))[0]  # 0.25 rad in 0.05 s: 5 rad/s
    assert command.reasons == ('angular_velocity',)
    assert command.action.tolist() == pytest.approx([1, 0, 0, 0, 0.25, 0, -1])


def test_speed_may_be_refused_instead():
    guard = make_guard(max_linear_velocity_m_s=0.5, on_limit='null')
    command = send(guard, move(1, 0, 0))[0]
    assert command.is_null
    assert command.reasons == ('linear_velocity',)


def test_acceleration_ramps_up_and_a_stop_is_immediate():
    guard = make_guard(max_linear_acceleration_m_s2=4)  # 0.01 m more per step: 0.2 units
    commands = send(guard, *[move(1, 0, 0)] * 6)
    assert [c.action[0] for c in commands] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1, 1])
    assert commands[0].reasons == ('linear_acceleration',)
    stop, again = (
        guard.check(None, 0, 300 * MS),
        guard.check(move(1, 0, 0), 350 * MS, 350 * MS, 9),
    )
    assert not stop.action[:6].any()
    assert again.action[0] == pytest.approx(0.2)


def test_a_spike_is_refused_and_what_follows_passes():
    guard = make_guard(max_linear_jump_m=0.01)
    commands = send(guard, move(0.1, 0, 0), move(0.9, 0, 0), move(0.15, 0, 0), move(0.1, 0, 0))
    assert [c.reasons for c in commands] == [(), ('jump',), (), ()]
    assert commands[1].is_null
    assert guard.counts['jump'] == 1


def test_what_stays_where_it_jumped_to_passes_from_its_second_step_on():
    guard = make_guard(max_angular_jump_rad=0.1)
    turned = move(0, 0, 0, rotation=(0.9, 0, 0))
    commands = send(guard, move(0, 0, 0), turned, turned)
    assert [c.reasons for c in commands] == [(), ('jump',), ()]


# Workspace


BOX = {'workspace_lower_m': (0.0, 0.0, 0.0), 'workspace_upper_m': (0.5, 0.5, 0.5)}


def test_what_leads_out_of_the_workspace_is_stopped_axis_by_axis():
    guard = make_guard(**BOX)
    guard.robot.see_pose((0.48, 0.25, 0.01), 1, 0)
    command = send(guard, move(1, 1, -1, rotation=(0.1, 0, 0)))[0]
    assert command.action[:4] == pytest.approx([0, 1, 0, 0.1])
    assert command.reasons == ('workspace_x', 'workspace_z')
    assert not command.is_null


def test_from_outside_only_motion_back_passes():
    guard = make_guard(**BOX)
    guard.robot.see_pose((0.6, 0.25, 0.25), 1, 0)
    command = send(guard, move(-1, 1, 0, rotation=(0.1, 0, 0)))[0]
    assert command.action.tolist() == [-1, 0, 0, 0, 0, 0, -1]
    assert command.reasons == ('workspace_y', 'workspace_outside')


@pytest.mark.parametrize('position', [None, (float('nan'), 0.2, 0.2)])
def test_without_a_pose_nothing_moves_in_a_workspace(position):
    guard = make_guard(**BOX)
    if position is not None:
        guard.robot.see_pose(position, 1, 0)
    command = send(guard, move(1, 0, 0))[0]
    assert command.is_null
    assert command.reasons == ('no_pose',)


def test_an_old_pose_a_frozen_one_and_one_from_another_time_are_none():
    guard = make_guard(**BOX, state_timeout_s=0.1, max_age_ms=60_000)
    guard.robot.see_pose((0.2, 0.2, 0.2), 1, 0)
    assert guard.check(move(0.1, 0, 0), 0, 100 * MS, 0).reasons == ()
    assert guard.check(move(0.1, 0, 0), 0, 101 * MS, 1).reasons == ('no_pose',)
    guard.robot.see_pose((0.2, 0.2, 0.2), 1, 101 * MS)  # the same stamp: the driver repeats itself
    assert guard.check(move(0.1, 0, 0), 0, 102 * MS, 2).reasons == ('no_pose',)
    guard.robot.see_pose((0.2, 0.2, 0.2), 2, 900 * MS)
    assert guard.check(move(0.1, 0, 0), 0, 110 * MS, 3).reasons == ('no_pose',)
    guard.robot.see_pose((0.2, 0.2, 0.2), 3, 110 * MS)
    assert guard.check(move(0.1, 0, 0), 0, 120 * MS, 4).reasons == ()


# Joints


JOINTS = JointLimits(('a', 'b'), (-1, -2), (1, 2), (1.0, 1.0), margin_rad=0.1)


@pytest.mark.parametrize(
    ('positions', 'speeds', 'reason'),
    [
        ({'a': 0, 'b': 0}, {}, ()),
        ({'a': 0.9, 'b': -1.9}, {'a': 1.0, 'b': -1.0}, ()),
        ({'a': 0.91, 'b': 0}, {}, ('joint_position',)),
        ({'a': 0, 'b': -1.91}, {}, ('joint_position',)),
        ({'a': 0, 'b': 0}, {'b': -1.1}, ('joint_velocity',)),
        ({'a': 0, 'b': 0}, {'b': float('nan')}, ('joint_velocity',)),
        ({'a': 0, 'b': float('nan')}, {}, ('no_joint_states',)),
        ({'a': 0}, {}, ('no_joint_states',)),
        ({'finger': 0}, {}, ('no_joint_states',)),
    ],
)
def test_joints_beyond_their_limits_hold_the_arm(positions, speeds, reason):
    guard = make_guard(joints=JOINTS)
    guard.robot.see_joints(positions, speeds, 1, 0)
    command = send(guard, move(1, 0, 0))[0]
    assert (command.reasons, command.is_null) == (reason, bool(reason))


def test_speed_that_is_not_measured_follows_from_the_positions():
    guard = make_guard(joints=JOINTS)
    guard.robot.see_joints({'a': 0, 'b': 0}, {}, 0, 0)
    guard.robot.see_joints({'a': 0.06, 'b': 0}, {}, 50 * MS, 50 * MS)
    assert guard.check(move(1, 0, 0), 50 * MS, 50 * MS, 0).reasons == ('joint_velocity',)


def test_speed_follows_from_the_positions_of_a_driver_that_stamps_nothing():
    guard = make_guard(joints=JOINTS)
    guard.robot.see_joints({'a': 0, 'b': 0}, {}, 0, 1)
    guard.robot.see_joints({'a': 0.06, 'b': 0}, {}, 0, 50 * MS)
    assert guard.check(move(1, 0, 0), 50 * MS, 50 * MS, 0).reasons == ('joint_velocity',)


def test_a_joint_state_that_comes_twice_is_no_arm_that_stands():
    guard = make_guard(joints=JOINTS)
    guard.robot.see_joints({'a': 0, 'b': 0}, {}, 1, 1)
    for _ in range(2):
        guard.robot.see_joints({'a': 0.06, 'b': 0}, {}, 50 * MS, 50 * MS)
    assert guard.check(move(1, 0, 0), 50 * MS, 50 * MS, 0).reasons == ('joint_velocity',)


def test_a_grippers_own_joint_states_do_not_hide_the_arms():
    guard = make_guard(joints=JOINTS)
    guard.robot.see_joints({'a': 0, 'b': 0}, {}, 1, 0)
    guard.robot.see_joints({'finger': 0}, {}, 2, 0)
    assert send(guard, move(1, 0, 0))[0].reasons == ()


# Gripper


def test_a_gripper_that_would_switch_too_soon_is_held_and_the_arm_moves():
    guard = make_guard(gripper_interval_s=0.12)
    commands = send(guard, *[move(1, 0, 0, gripper=g) for g in (1, -1, 0, -1, -1, 1)])
    assert [c.action[6] for c in commands] == [1, 1, 0, -1, -1, -1]
    assert commands[1].reasons == ('gripper_interval',)
    assert [c.action[0] for c in commands] == [1] * 6


# Configuration


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'workspace_lower_m': (0.0,) * 3}, 'workspace'),
        ({'workspace_lower_m': (0.0,) * 3, 'workspace_upper_m': (1.0, 0.0, 1.0)}, 'workspace'),
        ({'workspace_lower_m': (0.0,) * 2, 'workspace_upper_m': (1.0,) * 2}, 'workspace'),
        ({'max_linear_velocity_m_s': -1.0}, 'max_linear_velocity_m_s'),
        ({'max_linear_velocity_m_s': float('nan')}, 'max_linear_velocity_m_s'),
        ({'position_scale_m': 0.0}, 'position_scale_m'),
        ({'max_linear_jump_m': float('inf')}, 'max_linear_jump_m'),
    ],
)
def test_limits_that_contradict_are_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        make_guard(**change)


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ((('a',), (), ()), 'one of each'),
        ((('a', 'a'), (0, 0), (1, 1)), 'once'),
        ((('a',), (1,), (1,)), 'no room'),
        ((('a',), (float('nan'),), (1,)), 'no room'),
        ((('a',), (0,), (1,), (0,)), 'above 0'),
        ((('a',), (0,), (1,), (), 0.5), 'no room'),
        ((('a',), (0,), (1,), (), -1.0), 'at least 0'),
    ],
)
def test_joint_limits_that_contradict_are_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        JointLimits(*arguments)
