import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from tests.recording.recorded import schema, text
from vla_cache_ros.core.errors import RecordingError
from vla_cache_ros.recording.background import BackgroundWriter
from vla_cache_ros.recording.container import RawMessage, Topic
from vla_cache_ros.recording.limits import WriterLimits
from vla_cache_ros.recording.reader import Recording
from vla_cache_ros.recording.writer import RecordingWriter

STRING = 'std_msgs/msg/String'


class Disk(RecordingWriter):
    """A writer that waits, or fails, when told to; counts its chunks."""

    def __init__(self, folder):
        super().__init__(folder, 'run', time.monotonic, WriterLimits(min_free_bytes=0))
        self.go = threading.Event()
        self.go.set()
        self.fault = None
        self.batches = []

    def write(self, messages):
        assert self.go.wait(30)
        if self.fault is not None:
            raise self.fault
        super().write(messages)
        self.batches.append(len(messages))


@pytest.fixture
def disk(tmp_path):
    return Disk(tmp_path)


def background(disk, queue_bytes=10**6, **arguments):
    made = BackgroundWriter(disk, queue_bytes, **arguments)
    made.add_topic(Topic('/a', STRING, schema(STRING)))
    made.add_topic(Topic('/b', STRING, schema(STRING)))
    return made


def is_conserved(status):
    parts = sum(status.written.values()) + sum(status.dropped.values()) + status.waiting
    return sum(status.received.values()) == parts


def until(condition, timeout_s=10):
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


def test_what_is_handed_over_is_written_before_close_returns(disk, tmp_path):
    recording = background(disk)
    for index in range(500):
        assert recording.submit(text(str(index), index, ('/a', '/b')[index % 2]).raw)
        assert is_conserved(recording.status())
    status = recording.close()
    assert status.written == status.received == {'/a': 250, '/b': 250}
    assert (status.waiting, status.dropped, status.failure) == (0, {}, '')
    found = Recording(tmp_path)
    assert [int(message.value().data) for message in found.messages()] == list(range(500))
    assert not found.losses
    assert recording.close() == status


def test_a_slow_disk_costs_counted_messages_and_never_blocks(disk):
    disk.go.clear()
    recording = background(disk, queue_bytes=1000)
    begin = time.monotonic()
    taken = [recording.submit(RawMessage('/a', bytes(100), 0, 0)) for _ in range(50)]
    assert time.monotonic() - begin < 1.0
    status = recording.status()
    assert sum(taken) == 10
    assert status.dropped == {'/a': 40}
    assert (status.waiting, status.waiting_bytes) == (10, 1000)
    assert is_conserved(status)
    disk.go.set()
    status = recording.close()
    assert status.written == {'/a': 10}
    assert is_conserved(status)


def test_a_message_larger_than_the_queue_is_taken_when_nothing_waits(disk):
    recording = background(disk, queue_bytes=10)
    assert recording.submit(RawMessage('/a', bytes(1000), 0, 0))
    assert recording.close().written == {'/a': 1}


def test_messages_that_came_while_the_disk_was_busy_share_a_chunk(disk):
    disk.go.clear()
    recording = background(disk)
    for _ in range(100):
        recording.submit(RawMessage('/a', b'x', 0, 0))
    disk.go.set()
    recording.close()
    assert sum(disk.batches) == 100
    assert len(disk.batches) <= 2


def test_a_flush_period_gathers_messages_and_bounds_their_wait(disk):
    recording = background(disk, flush_period_s=0.05)
    until(lambda: not recording._queue)  # the topics are through
    for _ in range(5):
        recording.submit(RawMessage('/a', b'x', 0, 0))
        time.sleep(0.002)
    until(lambda: recording.status().written == {'/a': 5})
    assert disk.batches == [5]
    recording.close()


def test_a_full_disk_stops_the_recording_tells_once_and_keeps_the_file(disk, tmp_path):
    reasons = []
    recording = background(disk, on_failure=reasons.append)
    recording.submit(text('kept', 0, '/a').raw)
    until(lambda: recording.status().written == {'/a': 1})
    disk.fault = RecordingError('the disk is full')
    recording.submit(text('lost', 1, '/a').raw)
    until(lambda: recording.status().failure)
    assert not recording.submit(text('late', 2, '/a').raw)
    status = recording.close()
    assert reasons == [status.failure] == ['the disk is full']
    assert (status.written, status.dropped) == ({'/a': 1}, {'/a': 2})
    assert is_conserved(status)
    found = Recording(tmp_path)
    assert [message.value().data for message in found.messages()] == ['kept']
    assert not found.losses  # closed with its summary


def test_whatever_a_writer_raises_is_told_and_does_not_escape(disk):
    recording = background(disk)
    disk.fault = ZeroDivisionError('a bug')
    recording.submit(RawMessage('/a', b'', 0, 0))
    assert recording.close().failure == 'ZeroDivisionError: a bug'


def test_free_space_is_watched_while_nothing_comes(disk):
    disk._free_bytes = lambda _: -1
    recording = background(disk, sync_period_s=0.01)
    until(lambda: recording.status().failure)
    assert 'min_free_mib' in recording.close().failure


KILLED = """
import sys, time
from pathlib import Path
from tests.recording.recorded import schema
from vla_cache_ros.recording.background import BackgroundWriter
from vla_cache_ros.recording.container import RawMessage, Topic
from vla_cache_ros.recording.limits import WriterLimits
from vla_cache_ros.recording.writer import RecordingWriter

limits = WriterLimits(min_free_bytes=0, compression=sys.argv[2])
writer = RecordingWriter(Path(sys.argv[1]), 'run', time.monotonic, limits)
recording = BackgroundWriter(writer, 10**8, sync_period_s=0.0)
recording.add_topic(Topic('/a', 'std_msgs/msg/String', schema('std_msgs/msg/String')))
index = 0
while True:
    recording.submit(RawMessage('/a', index.to_bytes(4, 'little') * 5000, index, 0))
    index += 1
    print(sum(recording.status().written.values()), flush=True)
    time.sleep(0.0005)
"""


@pytest.mark.parametrize('compression', ['none', 'zstd'])
def test_what_was_written_survives_sigkill_up_to_the_last_message(tmp_path, compression):
    process = subprocess.Popen(
        [sys.executable, '-c', KILLED, str(tmp_path), compression],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {'PYTHONPATH': os.pathsep.join(filter(None, sys.path))},
    )
    assert process.stdout is not None
    lines = iter(process.stdout.readline, '')
    written = next(count for line in lines if (count := int(line)) >= 200)
    process.send_signal(signal.SIGKILL)
    for line in lines:
        written = int(line)
    assert process.wait() == -signal.SIGKILL
    found = Recording(tmp_path)
    numbers = [int.from_bytes(message.data[:4], 'little') for message in found.messages()]
    assert numbers == list(range(len(numbers)))
    assert len(numbers) >= written
    assert [loss.reason for loss in found.losses] != []
    assert sum(loss.size_bytes for loss in found.losses) < 50_000 * 256
