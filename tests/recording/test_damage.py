"""Files that were cut, flipped or made to do harm: what can be read is read, the rest is told."""

import io
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mcap.data_stream import ReadDataStream
from mcap.opcode import Opcode
from mcap.records import Chunk, Message
from mcap.stream_reader import breakup_chunk
from mcap.writer import CompressionType

from tests.recording.recorded import image, record, record_by_library, text
from vla_cache_ros.core.errors import RecordingError
from vla_cache_ros.recording.container import MAGIC
from vla_cache_ros.recording.reader import Recording

NOISE = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
SAID = [
    said
    for index in range(12)
    for said in (text(f'message {index} ' * 3, index), image('/camera/a/image_raw', NOISE, index))
]
FILES = {
    'own': lambda folder: record(folder, SAID),
    'own, compressed': lambda folder: record(folder, SAID, 'zstd', per_chunk=4),
    'chunks': lambda folder: record_by_library(
        folder / 'a.mcap', SAID, chunk_size=1500, compression=CompressionType.NONE
    ),
    'zstd chunks': lambda folder: record_by_library(folder / 'a.mcap', SAID, chunk_size=1500),
    'lz4 chunks': lambda folder: record_by_library(
        folder / 'a.mcap', SAID, chunk_size=1500, compression=CompressionType.LZ4
    ),
    'no chunks': lambda folder: record_by_library(folder / 'a.mcap', SAID, use_chunking=False),
}


class Whole(dict):
    def __repr__(self):
        return 'bytes by kind'  # not all of them, in every report of a failure


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    """Bytes of a file of each kind."""
    made = {name: make(tmp_path_factory.mktemp('whole')) for name, make in FILES.items()}
    return Whole({name: path.read_bytes() for name, path in made.items()})


@pytest.fixture(scope='module')
def scratch(tmp_path_factory):
    return tmp_path_factory.mktemp('damage') / 'a.mcap'


def read(path):
    recording = Recording(path)
    return [(message.topic, message.data) for message in recording.messages()], recording.losses


def ends_of_messages(content):
    """Where in an uncompressed file each message's last byte is."""
    ends, position = [], 0
    for said in SAID:
        position = content.index(said.data, position) + len(said.data)
        ends.append(position)
    return ends


EXPECTED = [(said.topic, said.data) for said in SAID]


@pytest.mark.parametrize('kind', ['own', 'chunks', 'no chunks'])
@given(data=st.data())
@settings(max_examples=150)
def test_everything_before_a_cut_is_recovered(whole, scratch, kind, data):
    content = whole[kind]
    cut = data.draw(st.integers(len(MAGIC), len(content) - 1))
    scratch.write_bytes(content[:cut])
    found, losses = read(scratch)
    before = sum(end <= cut for end in ends_of_messages(content))
    assert found == EXPECTED[:before]
    # Only a file that lacks nothing but its summary has nothing to tell.
    if before < len(SAID):
        assert losses
    assert sum(loss.size_bytes for loss in losses) <= cut


@pytest.mark.parametrize('kind', ['own, compressed', 'zstd chunks', 'lz4 chunks'])
@given(data=st.data())
@settings(max_examples=100)
def test_a_cut_compressed_file_gives_a_beginning_and_every_whole_chunk(whole, scratch, kind, data):
    content = whole[kind]
    cut = data.draw(st.integers(len(MAGIC), len(content) - 1))
    scratch.write_bytes(content[:cut])
    found, losses = read(scratch)
    assert found == EXPECTED[: len(found)]
    assert losses or len(found) == len(SAID)
    ends = [_chunk_end(content, number) for number in range(1, len(SAID) + 1)]
    assert len(found) >= sum(end <= cut for end in ends)


def _chunk_end(content, number):
    """Where the chunk that holds the message of that number ends."""
    offset, count = len(MAGIC), 0
    while count < number:
        opcode, length = struct.unpack_from('<BQ', content, offset)
        start, offset = offset + 9, offset + 9 + length
        if opcode == Opcode.CHUNK:
            chunk = Chunk.read(ReadDataStream(io.BytesIO(content[start:offset])))
            count += sum(isinstance(record, Message) for record in breakup_chunk(chunk))
    return offset


