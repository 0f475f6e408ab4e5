"""Parameter files that no honest person writes; the others are in tests/launch."""

import pytest

from vla_cache_ros.nodes.parameter_files import check_file
from vla_cache_ros.nodes.parameter_tables.overview import NODES

pytestmark = pytest.mark.ros


def test_file_that_could_unfold_without_end_is_refused(tmp_path):
    path = tmp_path / 'robot.yaml'
    path.write_text('policy_node: &all\n  ros__parameters: *all\n')
    (problem,) = check_file(path, NODES)
    assert 'alias' in problem.message
    assert problem.line == 2


@pytest.mark.parametrize('text', ['\x03', '[' * 5000])
def test_file_that_no_yaml_reader_takes_is_refused(tmp_path, text):
    path = tmp_path / 'robot.yaml'
    path.write_text(text)
    (problem,) = check_file(path, NODES)
    assert 'is not YAML' in problem.message


@pytest.mark.parametrize(
    ('guard', 'sink', 'complaints'),
    [
        ('{position_scale_m: 0.014}', '{position_scale_m: 0.014}', 0),
        ('{position_scale_m: 0.014}', '{position_scale_m: 0.05}', 1),
        ('{position_scale_m: 0.014}', '{sink: none}', 1),  # the default is another
        ('{rotation_scale_rad: 1.0}', '{rotation_scale_rad: 0.5}', 1),
        ('{control_frequency_hz: 10.0}', '{control_frequency_hz: 20.0}', 1),
        ('{position_scale_m: wide}', '{position_scale_m: 0.05}', 1),  # no number: said once
    ],
)
@pytest.mark.parametrize('below', ['{}', '/**/{}', '/robot/{}'])
def test_guard_and_sink_must_mean_the_same_by_an_action(tmp_path, guard, sink, complaints, below):
    path = tmp_path / 'robot.yaml'
    path.write_text(
        f'{below.format("command_guard")}:\n  ros__parameters: {guard}\n'
        f'{below.format("command_sink")}:\n  ros__parameters: {sink}\n'
    )
    problems = check_file(path, NODES)
    assert len(problems) == complaints, problems


def test_what_every_node_is_given_agrees(tmp_path):
    path = tmp_path / 'robot.yaml'
    path.write_text(
        '/**:\n  ros__parameters: {position_scale_m: 0.014}\n'
        'command_guard:\n  ros__parameters: {dry_run: true}\n'
        'command_sink:\n  ros__parameters: {position_scale_m: 0.05}\n'
    )
    (problem,) = check_file(path, NODES)
    assert problem.line == 6
    assert 'but 0.014 in command_guard' in problem.message
