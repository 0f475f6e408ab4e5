import pytest

from tests.recording.recorded import schema, text
from vla_cache_ros.core.errors import RecordingError
from vla_cache_ros.recording.container import RawMessage, Topic
from vla_cache_ros.recording.limits import WriterLimits
from vla_cache_ros.recording.reader import Recording
from vla_cache_ros.recording.writer import RecordingWriter, disk_free_bytes, unused_stem

STRING = 'std_msgs/msg/String'
UNLIMITED = WriterLimits(file_bytes=0, file_s=0.0, min_free_bytes=0)


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def opened(folder, limits=UNLIMITED, clock=None, free_bytes=None, topics=(('/a', False),)):
    writer = RecordingWriter(folder, 'run', clock or Clock(), limits, free_bytes)
    for name, latched in topics:
        writer.add_topic(Topic(name, STRING, schema(STRING), latched=latched))
    return writer


def words(path):
    return [(message.topic, message.value().data) for message in Recording(path).messages()]


def test_a_file_is_followed_by_the_next_one_when_it_is_large(tmp_path):
    writer = opened(tmp_path, WriterLimits(file_bytes=3000, file_s=0.0, min_free_bytes=0))
    for index in range(40):
        writer.write([text(f'{index:100d}', index, '/a').raw])
    writer.close()
    assert len(writer.paths) > 2
    assert [path.name for path in writer.paths[:2]] == ['run_000.mcap', 'run_001.mcap']
    assert all(path.stat().st_size < 4500 for path in writer.paths)
    assert [int(word) for _, word in words(tmp_path)] == list(range(40))
    assert writer.size_bytes == sum(path.stat().st_size for path in writer.paths)


def test_a_file_is_followed_by_the_next_one_when_it_is_old(tmp_path):
    clock = Clock()
    writer = opened(tmp_path, WriterLimits(file_bytes=0, file_s=5.0, min_free_bytes=0), clock)
    clock.now_s += 60  # an empty file is no reason for another one
    for index in range(4):
        writer.write([text(str(index), index, '/a').raw])
        clock.now_s += 3
    writer.close()
    assert [len(words(path)) for path in writer.paths] == [1, 2, 1]


def test_each_file_begins_with_the_last_latched_message(tmp_path):
    limits = WriterLimits(file_bytes=1, file_s=0.0, min_free_bytes=0)
    writer = opened(tmp_path, limits, topics=(('/task', True), ('/a', False)))
    for topic, word in (('/task', 'x'), ('/a', '0'), ('/task', 'y'), ('/a', '1')):
        writer.write([text(word, 0, topic).raw])
    writer.close()
    assert [words(path) for path in writer.paths] == [
        [('/task', 'x')],
        [('/task', 'x'), ('/a', '0')],
        [('/task', 'x'), ('/task', 'y')],
        [('/task', 'y'), ('/a', '1')],
    ]
    assert writer.counts == {'/task': 2, '/a': 2}


def test_a_disk_with_little_space_stops_the_recording_and_says_what_to_do(tmp_path):
    free = [5000]
    limits = WriterLimits(min_free_bytes=4000)
    writer = opened(tmp_path, limits, free_bytes=lambda _: free[0])
    writer.write([text('kept', 0, '/a').raw])
    writer.sync()
    free[0] = 3999
    with pytest.raises(RecordingError, match='min_free_mib'):
        writer.sync()
    writer.close()
    assert words(writer.path) == [('/a', 'kept')]
    with pytest.raises(RecordingError, match='Free some space'):
        RecordingWriter(tmp_path, 'next', Clock(), limits, lambda _: 3999)
    assert not list(tmp_path.glob('next*'))


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(RecordingError, match='cannot be made'):
        opened(tmp_path / 'file' / 'folder')


def test_a_name_that_is_taken_gets_a_number(tmp_path):
    assert unused_stem(tmp_path, 'run') == 'run'
    opened(tmp_path).close()
    assert unused_stem(tmp_path, 'run') == 'run-2'
    with pytest.raises(RecordingError, match='File exists'):
        opened(tmp_path)


def test_the_system_is_asked_for_free_space(tmp_path):
    assert disk_free_bytes(tmp_path) > 0


def test_a_message_of_an_unknown_topic_is_a_bug_that_shows(tmp_path):
    writer = opened(tmp_path)
    with pytest.raises(KeyError):
        writer.write([RawMessage('/other', b'', 0, 0)])
    writer.close()