@pytest.mark.parametrize('kind', list(FILES))
@given(data=st.data())
@settings(max_examples=150)
def test_flipped_bits_are_told_and_never_give_a_wrong_message_where_there_are_checksums(
    whole, scratch, kind, data
):
    content = bytearray(whole[kind])
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(content) - 1))
        content[at] ^= 1 << data.draw(st.integers(0, 7))
    scratch.write_bytes(content)
    try:
        found, losses = read(scratch)
    except RecordingError:
        return  # its beginning: no MCAP file any more
    if kind == 'no chunks':
        return  # unchunked files of other writers have no checksums
    wrong = [message for message in found if message not in EXPECTED]
    assert not wrong or losses
    assert len(found) == len(SAID) or losses


@given(content=st.binary(max_size=300))
@settings(max_examples=300)
def test_noise_is_read_to_its_end(scratch, content):
    scratch.write_bytes(MAGIC + content)
    read(scratch)


records = st.lists(
    st.tuples(st.integers(1, 15), st.binary(max_size=60), st.integers(-9, 2**40)), max_size=12
)


@given(records=records)
@settings(max_examples=300)
def test_records_of_noise_with_wrong_lengths_are_read_to_their_end(scratch, records):
    content = MAGIC
    for opcode, data, wrong_by in records:
        length = max(0, len(data) + (wrong_by if wrong_by < 0 or wrong_by > 2**39 else 0))
        content += struct.pack('<BQ', opcode, length) + data
    scratch.write_bytes(content + MAGIC)
    read(scratch)


def chunk_record(compression, data, claims, crc=0):
    name = compression.encode()
    content = struct.pack('<QQQI', 0, 0, claims, crc) + struct.pack(
        f'<I{len(name)}sQ', len(name), name, len(data)
    )
    return struct.pack('<BQ', 6, len(content) + len(data)) + content + data


def bomb(kind):
    import lz4.frame
    import zstandard

    zeros = bytes(50_000_000)
    return {'zstd': zstandard.compress, 'lz4': lz4.frame.compress}[kind](zeros)


@pytest.mark.parametrize('kind', ['zstd', 'lz4'])
def test_a_chunk_is_not_unpacked_beyond_what_it_claims(scratch, kind):
    packed = bomb(kind)
    for claims in (1000, 2**40):
        scratch.write_bytes(MAGIC + chunk_record(kind, packed, claims))
        tracemalloc.start()
        found, losses = read(scratch)
        _, peak_bytes = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert not found
        assert losses
        assert peak_bytes < 20_000_000


@pytest.mark.parametrize('compression', ['', 'lz4', 'zstd', 'brotli', '\0'])
def test_a_chunk_of_noise_is_one_loss_and_reading_goes_on(scratch, compression, whole):
    body = whole['own'][len(MAGIC) :]
    noise = chunk_record(compression, NOISE.tobytes(), claims=999, crc=zlib.crc32(b'other'))
    scratch.write_bytes(MAGIC + noise + body)
    found, losses = read(scratch)
    assert found == EXPECTED
    assert losses[0].offset == len(MAGIC)
    assert losses[0].size_bytes == len(noise)


def test_a_damaged_first_chunk_does_not_cost_the_definitions(whole, scratch):
    """The end of a whole file repeats them."""
    content = bytearray(whole['zstd chunks'])
    content[200] ^= 255
    scratch.write_bytes(content)
    found, losses = read(scratch)
    assert 0 < len(found) < len(SAID)
    assert found == EXPECTED[-len(found) :]
    assert losses[0].messages == len(SAID) - len(found)
    assert f'{losses[0].messages} messages' in str(losses[0])


def test_messages_that_nothing_defines_are_counted(whole, scratch):
    content = whole['no chunks']
    cut = content[: -len(MAGIC)]  # no end, so no definitions there
    first = cut.index(SAID[0].data) - 31
    scratch.write_bytes(MAGIC + cut[first:])
    found, losses = read(scratch)
    assert not [topic for topic, _ in found if topic == SAID[0].topic]
    assert losses[0].messages == 1
    assert 'which nothing defines' in losses[0].reason
