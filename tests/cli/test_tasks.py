import pytest

from vla_cache_ros.cli.tasks import TaskName, parse_indices, parse_task, parse_tasks
from vla_cache_ros.core.errors import ConfigError, UnknownNameError


@pytest.mark.parametrize(
    ('text', 'task'),
    [
        ('libero_object/2', TaskName('libero_object', 2)),
        (' libero_spatial:9 ', TaskName('libero_spatial', 9)),
        ('simpler_bridge/3', TaskName('simpler_bridge', 3)),
        ('libero_goal', TaskName('libero_goal', 0)),
    ],
)
def test_suite_and_index(text, task):
    assert parse_task(text) == task


def test_unknown_names_list_the_valid_ones():
    with pytest.raises(UnknownNameError, match=r'0\.\.9'):
        parse_task('libero_object/10')
    with pytest.raises(UnknownNameError, match='libero_spatial'):
        parse_task('libero_objects/0')


@pytest.mark.sim
def test_instruction_words():
    words = 'Pick up the alphabet soup and place it in the basket'
    assert parse_task(words) == TaskName('libero_object', 0)
    assert parse_task('the salad dressing') == TaskName('libero_object', 2)
    assert parse_task('Put carrot on plate') == TaskName('simpler_bridge', 0)
    with pytest.raises(UnknownNameError, match='pick up the milk and place it in the basket'):
        parse_task('fold the laundry')


def test_lists_and_whole_suites():
    assert parse_tasks('libero_object/0, libero_goal/3') == [
        TaskName('libero_object', 0),
        TaskName('libero_goal', 3),
    ]
    assert len(parse_tasks('libero_10/*')) == 10
    with pytest.raises(ConfigError):
        parse_tasks(' , ')


def test_indices():
    assert parse_indices('0-3,7, 2', 50) == [0, 1, 2, 3, 7]
    for bad in ('', 'a', '3-', '50', '4-1'):
        with pytest.raises(ConfigError):
            parse_indices(bad, 50)
