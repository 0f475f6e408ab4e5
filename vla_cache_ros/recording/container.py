"""One MCAP file that grows by whole chunks: each is on the disk entirely, or not at all.

The library's own writer cannot take back a chunk that the disk refused, and keeps one Python
object per chunk until the end. Here a chunk goes to the kernel in one call, straight from the
messages' memory; when that fails, the file is cut back to where it was, and can still be closed
with its summary, which mostly is smaller than the chunk that did not fit.
"""

import os
import struct
import zlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mcap.data_stream import RecordBuilder
from mcap.opcode import Opcode
from mcap.records import (
    Channel,
    ChunkIndex,
    DataEnd,
    Footer,
    Header,
    McapRecord,
    MessageIndex,
    Schema,
    Statistics,
    SummaryOffset,
)

from vla_cache_ros import __version__
from vla_cache_ros.core.errors import RecordingError, UnknownNameError
from vla_cache_ros.recording.limits import COMPRESSIONS

MAGIC = b'\x89MCAP0\r\n'
MESSAGE_HEAD = struct.Struct('<BQHIQQ')  # opcode, length, channel, sequence, log, publish time
MESSAGE_FIELDS_BYTES = MESSAGE_HEAD.size - 9
MAX_CHUNK_MESSAGES = 256
"""Messages of one chunk: two pieces each, and the kernel takes 1024 pieces at once."""

_CHUNK_HEAD = struct.Struct('<BQQQQI')  # opcode, length, first and last time, size, CRC


@dataclass(frozen=True)
class Topic:
    """What is recorded under one name.

    Attributes:
        name: The topic, absolute.
        kind: Its type, e.g. 'sensor_msgs/msg/Image'.
        schema: Definition of the type, see `schemas.definition`.
        qos: What its publishers offer, YAML as rosbag2 keeps it; empty where unknown.
        latched: Whether a late joiner gets the last message: each file then begins with it.
    """

    name: str
    kind: str
    schema: str
    qos: str = ''
    latched: bool = False


@dataclass(frozen=True)
class RawMessage:
    """One message as the middleware delivered it.

    Attributes:
        topic: Its topic's name.
        data: CDR bytes, encapsulation header included.
        log_ns: Time of receipt, nanoseconds of the recorder's clock.
        publish_ns: Time of publication, by the middleware.
    """

    topic: str
    data: bytes
    log_ns: int
    publish_ns: int


