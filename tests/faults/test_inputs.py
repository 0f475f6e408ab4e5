"""Cameras, clocks and states that break while the arm moves."""

from dataclasses import replace

import pytest
from node_graph.faults import INPUT_CASES, INSTRUCTION_CASE, OTHER_TASK, injected
from node_graph.verdict import is_motion

pytestmark = [pytest.mark.ros, pytest.mark.slow]

CASES = {case.name: case for case in INPUT_CASES}
STOPPING = ('clock forward', 'clock backward', 'nan state')
PASSING = ('frozen', 'black', 'torn', 'rotated', 'resized')


def test_without_a_fault_every_command_moves_the_arm(robot):
    row = robot.baseline
    assert row['too_old'] == row['repeated'] == row['not_finite'] == 0
    assert row['commands'] > 0
    assert row['nulls'] == 0


def test_every_fault_of_the_injector_is_tested():
    assert {*STOPPING, *PASSING, 'unplugged', 'delayed'} == set(CASES)


@pytest.mark.parametrize('name', STOPPING)
def test_an_input_that_cannot_be_used_stops_the_arm(robot, name):
    row = robot.suffer(replace(CASES[name], hold_s=1.5))
    robot.assert_in_time(row)
    assert row['reasons']


def test_an_unplugged_camera_stops_the_arm_within_its_limit(robot):
    row = robot.suffer(injected('unplugged', 'stale', hold_s=2.5))
    robot.assert_in_time(row)
    assert {'stale', 'missing_camera'} & set(row['reasons'])


@pytest.mark.parametrize('name', PASSING)
def test_pictures_that_are_wrong_but_fresh_break_no_invariant(robot, name):
    row = robot.suffer(CASES[name])
    assert row['commands'] > 0


def test_a_camera_that_is_late_leads_to_no_command_older_than_its_limit(robot):
    row = robot.suffer(CASES['delayed'])
    assert row['oldest_ms'] <= robot.run.graph.limit_ms


def test_a_new_instruction_takes_effect_and_the_old_task_is_not_continued(robot):
    robot.suffer(INSTRUCTION_CASE)
    events = robot.run.observed.events()
    given, back = [event for event in events if event['kind'] == 'instruction'][-2:]
    during = [
        event['instruction']
        for event in events
        if event['kind'] == 'command'
        and given['at_ns'] < event['at_ns'] < back['at_ns']
        and is_motion(event)
    ]
    assert OTHER_TASK in during
    assert set(during[during.index(OTHER_TASK) :]) == {OTHER_TASK}
