"""What one MCAP file holds, read from the front: whole, cut or damaged, nothing raises half-way.

A file is magic, records and magic; a record is

    opcode (1 byte), length (8 bytes), content (length bytes),

so that a reader knows where the next one begins without understanding this one. What cannot be
read becomes a `Loss`, told in bytes, and reading goes on behind it, or ends where the file was
cut. Of a chunk that was cut, even a compressed one, the messages before the cut are read.
"""

import io
import os
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

from mcap.data_stream import ReadDataStream
from mcap.opcode import Opcode
from mcap.records import Channel, Chunk, Footer, Message, Schema

from vla_cache_ros.core.errors import RecordingError
from vla_cache_ros.recording.container import MAGIC

MAX_CHUNK_BYTES = 2**30
"""Of a chunk, packed or unpacked: a hostile file may claim more than there is memory."""

MAX_DEFINITIONS_BYTES = 64 * 2**20

_HEAD = struct.Struct('<BQ')
_CHUNK_FIXED = struct.Struct('<QQQII')  # first and last time, size, CRC, length of compression
_MESSAGE = struct.Struct('<HIQQ')
_FOOTER_BYTES = _HEAD.size + 20
_CHANNEL_DEFINITIONS = (Opcode.SCHEMA, Opcode.CHANNEL)


@dataclass(frozen=True)
class Loss:
    """Something of a file that could not be read.

    Attributes:
        path: The file.
        offset: Where in the file, bytes.
        size_bytes: How much of the file it is.
        reason: What is wrong with it.
        messages: Messages that are known to be lost with it.
    """

    path: Path
    offset: int
    size_bytes: int
    reason: str
    messages: int = 0

    def __str__(self) -> str:
        """Tell it in a sentence."""
        lost = f', {self.messages} messages' if self.messages else ''
        return (
            f'{self.path.name}: {self.size_bytes} bytes at {self.offset} lost{lost}: {self.reason}'
        )


