import sys
from pathlib import Path

import pytest
from rosbags.typesys import get_types_from_msg

from vla_cache_ros.core.errors import RecordingError
from vla_cache_ros.recording.schemas import SEPARATOR, definition, dependencies

FILES = {
    (
        'a_msgs',
        'Top',
    ): 'std_msgs/Header header\nMiddle[<=3] middles # Not[] it\nuint8 X=1\n',
    ('a_msgs', 'Middle'): 'b_msgs/Leaf[2] leaves\nMiddle2 other\nstring<=5 name "x"\n',
    ('a_msgs', 'Middle2'): 'b_msgs/msg/Leaf leaf\n',
    ('b_msgs', 'Leaf'): 'float64[] numbers\nbuiltin_interfaces/Time stamp\n',
    ('std_msgs', 'Header'): 'builtin_interfaces/Time stamp\nstring frame_id\n',
    ('builtin_interfaces', 'Time'): 'int32 sec\nuint32 nanosec\n',
}


def find(package: str, name: str) -> str:
    return FILES[package, name]


def test_a_definition_holds_every_type_once_the_wanted_one_first():
    parts = definition('a_msgs/msg/Top', find).split(f'{SEPARATOR}\n')
    assert parts[0] == FILES['a_msgs', 'Top']
    names = [part.splitlines()[0] for part in parts[1:]]
    assert sorted(names) == [
        'MSG: a_msgs/Middle',
        'MSG: a_msgs/Middle2',
        'MSG: b_msgs/Leaf',
        'MSG: builtin_interfaces/Time',
        'MSG: std_msgs/Header',
    ]


def test_constants_comments_and_defaults_are_no_dependencies():
    text = 'uint8 KIND=3\n# Other thing\nfloat32 x 1.5\nPoint[] points\nstring<=10 words\n'
    assert list(dependencies('geometry_msgs', text)) == [('geometry_msgs', 'Point')]


@pytest.mark.parametrize(
    'kind', ['', 'Image', 'sensor_msgs/Image', 'sensor_msgs/srv/Image', '../msg/Image', 'a/msg/b']
)
def test_what_is_no_message_type_is_refused(kind):
    with pytest.raises(RecordingError, match='valid: PACKAGE/msg/NAME'):
        definition(kind, find)


def test_a_missing_definition_says_where_it_was_looked_for(monkeypatch, tmp_path):
    monkeypatch.setenv('AMENT_PREFIX_PATH', str(tmp_path))
    with pytest.raises(RecordingError, match=str(tmp_path)):
        definition('no_msgs/msg/Thing')
    monkeypatch.delenv('AMENT_PREFIX_PATH')
    with pytest.raises(RecordingError, match='no prefix at all'):
        definition('no_msgs/msg/Thing')


@pytest.mark.ros
def test_the_definition_of_every_installed_type_can_be_parsed(monkeypatch):
    monkeypatch.setenv('AMENT_PREFIX_PATH', sys.prefix)
    paths = sorted(Path(sys.prefix, 'share').glob('*/msg/*.msg'))
    assert len(paths) > 50
    for path in paths:
        kind = f'{path.parents[1].name}/msg/{path.stem}'
        assert kind in get_types_from_msg(definition(kind), kind)
