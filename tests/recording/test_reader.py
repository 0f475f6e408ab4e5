import subprocess
import sys

import numpy as np
import pytest
import yaml
from mcap.writer import CompressionType, Writer

from tests.recording.recorded import (
    STRING,
    chunk,
    image,
    joints,
    pose,
    record,
    record_by_library,
    record_by_rosbags,
    schema,
    step_report,
    text,
)
from vla_cache_ros.core.errors import RecordingError
from vla_cache_ros.recording.reader import Recording, find_files

PIXELS = np.arange(6 * 8 * 3, dtype=np.uint8).reshape(6, 8, 3)
ACTIONS = np.arange(56, dtype=np.float32).reshape(8, 7)
SAID = [
    text('pick up the milk', 1),
    image('/camera/wrist/image_raw', PIXELS, 10**9 + 5),
    joints({'finger': 0.25, 'thumb': -0.5}, 10**9 + 6),
    pose((1.0, 2.0, 3.0), 10**9 + 7),
    chunk(ACTIONS, 10**9 + 8, 'pick up the milk', prefix_steps=2),
    step_report(10**9 + 9, 4, 'cached', reuse_pressure=0.5),
]


def own(folder):
    return record(folder, SAID)


def own_folder(folder):
    record(folder, SAID)
    return folder


def library_lz4(folder):
    return record_by_library(folder / 'a.mcap', SAID, compression=CompressionType.LZ4)


def library_unchunked(folder):
    return record_by_library(folder / 'a.mcap', SAID, use_chunking=False)


def rosbags_folder(folder):
    return record_by_rosbags(folder / 'bag', SAID)


def rosbags_zstd(folder):
    return record_by_rosbags(folder / 'bag', SAID, compressed=True)


def rosbags_unfinished(folder):
    """rosbag2 writes metadata.yaml last: without it, it was killed."""
    made = record_by_rosbags(folder / 'bag', SAID)
    (made / 'metadata.yaml').unlink()
    return made


WRITERS = [
    own,
    own_folder,
    library_lz4,
    library_unchunked,
    rosbags_folder,
    rosbags_zstd,
    rosbags_unfinished,
]


@pytest.mark.parametrize('write', WRITERS)
def test_recordings_of_all_writers_read_alike(tmp_path, write):
    recording = Recording(write(tmp_path))
    read = list(recording.messages())
    assert [(m.topic, m.kind, m.log_ns, m.data) for m in read] == [
        (said.topic, said.kind, said.log_ns, said.data) for said in SAID
    ]
    assert not recording.losses
    words, picture, fingers, place, actions, report = (message.value() for message in read)
    assert words.data == 'pick up the milk'
    assert bytes(picture.data) == PIXELS.tobytes()
    assert (picture.header.stamp.sec, picture.header.stamp.nanosec) == (1, 5)
    assert (fingers.name, list(fingers.position)) == (['finger', 'thumb'], [0.25, -0.5])
    assert place.pose.position.z == 3.0
    assert list(actions.actions) == ACTIONS.ravel().tolist()
    assert (actions.prefix_steps, report.mode, report.reuse_pressure) == (2, 'cached', 0.5)


def test_only_the_topics_that_are_wanted_are_given_and_all_are_counted(tmp_path):
    recording = Recording(own(tmp_path))
    assert [message.topic for message in recording.messages({'/ee_pose'})] == ['/ee_pose']
    assert recording.counts == dict.fromkeys([said.topic for said in SAID], 1)
    assert recording.kinds['/vla/instruction'] == STRING


def test_a_recording_may_be_read_again(tmp_path):
    recording = Recording(own(tmp_path))
    assert len(list(recording.messages())) == len(list(recording.messages())) == len(SAID)
    assert sum(recording.counts.values()) == len(SAID)


def test_files_of_a_folder_follow_one_another_by_number(tmp_path):
    for number in (0, 2, 10):
        record_by_library(tmp_path / f'bag_{number}.mcap', [text(str(number))])
    assert [message.value().data for message in Recording(tmp_path).messages()] == ['0', '2', '10']


def test_reading_needs_no_ros(tmp_path):
    path = own(tmp_path)
    script = """
import sys
from pathlib import Path
from vla_cache_ros.recording.reader import Recording
values = [message.value() for message in Recording(Path(sys.argv[1])).messages()]
ros = {'rclpy', 'sensor_msgs', 'std_msgs', 'geometry_msgs', 'vla_cache_interfaces', 'torch'}
assert len(values) == 6 and not ros & set(sys.modules), ros & set(sys.modules)
"""
    subprocess.run([sys.executable, '-c', script, str(path)], check=True)


@pytest.mark.parametrize(
    ('content', 'words'),
    [
        (None, 'does not exist'),
        (b'', 'is empty'),
        (b'SQLite format 3\0' + bytes(100), 'is no MCAP file.*ros2 bag convert'),
        (b'\x89MCAP', 'is no MCAP file'),
        (b'\x89MCAP1\r\n' + bytes(100), 'is no MCAP file'),
    ],
)
def test_what_is_no_recording_is_refused(tmp_path, content, words):
    path = tmp_path / 'a.mcap'
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(RecordingError, match=words):
        list(Recording(path).messages())


