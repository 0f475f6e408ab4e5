"""Deadline, shadow mode and the switch of the reuse, in the node."""

import time

import pytest
from rclpy.lifecycle import TransitionCallbackReturn
from std_srvs.srv import SetBool, Trigger

from vla_cache_ros.nodes.conversions import stamp_to_ns

from .policy_robot import SECOND_NS, Robot

pytestmark = pytest.mark.ros


@pytest.fixture
def make_robot(executor, spin_until, cached_policy):
    def make(**parameters) -> Robot:
        return Robot(executor, spin_until, cached_policy, **parameters).activate()

    return make


def play(robot: Robot, seconds) -> None:
    """One observation each, answered before the next."""
    for second in seconds:
        robot.send(second * SECOND_NS)
        robot.expect_chunk(second * SECOND_NS)


def steps(robot: Robot) -> list:
    return [report for report in robot.reports if not report.dropped]


# Shadow mode


def test_every_so_many_steps_are_compared_after_their_chunk_is_out(make_robot, cached_policy):
    robot = make_robot(shadow_every_steps=3)
    cached_policy.error = 0.01
    play(robot, range(1, 10))
    robot.spin_until(lambda: len(robot.shadow_reports) == 3)
    stamps = [stamp_to_ns(report.header.stamp) for report in robot.shadow_reports]
    assert stamps == [3 * SECOND_NS, 6 * SECOND_NS, 9 * SECOND_NS]
    for report in robot.shadow_reports:
        assert report.mean_difference == pytest.approx(0.01, rel=1e-3)
        assert (report.gripper_flips, report.alarm, report.switched_off) == (0, False, False)
        assert report.dense_ms > 0
        assert report.cached_ms > 0
    assert cached_policy.twin.followed == 9  # also where it is not asked


def test_the_chunk_does_not_wait_for_its_check(make_robot, cached_policy):
    robot = make_robot(shadow_when_idle=True)
    cached_policy.twin.go.clear()
    robot.send(SECOND_NS)
    robot.spin_until(cached_policy.twin.begun.is_set)
    assert len(robot.expect_chunk(SECOND_NS)) == 8
    assert robot.shadow_reports == []
    cached_policy.twin.go.set()
    robot.spin_until(lambda: robot.shadow_reports)


@pytest.mark.parametrize('gives_way', [True, False])
def test_a_check_gives_way_to_an_observation_that_waits(make_robot, cached_policy, gives_way):
    robot = make_robot(shadow_every_steps=1, shadow_gives_way=gives_way)
    cached_policy.go.clear()
    robot.send(SECOND_NS)
    robot.spin_until(cached_policy.begun.is_set)
    robot.send(2 * SECOND_NS)
    robot.spin_until(lambda: not robot.node._inference._worker.is_idle)
    cached_policy.go.set()
    robot.expect_chunk(2 * SECOND_NS)
    robot.spin_until(lambda: len(robot.shadow_reports) == (1 if gives_way else 2))
    assert stamp_to_ns(robot.shadow_reports[-1].header.stamp) == 2 * SECOND_NS


def test_beyond_the_first_budget_it_alarms_and_goes_on(make_robot, cached_policy):
    robot = make_robot(shadow_every_steps=1, shadow_alarm_budget=0.05, shadow_off_budget=0.2)
    cached_policy.error = 0.1
    play(robot, range(1, 6))
    robot.spin_until(lambda: len(robot.shadow_reports) == 5)
    assert all(report.alarm and not report.switched_off for report in robot.shadow_reports)
    assert cached_policy.off_reason == ''


