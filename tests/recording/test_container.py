import errno
import os
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mcap.reader import make_reader
from mcap.stream_reader import StreamReader

from tests.recording.recorded import record, schema, text
from vla_cache_ros.core.errors import RecordingError, UnknownNameError
from vla_cache_ros.recording.container import Container, RawMessage, Topic
from vla_cache_ros.recording.limits import COMPRESSIONS

STRING = 'std_msgs/msg/String'
NAMES = ('/a', '/b', '/c')

messages = st.lists(
    st.builds(
        RawMessage,
        st.sampled_from(NAMES),
        st.binary(max_size=200),
        st.integers(0, 2**62),
        st.integers(0, 2**62),
    ),
    min_size=1,
    max_size=20,
)


def container(path, compression='none'):
    made = Container(path, compression)
    for name in NAMES:
        made.add_topic(Topic(name, STRING, schema(STRING), qos='- depth: 1'))
    return made


@given(chunks=st.lists(messages, max_size=6), compression=st.sampled_from(COMPRESSIONS))
def test_the_library_reads_back_what_was_written_with_every_checksum(
    tmp_path_factory, chunks, compression
):
    path = tmp_path_factory.mktemp('container') / 'a.mcap'
    made = container(path, compression)
    for chunk in chunks:
        made.append(chunk)
    made.close()
    written = [message for chunk in chunks for message in chunk]
    with path.open('rb') as file:
        in_order = list(StreamReader(file, validate_crcs=True).records)
        found = [record for record in in_order if type(record).__name__ == 'Message']
        file.seek(0)
        reader = make_reader(file, validate_crcs=True)
        summary = reader.get_summary()
        by_index = list(reader.iter_messages(topics=['/b']))
    assert [(m.data, m.log_time, m.publish_time) for m in found] == [
        (m.data, m.log_ns, m.publish_ns) for m in written
    ]
    assert summary.statistics.message_count == len(written) == made.count
    assert {channel.topic for channel in summary.channels.values()} == set(NAMES)
    assert len(summary.chunk_indexes) == len(chunks)
    of_b = sorted((m.log_ns, m.data) for m in written if m.topic == '/b')
    assert sorted((m.log_time, m.data) for _, _, m in by_index) == of_b


def test_messages_of_a_topic_are_numbered(tmp_path):
    path = record(tmp_path, [text(str(k), k) for k in range(5)], per_chunk=2)
    with path.open('rb') as file:
        numbers = [message.sequence for _, _, message in make_reader(file).iter_messages()]
    assert numbers == [0, 1, 2, 3, 4]


def test_a_file_that_exists_is_never_touched(tmp_path):
    path = tmp_path / 'a.mcap'
    path.write_text('precious')
    with pytest.raises(RecordingError, match='File exists'):
        Container(path)
    assert path.read_text() == 'precious'


def test_a_folder_that_is_missing_and_an_unknown_compression_are_refused(tmp_path):
    with pytest.raises(RecordingError, match='No such file'):
        Container(tmp_path / 'no' / 'a.mcap')
    with pytest.raises(UnknownNameError, match='none, lz4, zstd'):
        Container(tmp_path / 'a.mcap', 'gzip')


class FullDisk:
    """Takes so many bytes, the last piece in part, and then no more."""

    def __init__(self, monkeypatch, room_bytes):
        self.room_bytes = room_bytes
        self._writev = os.writev
        monkeypatch.setattr(os, 'writev', self.writev)

    def writev(self, file, pieces):
        if self.room_bytes <= 0:
            raise OSError(errno.ENOSPC, 'No space left on device')
        data = b''.join(pieces)[: self.room_bytes]
        self.room_bytes -= len(data)
        return self._writev(file, [data])


@given(room_bytes=st.integers(0, 4000))
def test_a_full_disk_takes_back_the_chunk_that_did_not_fit(tmp_path_factory, room_bytes):
    path = tmp_path_factory.mktemp('full') / 'a.mcap'
    made = container(path)
    written = []
    with pytest.MonkeyPatch.context() as monkeypatch:
        FullDisk(monkeypatch, room_bytes)
        for index in range(50):
            before = made.size_bytes
            try:
                made.append([RawMessage('/a', bytes([index]) * 300, index, index)])
            except RecordingError:
                break
            written.append(index)
        assert len(written) < 50
        assert made.size_bytes == before == path.stat().st_size
    made.close()  # there is room for the summary where the chunk was
    with path.open('rb') as file:
        reader = make_reader(file, validate_crcs=True)
        assert [message.data[0] for _, _, message in reader.iter_messages()] == written
        assert reader.get_summary().statistics.message_count == len(written)


def test_a_disk_without_room_for_the_summary_keeps_every_message(tmp_path, monkeypatch):
    made = container(tmp_path / 'a.mcap')
    made.append([RawMessage('/a', b'data', 1, 1)])
    size = made.size_bytes
    FullDisk(monkeypatch, 0)
    with pytest.raises(RecordingError, match='cannot grow'):
        made.close()
    assert (tmp_path / 'a.mcap').stat().st_size == size
    made.close()  # idempotent


def test_a_write_that_the_kernel_takes_in_parts_is_whole(tmp_path, monkeypatch):
    writev = os.writev
    monkeypatch.setattr(os, 'writev', lambda file, pieces: writev(file, [bytes(pieces[0])[:7]]))
    made = container(tmp_path / 'a.mcap')
    made.append([RawMessage('/a', bytes(range(100)), 1, 1)])
    made.close()
    with (tmp_path / 'a.mcap').open('rb') as file:
        read = list(make_reader(file, validate_crcs=True).iter_messages())
    assert [message.data for _, _, message in read] == [bytes(range(100))]


def test_a_closed_file_takes_nothing_more(tmp_path):
    made = container(tmp_path / 'a.mcap')
    made.close()
    with pytest.raises(RecordingError, match='closed'):
        made.append([RawMessage('/a', b'', 0, 0)])
    made.sync()


def test_the_index_of_a_chunk_takes_little_memory(tmp_path):
    made = container(tmp_path / 'a.mcap')
    begin = time.monotonic_ns()
    for index in range(1000):
        made.append([RawMessage('/a', b'x', begin + index, 0)])
    assert len(made._chunk_index) < 120 * 1000
    made.close()