class Container:
    """Appends to one new file; not for use by several threads at once."""

    def __init__(self, path: Path, compression: str = 'none') -> None:
        """Create the file; one that exists is never touched.

        Args:
            path: The file.
            compression: Of each chunk: none, lz4 or zstd.

        Raises:
            RecordingError: The file exists, or cannot be created or written.
            UnknownNameError: There is no such compression.
        """
        self._compress = _compressor(compression)
        self._compression = '' if compression == 'none' else compression
        self.path = path
        self._channels: dict[str, Channel] = {}
        self._schemas: dict[str, Schema] = {}
        self._counts: Counter[int] = Counter()
        self._chunk_index = bytearray()
        self._chunks = 0
        self._first_ns, self._last_ns = 0, 0
        self._size_bytes = 0
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            self._file: int | None = os.open(path, flags, 0o644)
        except OSError as error:
            raise RecordingError(f'{path} cannot be created: {error.strerror}.') from error
        try:
            self._append([MAGIC, _bytes(Header('ros2', f'vla_cache_ros {__version__}'))])
        except RecordingError:
            self.discard()
            raise

    @property
    def size_bytes(self) -> int:
        """Bytes of the file so far."""
        return self._size_bytes

    @property
    def count(self) -> int:
        """Messages in the file."""
        return sum(self._counts.values())

    def add_topic(self, topic: Topic) -> None:
        """Make a topic known, and its type's definition. Outside of any chunk, once per file.

        Raises:
            RecordingError: The disk refuses.
        """
        if topic.name in self._channels:
            return
        records: list[McapRecord] = []
        schema = self._schemas.get(topic.kind)
        if schema is None:
            schema = Schema(len(self._schemas) + 1, topic.schema.encode(), 'ros2msg', topic.kind)
            records.append(schema)
        channel = Channel(
            len(self._channels) + 1,
            topic.name,
            'cdr',
            {'offered_qos_profiles': topic.qos},
            schema.id,
        )
        records.append(channel)
        self._append([_bytes(record) for record in records])
        self._schemas[topic.kind] = schema
        self._channels[topic.name] = channel

    def append(self, messages: Sequence[RawMessage]) -> None:
        """Append one chunk of messages, all of them or none.

        Args:
            messages: At least one, at most `MAX_CHUNK_MESSAGES`, of topics that were added.

        Raises:
            RecordingError: The disk refuses; the file is as it was before.
        """
        pieces: list[bytes] = []
        index: dict[int, MessageIndex] = {}
        numbers = Counter(self._counts)
        crc, size = 0, 0
        for message in messages:
            channel = self._channels[message.topic].id
            head = MESSAGE_HEAD.pack(
                Opcode.MESSAGE,
                MESSAGE_FIELDS_BYTES + len(message.data),
                channel,
                numbers[channel] & 0xFFFFFFFF,
                message.log_ns,
                message.publish_ns,
            )
            numbers[channel] += 1
            index.setdefault(channel, MessageIndex(channel, [])).records.append(
                (message.log_ns, size)
            )
            pieces += [head, message.data]
            crc = zlib.crc32(message.data, zlib.crc32(head, crc))
            size += len(head) + len(message.data)
        stamps = [message.log_ns for message in messages]
        self._append_chunk(pieces, index, (min(stamps), max(stamps)), crc, size)
        if not self._counts:
            self._first_ns = min(stamps)
        self._first_ns = min(self._first_ns, *stamps)
        self._last_ns = max(self._last_ns, *stamps)
        self._counts = numbers

    def _append_chunk(
        self,
        pieces: list[bytes],
        index: Mapping[int, MessageIndex],
        span_ns: tuple[int, int],
        crc: int,
        size: int,
    ) -> None:
        packed = pieces if self._compress is None else [self._compress(b''.join(pieces))]
        packed_size = sum(len(piece) for piece in packed)
        name = self._compression.encode()
        head_bytes = _CHUNK_HEAD.size + 4 + len(name) + 8
        head = _CHUNK_HEAD.pack(
            Opcode.CHUNK, head_bytes - 9 + packed_size, *span_ns, size, crc
        ) + struct.pack(f'<I{len(name)}sQ', len(name), name, packed_size)
        start, chunk_bytes = self._size_bytes, head_bytes + packed_size
        offsets: dict[int, int] = {}
        indices: list[bytes] = []
        position = start + chunk_bytes
        for channel, entries in index.items():
            offsets[channel] = position
            indices.append(_bytes(entries))
            position += len(indices[-1])
        self._append([head, *packed, *indices])
        # As bytes from the start: an object per chunk would be several times as large.
        self._chunk_index += _bytes(
            ChunkIndex(
                chunk_length=chunk_bytes,
                chunk_start_offset=start,
                compression=self._compression,
                compressed_size=packed_size,
                message_end_time=span_ns[1],
                message_index_length=position - start - chunk_bytes,
                message_index_offsets=offsets,
                message_start_time=span_ns[0],
                uncompressed_size=size,
            )
        )
        self._chunks += 1

    def sync(self) -> None:
        """Have the disk itself hold what was appended, whatever happens to the machine.

        Raises:
            RecordingError: The disk reports an error.
        """
        if self._file is None:
            return
        try:
            os.fdatasync(self._file)
        except OSError as error:
            raise RecordingError(f'{self.path}: {error.strerror}.') from error

    def close(self) -> None:
        """Write the summary and close the file. Idempotent.

        Raises:
            RecordingError: The disk refuses the summary. Every message is in the file all the
                same; readers that want a summary get it by `mcap recover`.
        """
        if self._file is None:
            return
        try:
            self._append(self._closing())
            self.sync()
        finally:
            os.close(self._file)
            self._file = None

    def discard(self) -> None:
        """Close and remove the file."""
        if self._file is not None:
            os.close(self._file)
            self._file = None
        self.path.unlink(missing_ok=True)

    def _closing(self) -> list[bytes]:
        """What follows the data: repeated definitions, statistics, indices, footer."""
        end = _bytes(DataEnd(0))
        start = self._size_bytes + len(end)
        statistics = Statistics(
            attachment_count=0,
            channel_count=len(self._channels),
            channel_message_counts=dict(self._counts),
            chunk_count=self._chunks,
            message_count=self.count,
            message_end_time=self._last_ns,
            message_start_time=self._first_ns,
            metadata_count=0,
            schema_count=len(self._schemas),
        )
        groups = {
            Opcode.SCHEMA: b''.join(map(_bytes, self._schemas.values())),
            Opcode.CHANNEL: b''.join(map(_bytes, self._channels.values())),
            Opcode.STATISTICS: _bytes(statistics),
            Opcode.CHUNK_INDEX: bytes(self._chunk_index),
        }
        offsets, position = b'', start
        for opcode, group in groups.items():
            if group:
                offsets += _bytes(SummaryOffset(opcode, position, len(group)))
            position += len(group)
        summary = b''.join(groups.values()) + offsets
        # The checksum covers the footer too, but for its last four bytes: itself.
        unsigned = _bytes(Footer(start, position, 0))[:-4]
        crc = zlib.crc32(unsigned, zlib.crc32(summary))
        return [end, summary, unsigned, struct.pack('<I', crc), MAGIC]

    def _append(self, pieces: Sequence[bytes]) -> None:
        """Write all pieces, or cut the file back and raise."""
        if self._file is None:
            raise RecordingError(f'{self.path} is closed.')
        try:
            self._size_bytes += _write_all(self._file, pieces)
        except OSError as error:
            os.ftruncate(self._file, self._size_bytes)
            os.lseek(self._file, self._size_bytes, os.SEEK_SET)
            raise RecordingError(f'{self.path} cannot grow: {error.strerror}.') from error


def _write_all(file: int, pieces: Sequence[bytes]) -> int:
    """Write in one call where the kernel takes it so; return the bytes written."""
    views = [memoryview(piece) for piece in pieces if len(piece)]
    total = sum(len(view) for view in views)
    left = total
    while left:
        done = os.writev(file, views[:1024])
        left -= done
        while views and done >= len(views[0]):
            done -= len(views.pop(0))
        if done:
            views[0] = views[0][done:]
    return total


def _bytes(record: McapRecord) -> bytes:
    builder = RecordBuilder()
    record.write(builder)
    return builder.end()


def _compressor(compression: str) -> Callable[[bytes], bytes] | None:
    if compression not in COMPRESSIONS:
        raise UnknownNameError('compression', compression, COMPRESSIONS)
    if compression == 'lz4':
        import lz4.frame

        return lz4.frame.compress
    if compression == 'zstd':
        import zstandard

        return zstandard.ZstdCompressor(level=1).compress
    return None
