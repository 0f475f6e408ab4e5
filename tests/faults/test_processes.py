"""Nodes that die or hang while the arm moves."""

import pytest
from node_graph.faults import by_file, hung, killed, recorder_cases, with_nan_weights

pytestmark = [pytest.mark.ros, pytest.mark.slow]


@pytest.mark.parametrize('case', [killed('policy_node', 'null'), hung('policy_node', 'null')])
def test_a_policy_that_is_gone_stops_the_arm_before_its_chunk_ends(robot, case):
    row = robot.suffer(case)
    robot.assert_in_time(row)
    assert 'policy_lost' in row['reasons']


@pytest.mark.parametrize('case', [killed('command_guard', 'zero'), hung('command_guard', 'zero')])
def test_a_guard_that_is_gone_makes_the_sink_send_zero(robot, case):
    row = robot.suffer(case)
    robot.assert_in_time(row, 'first_zero_ms')
    robot.assert_in_time(row, 'moving_ms')


def test_actions_that_are_not_finite_never_pass(robot):
    row = robot.suffer(by_file('NaN actions', 'nan', 'stale'))
    robot.assert_in_time(row)
    assert any(reason.startswith('non_finite') for reason in row['reasons'])


def test_a_policy_of_nan_weights_moves_nothing(robot, tmp_path):
    row = robot.suffer(with_nan_weights(tmp_path / 'checkpoint'))
    robot.assert_in_time(row)
    assert {'non_finite_chunk', 'non_finite'} & set(row['reasons'])
    moved = row['commands'] - row['nulls']
    assert moved <= row['first_null_ms'] / robot.run.graph.period_ms + 2


def test_stalls_of_inference_are_bridged_by_the_chunk(robot):
    row = robot.suffer(by_file('200 ms stalls', 'stall', 'on'))
    assert row['oldest_ms'] <= robot.run.graph.limit_ms
    assert row['nulls'] <= row['commands'] / 2


def test_a_killed_recorder_leaves_everything_up_to_the_kill(robot):
    case = recorder_cases(robot.run.graph)[0]
    row = robot.suffer(case)
    assert row['kept'], row['note']


def test_a_full_disk_stops_the_recording_and_nothing_else(robot):
    case = recorder_cases(robot.run.graph)[1]
    row = robot.suffer(case)
    assert row['kept'], row['note']
    assert row['commands'] > 0
    assert 'recording stopped' in robot.run.processes.log('recorder')