class McapFile:
    """One file. Iterate `messages` once; `losses` and `is_complete` are settled after that."""

    def __init__(self, path: Path) -> None:
        """Look at the file without reading it.

        Raises:
            RecordingError: There is no such file, it is empty, or it is no MCAP file.
        """
        self.path = path
        self.losses: list[Loss] = []
        self.is_complete = False
        """Whether the file was closed properly: its data end where they say so."""
        self.count = 0
        """Messages read."""
        self._schemas: dict[int, Any] = {}
        self._channels: dict[int, Any] = {}
        try:
            self._size = path.stat().st_size
            with path.open('rb') as file:
                start = file.read(len(MAGIC))
        except OSError as error:
            raise RecordingError(f'{path} cannot be read: {error.strerror}.') from error
        if not self._size:
            raise RecordingError(f'{path} is empty; valid: an MCAP file.')
        if start != MAGIC:
            raise RecordingError(
                f'{path} is no MCAP file: it begins with {start!r}; valid: {MAGIC!r}. rosbag2 '
                'writes MCAP with `ros2 bag record --storage mcap`, and converts to it with '
                '`ros2 bag convert`.'
            )

    def schema(self, channel: Channel) -> Schema | None:
        """Definition of a channel's type, where the file has one."""
        return self._schemas.get(channel.schema_id)

    def messages(self) -> Iterator[tuple[Channel, Message]]:
        """Yield every message that can be read, in the file's order."""
        try:
            with self.path.open('rb') as file:
                expected = self._read_summary(file)
                yield from self._read_data(file)
        except OSError as error:
            raise RecordingError(f'{self.path} cannot be read: {error.strerror}.') from error
        self._check_count(expected)

    def _check_count(self, expected: int | None) -> None:
        """Tell how many messages a loss cost, and of one that left no other trace."""
        if expected is None or not self.is_complete or expected == self.count:
            return
        missing = max(0, expected - self.count)
        if self.losses:
            self.losses[0] = replace(self.losses[0], messages=missing)
            return
        self._lose(
            0, 0, f'the file counts {expected} messages at its end and holds {self.count}', missing
        )

    def _read_data(self, file: BinaryIO) -> Iterator[tuple[Channel, Message]]:
        offset = len(MAGIC)
        while True:
            file.seek(offset)
            head = file.read(_HEAD.size)
            if len(head) < _HEAD.size:
                self._lose(offset, len(head), 'the file ends here, without having been closed')
                return
            opcode, length = _HEAD.unpack(head)
            if opcode in (Opcode.DATA_END, Opcode.FOOTER):
                self.is_complete = True
                return
            content = offset + _HEAD.size
            is_cut = content + length > self._size
            if opcode == Opcode.CHUNK:
                yield from self._read_chunk(file, offset, length)
            elif opcode in (Opcode.MESSAGE, *_CHANNEL_DEFINITIONS) and not is_cut:
                yield from self._read_plain(file, offset, opcode, length)
            if is_cut:
                if opcode != Opcode.CHUNK:
                    self._lose(offset, self._size - offset, 'the file is cut within a record')
                return
            offset = content + length

    def _read_plain(
        self, file: BinaryIO, offset: int, opcode: int, length: int
    ) -> Iterator[tuple[Channel, Message]]:
        """A record outside of any chunk."""
        if length > MAX_CHUNK_BYTES:
            self._lose(offset, length, f'a record of {length} bytes; valid: {MAX_CHUNK_BYTES}')
            return
        yield from self._record(opcode, file.read(length), offset)

    def _read_chunk(
        self, file: BinaryIO, offset: int, length: int
    ) -> Iterator[tuple[Channel, Message]]:
        """A chunk, of which the end may be missing."""
        present = min(length, self._size - offset - _HEAD.size)
        if present > MAX_CHUNK_BYTES:
            self._lose(offset, present, f'a chunk of {present} bytes; valid: {MAX_CHUNK_BYTES}')
            return
        content = file.read(present)
        try:
            chunk = _parse_chunk(content, length)
            is_cut = present < length
            plain = _unpack(chunk, is_cut)
        except Exception as error:  # the libraries' own kinds; whichever, the chunk is lost
            self._lose(offset, _HEAD.size + present, f'a chunk cannot be unpacked ({error})')
            return
        damaged = chunk.uncompressed_crc and zlib.crc32(plain) != chunk.uncompressed_crc
        if damaged and not is_cut:
            self._lose(offset, _HEAD.size + present, "a chunk's checksum does not match")
            return
        used = yield from self._records_within(plain, offset)
        if is_cut:
            self._lose(
                offset,
                _HEAD.size + present,
                f'the file is cut within a chunk; {used} bytes of its messages were read',
            )
        elif used < len(plain):
            self._lose(offset, len(plain) - used, 'a chunk ends within a record')

    def _records_within(self, plain: bytes, offset: int) -> Iterator[tuple[Channel, Message]]:
        """The records of an unpacked chunk; returns the bytes of those that are whole."""
        position = 0
        while position + _HEAD.size <= len(plain):
            opcode, length = _HEAD.unpack_from(plain, position)
            stop = position + _HEAD.size + length
            if stop > len(plain):
                break
            yield from self._record(opcode, plain[position + _HEAD.size : stop], offset)
            position = stop
        return position  # noqa: B901  # what `yield from` evaluates to

    def _record(
        self, opcode: int, content: bytes, offset: int
    ) -> Iterator[tuple[Channel, Message]]:
        if opcode in _CHANNEL_DEFINITIONS:
            self._define(opcode, content, offset)
            return
        if opcode != Opcode.MESSAGE:
            return
        if len(content) < _MESSAGE.size:
            self._lose(offset, len(content), 'a message shorter than its own fields')
            return
        channel_id, sequence, log_ns, publish_ns = _MESSAGE.unpack_from(content)
        channel = self._channels.get(channel_id)
        if channel is None:
            self._lose(
                offset,
                len(content),
                f'a message of channel {channel_id}, which nothing defines',
                1,
            )
            return
        self.count += 1
        yield (
            channel,
            Message(channel_id, log_ns, content[_MESSAGE.size :], publish_ns, sequence),
        )

    def _define(self, opcode: int, content: bytes, offset: int) -> None:
        stream = ReadDataStream(io.BytesIO(content))
        try:
            if opcode == Opcode.SCHEMA:
                defined, kind = Schema.read(stream), self._schemas
            else:
                defined, kind = Channel.read(stream), self._channels
        except Exception as error:  # whatever the library meets in a damaged record
            self._lose(offset, len(content), f'a definition cannot be read ({error})')
            return
        if kind.setdefault(defined.id, defined) != defined:
            self._lose(offset, len(content), f'a second, different definition of {defined.id}')

    def _read_summary(self, file: BinaryIO) -> int | None:
        """Take the definitions that the end of a whole file repeats.

        They stand in for those that a damaged chunk held.

        Returns:
            How many messages the file says it holds, where it says so.
        """
        footer_offset = self._size - len(MAGIC) - _FOOTER_BYTES
        if footer_offset < len(MAGIC):
            return None
        file.seek(footer_offset)
        tail = file.read()
        if tail[-len(MAGIC) :] != MAGIC or tail[0] != Opcode.FOOTER:
            return None
        footer = Footer.read(ReadDataStream(io.BytesIO(tail[_HEAD.size :])))
        if not len(MAGIC) <= footer.summary_start < footer_offset:
            return None
        file.seek(footer.summary_start)
        left = footer_offset - footer.summary_start
        expected = None
        while left >= _HEAD.size:
            opcode, length = _HEAD.unpack(file.read(_HEAD.size))
            if length > left - _HEAD.size or length > MAX_DEFINITIONS_BYTES:
                break
            if opcode in _CHANNEL_DEFINITIONS:
                self._define(opcode, file.read(length), footer.summary_start)
            elif opcode == Opcode.STATISTICS and length >= 8:
                expected = int.from_bytes(file.read(length)[:8], 'little')
            else:
                file.seek(length, os.SEEK_CUR)
            left -= _HEAD.size + length
        return expected

    def _lose(self, offset: int, size_bytes: int, reason: str, messages: int = 0) -> None:
        last = self.losses[-1] if self.losses else None
        if last is not None and (last.reason, last.offset) == (reason, offset):
            merged_bytes, merged = last.size_bytes + size_bytes, last.messages + messages
            self.losses[-1] = Loss(self.path, offset, merged_bytes, reason, merged)
            return
        self.losses.append(Loss(self.path, offset, size_bytes, reason, messages))