def test_a_file_that_may_not_be_read_is_refused(tmp_path, monkeypatch):
    path = own(tmp_path)

    def refuse(*_, **__):
        raise PermissionError(13, 'Permission denied')

    monkeypatch.setattr(type(path), 'open', refuse)
    with pytest.raises(RecordingError, match='Permission denied'):
        list(Recording(path).messages())


def test_a_folder_without_recordings_says_what_it_holds(tmp_path):
    (tmp_path / 'bag.db3').write_text('')
    with pytest.raises(RecordingError, match=r'bag\.db3.*ros2 bag convert'):
        find_files(tmp_path)


def about(**fields):
    return {'storage_identifier': 'mcap', 'relative_file_paths': ['a.mcap'], **fields}


@pytest.mark.parametrize(
    ('metadata', 'words'),
    [
        (about(storage_identifier='sqlite3'), "kept as 'sqlite3'"),
        (about(compression_mode='FILE'), 'compressed by rosbag2 itself'),
        (about(compression_mode='MESSAGE'), 'compressed by rosbag2 itself'),
        (about(relative_file_paths=[]), 'names no files'),
        (about(relative_file_paths='a.mcap'), 'names no files'),
        (about(relative_file_paths=['../a.mcap']), 'files of the same folder'),
        (about(relative_file_paths=['/etc/passwd']), 'files of the same folder'),
        (about(relative_file_paths=[7]), 'files of the same folder'),
        (about(relative_file_paths=['a.mcap', 'b.mcap']), 'lacks b.mcap'),
        ([1, 2], 'not what rosbag2 writes'),
        ('text', 'not what rosbag2 writes'),
        (None, 'not what rosbag2 writes'),
    ],
)
def test_metadata_that_leads_nowhere_is_refused(tmp_path, metadata, words):
    record_by_library(tmp_path / 'a.mcap', SAID)
    content = {'rosbag2_bagfile_information': metadata}
    (tmp_path / 'metadata.yaml').write_text(yaml.safe_dump(content))
    with pytest.raises(RecordingError, match=words):
        Recording(tmp_path)


@pytest.mark.parametrize(
    'content',
    [b'\xff\xfe', b'a: [', b'[' * 2000, b'!!python/object/apply:os.getcwd []', b'', b'a: &a [*a]'],
)
def test_damaged_metadata_is_refused_and_runs_nothing(tmp_path, content):
    (tmp_path / 'metadata.yaml').write_bytes(content)
    with pytest.raises(RecordingError, match=r'metadata\.yaml'):
        Recording(tmp_path)


def channel_of(path, message_encoding, schema_encoding, data):
    with path.open('wb') as file:
        writer = Writer(file)
        writer.start()
        schema_id = writer.register_schema(STRING, schema_encoding, data) if schema_encoding else 0
        channel = writer.register_channel('/a', message_encoding, schema_id)
        writer.add_message(channel, 1, b'\x00\x01\x00\x00\x03\x00\x00\x00hi\x00', 1)
        writer.finish()
    return path


@pytest.mark.parametrize(
    ('message_encoding', 'schema_encoding', 'data', 'words'),
    [
        ('json', 'jsonschema', b'{}', "they are 'json' by a schema in 'jsonschema'"),
        ('cdr', 'ros2idl', b'module x {};', "'ros2idl'; valid: 'cdr' by 'ros2msg'"),
        ('cdr', '', b'', 'does not define their type'),
        ('cdr', 'ros2msg', b'\xff\xff', 'definition of std_msgs/msg/String is damaged'),
        ('cdr', 'ros2msg', b'this is } no definition', 'is damaged'),
        ('cdr', 'ros2msg', b'no_msgs/Thing thing', 'is damaged|are no|cannot be decoded'),
    ],
)
def test_messages_of_unknown_encodings_are_met_and_refused_when_decoded(
    tmp_path, message_encoding, schema_encoding, data, words
):
    path = channel_of(tmp_path / 'a.mcap', message_encoding, schema_encoding, data)
    recording = Recording(path)
    (message,) = recording.messages()
    assert recording.counts == {'/a': 1}
    with pytest.raises(RecordingError, match=words):
        message.value()


def test_bytes_that_do_not_fit_their_type_are_refused_by_topic(tmp_path):
    path = tmp_path / 'a.mcap'
    with path.open('wb') as file:
        writer = Writer(file)
        writer.start()
        schema_id = writer.register_schema(STRING, 'ros2msg', schema(STRING).encode())
        channel = writer.register_channel('/a', 'cdr', schema_id)
        writer.add_message(channel, 1, b'\x00\x01\x00\x00\x03', 1)
        writer.finish()
    (message,) = Recording(path).messages()
    with pytest.raises(RecordingError, match='on /a is damaged'):
        message.value()