def test_beyond_the_second_the_reuse_is_off_until_reset(make_robot, cached_policy):
    robot = make_robot(shadow_every_steps=1, shadow_alarm_budget=0.05, shadow_off_budget=0.2)
    cached_policy.error = 0.5
    play(robot, range(1, 4))
    robot.spin_until(lambda: len(robot.shadow_reports) == 3)
    assert [report.switched_off for report in robot.shadow_reports] == [False, False, True]
    play(robot, range(4, 7))
    robot.spin_until(lambda: len(steps(robot)) == 6)
    for report in steps(robot)[3:]:
        assert report.mode == 'dense'
        assert 'running difference 0.5' in report.off_reason
    assert len(robot.shadow_reports) == 3  # what is dense needs no check

    robot.tell('pull the point')  # another task is no reason to trust it again
    play(robot, [7])
    robot.spin_until(lambda: len(steps(robot)) == 7)
    assert steps(robot)[-1].mode == 'dense'

    cached_policy.error = 0.0
    assert robot.call(Trigger, 'reset').success
    play(robot, [8, 9])
    robot.spin_until(lambda: len(robot.shadow_reports) == 5)
    assert [report.mode for report in steps(robot)[7:]] == ['cached', 'cached']
    assert not robot.shadow_reports[-1].alarm


def test_a_check_that_fails_stops_nothing(make_robot, cached_policy):
    robot = make_robot(shadow_every_steps=1)
    cached_policy.twin.fault = RuntimeError('out of memory')
    play(robot, [1, 2])
    cached_policy.twin.fault, cached_policy.twin.fill = None, float('nan')
    play(robot, [3])
    cached_policy.twin.fill = None
    play(robot, [4])
    robot.spin_until(lambda: len(robot.shadow_reports) == 1)
    assert robot.node.drops == {}


def test_a_policy_without_a_dense_twin_cannot_be_shadowed(executor, spin_until, policy):
    robot = Robot(executor, spin_until, policy, shadow_every_steps=1)
    assert robot.node.trigger_configure() == TransitionCallbackReturn.FAILURE
    assert robot.state == 'unconfigured'


def test_budgets_that_contradict_make_configure_fail(executor, spin_until, cached_policy):
    robot = Robot(executor, spin_until, cached_policy, shadow_alarm_budget=0.5)
    assert robot.node.trigger_configure() == TransitionCallbackReturn.FAILURE


# By hand


def test_the_reuse_is_switched_by_hand_and_a_reset_does_not_undo_it(make_robot):
    robot = make_robot()
    play(robot, [1])
    assert robot.call(SetBool, 'set_cache', data=False).success
    play(robot, [2])
    assert robot.call(Trigger, 'reset').success
    play(robot, [3])
    assert robot.call(SetBool, 'set_cache', data=True).success
    play(robot, [4])
    robot.spin_until(lambda: len(steps(robot)) == 4)
    found = [(report.mode, report.off_reason) for report in steps(robot)]
    by_hand = ('dense', 'switched off by hand')
    assert found == [('cached', ''), by_hand, by_hand, ('cached', '')]


def test_a_policy_without_reuse_says_so(executor, spin_until, policy):
    robot = Robot(executor, spin_until, policy).activate()
    answer = robot.call(SetBool, 'set_cache', data=False)
    assert not answer.success
    assert 'no reuse' in answer.message


# Deadline


def test_late_refreshes_raise_the_pressure_and_those_in_time_take_it_back(
    make_robot, cached_policy
):
    robot = make_robot(refresh_deadline_ms=200.0, refresh_deadline_from='receipt')
    play(robot, [1])
    cached_policy.go.clear()
    for second in (2, 3):
        cached_policy.begun.clear()
        robot.send(second * SECOND_NS)
        robot.spin_until(cached_policy.begun.is_set)
        time.sleep(0.25)
        cached_policy.go.set()
        robot.expect_chunk(second * SECOND_NS)
        cached_policy.go.clear()
    cached_policy.go.set()
    play(robot, [4, 5])
    robot.spin_until(lambda: len(steps(robot)) == 5)
    found = steps(robot)
    assert [report.deadline_missed for report in found] == [False, True, True, False, False]
    pressures = [pytest.approx(value) for value in (0.0, 0.0, 0.5, 1.0, 0.95)]
    assert [report.reuse_pressure for report in found] == pressures
    assert cached_policy.pressures == pressures


def test_without_a_deadline_nothing_is_late(make_robot, cached_policy):
    robot = make_robot()
    play(robot, range(1, 4))
    robot.spin_until(lambda: len(steps(robot)) == 3)
    assert not any(report.deadline_missed for report in steps(robot))
    assert cached_policy.pressures == [0.0] * 3
