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