def _parse_chunk(content: bytes, length: int) -> Chunk:
    """Read a chunk record of so many bytes, of which the end may be missing.

    Raises:
        RecordingError: Its data are longer than the record.
    """
    first_ns, last_ns, size, crc, name_bytes = _CHUNK_FIXED.unpack_from(content)
    name_stop = _CHUNK_FIXED.size + name_bytes
    compression = content[_CHUNK_FIXED.size : name_stop].decode()
    (packed_bytes,) = struct.unpack_from('<Q', content, name_stop)
    if name_stop + 8 + packed_bytes > length:
        raise RecordingError(f'it claims {packed_bytes} bytes of {length}')
    data = content[name_stop + 8 : name_stop + 8 + packed_bytes]
    return Chunk(
        compression=compression,
        data=data,
        message_end_time=last_ns,
        message_start_time=first_ns,
        uncompressed_crc=crc,
        uncompressed_size=size,
    )


def _unpack(chunk: Chunk, is_cut: bool) -> bytes:
    """The chunk's records, at most as many bytes as it claims; of a cut one, what is there.

    Raises:
        RecordingError: It claims too much, holds less than it claims, or is compressed in another
            way.
    """
    if chunk.uncompressed_size > MAX_CHUNK_BYTES:
        raise RecordingError(
            f'it claims {chunk.uncompressed_size} bytes; valid: at most {MAX_CHUNK_BYTES}'
        )
    if not chunk.compression:
        plain = chunk.data
    elif chunk.compression == 'zstd':
        plain = _unzstd(chunk.data, chunk.uncompressed_size)
    elif chunk.compression == 'lz4':
        import lz4.frame

        unpacker = lz4.frame.LZ4FrameDecompressor()
        plain = unpacker.decompress(chunk.data, max_length=chunk.uncompressed_size)
    else:
        raise RecordingError(f'compression {chunk.compression!r}; valid: lz4, zstd')
    if len(plain) != chunk.uncompressed_size and not is_cut:
        raise RecordingError(f'it holds {len(plain)} bytes and claims {chunk.uncompressed_size}')
    return plain


def _unzstd(packed: bytes, size: int) -> bytes:
    """Unpack what there is, and no more than `size`."""
    import zstandard

    plain = bytearray()
    with zstandard.ZstdDecompressor(max_window_size=2**27).stream_reader(packed) as reader:
        while len(plain) < size:
            piece = reader.read(min(2**20, size - len(plain)))
            if not piece:
                break
            plain += piece
    return bytes(plain)
