import ast
import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from vla_cache_sim.remote import server
from vla_cache_sim.remote.process import python_worker
from vla_cache_sim.remote.server import (
    DTYPES,
    GRACE_S,
    MAGIC,
    MAX_BODY_BYTES,
    MAX_DIMENSIONS,
    MAX_HEADER_BYTES,
    PREFIX,
    PROTOCOL,
    FrameError,
    encode,
    read_frame,
)

FACTORY = f'{Path(__file__).parent / "fake_factory.py"}:make'

arrays = st.dictionaries(
    st.text(max_size=8),
    hnp.arrays(
        st.sampled_from([*DTYPES.values(), np.dtype('>f4'), np.dtype('>i2')]),
        hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5),
    ),
    max_size=4,
)
scalars = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
)
json_values = st.recursive(
    scalars | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
)
headers = st.dictionaries(st.text().filter(lambda key: key != 'arrays'), json_values, max_size=4)


def reader(data: bytes) -> Callable[[int], bytearray]:
    stream = io.BytesIO(data)

    def read(size: int) -> bytearray:
        block = bytearray(stream.read(size))
        if len(block) < size:
            raise EOFError
        return block

    return read


def frame(header: object, body: bytes = b'') -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return PREFIX.pack(MAGIC, len(text), len(body)) + text + body


def entry(**changes: object) -> dict[str, object]:
    return {'arrays': [{'name': 'a', 'dtype': 'uint8', 'shape': [2], **changes}]}


@given(headers, arrays)
def test_what_is_encoded_is_read_back(header: dict, sent: dict[str, np.ndarray]):
    message = read_frame(reader(b''.join(encode(header, sent))))
    assert message.header == header
    assert list(message.arrays) == list(sent)
    for name, array in sent.items():
        received = message.arrays[name]
        assert received.shape == array.shape
        assert received.dtype.name == array.dtype.name
        assert received.tobytes() == array.astype(DTYPES[array.dtype.name]).tobytes()


@given(arrays, st.data())
def test_a_truncated_frame_is_an_end_and_never_a_message(
    sent: dict[str, np.ndarray], data: st.DataObject
):
    whole = b''.join(encode({'call': 'reset'}, sent))
    cut = data.draw(st.integers(0, len(whole) - 1))
    with pytest.raises(EOFError):
        read_frame(reader(whole[:cut]))


@given(st.binary(max_size=64) | st.binary(max_size=64).map(frame))
def test_any_bytes_are_a_message_or_a_frame_error_or_an_end(data: bytes):
    try:
        message = read_frame(reader(data))
    except (EOFError, FrameError):
        return
    assert isinstance(message.header, dict)


@given(json_values, st.binary(max_size=16))
def test_any_json_is_a_message_or_a_frame_error(header: object, body: bytes):
    for document in (header, {'arrays': header}, {'arrays': [header]}):
        try:
            message = read_frame(reader(frame(document, body)))
        except FrameError:
            continue
        assert sum(array.nbytes for array in message.arrays.values()) == len(body)


@pytest.mark.parametrize(
    ('data', 'complaint'),
    [
        (b'HTTP/1.1 200', 'begins with'),
        (PREFIX.pack(MAGIC, MAX_HEADER_BYTES + 1, 0), 'header of'),
        (PREFIX.pack(MAGIC, 2, MAX_BODY_BYTES + 1), 'body of'),
        (frame(b'{"a": NaN, "arrays": []}'), 'not JSON'),
        (frame(b'\xff'), 'not JSON'),
        (frame(b'[' * 100_000), 'not JSON'),
        (frame([]), 'JSON object'),
        (frame({}), 'no list'),
        (frame({'arrays': []}, b'x'), 'take 0 bytes'),
        (frame({'arrays': ['a']}), 'described by'),
        (frame(entry(more=1), b'xx'), 'described by'),
        (frame(entry(name=1), b'xx'), 'name is a string'),
        (frame(entry(dtype='object'), b'xx'), 'is none of'),
        (frame(entry(dtype=['u1']), b'xx'), 'is none of'),
        (frame(entry(shape=2), b'xx'), 'list of sizes'),
        (frame(entry(shape=[-2]), b'xx'), 'list of sizes'),
        (frame(entry(shape=[True, 2]), b'xx'), 'list of sizes'),
        (frame(entry(shape=[1] * 9), b'x'), 'list of sizes'),
        (frame(entry(shape=[3]), b'xx'), 'ends behind'),
        (frame(entry(shape=[1 << 30] * 8), b'xx'), 'ends behind'),
        (frame(entry(shape=[0, *[1 << 30] * 3])), "array 'a'"),
        (frame({'arrays': entry()['arrays'] * 2}, b'xxxx'), 'two arrays'),  # type: ignore[operator]
    ],
)
def test_a_malformed_frame_is_refused_with_its_fault(data: bytes, complaint: str):
    with pytest.raises(FrameError, match=complaint):
        read_frame(reader(data))


@pytest.mark.parametrize(
    ('header', 'sent'),
    [
        ({'x': float('inf')}, {}),
        ({'x': object()}, {}),
        ({'x': 'y' * MAX_HEADER_BYTES}, {}),
        ({}, {'a': np.array([object()])}),
        ({}, {'a': np.array(['text'])}),
        ({}, {'a': np.array([1j])}),
        ({}, {'a': np.broadcast_to(np.uint8(0), (MAX_BODY_BYTES + 1,))}),
    ],
)
def test_what_may_not_travel_is_refused_before_it_is_sent(header: dict, sent: dict):
    with pytest.raises(FrameError):
        encode(header, sent)


def test_a_contiguous_array_is_not_copied():
    image = np.zeros((4, 4, 3), np.uint8)
    view = np.asarray(encode({}, {'image': image})[1])
    assert np.shares_memory(view, image)


@pytest.mark.parametrize('name', ['server.py', 'google_robot.py'])
def test_the_worker_is_python_3_8_with_numpy_alone(name: str):
    source = (Path(server.__file__).parent / name).read_text()
    tree = ast.parse(source, feature_version=(3, 8))
    imported = {
        (node.module if isinstance(node, ast.ImportFrom) else alias.name).split('.')[0]  # type: ignore[union-attr]
        for node in tree.body
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }
    assert imported <= {*sys.stdlib_module_names, 'numpy'}


def test_the_documentation_states_the_limits_and_types_of_the_code():
    text = (Path(__file__).parents[3] / 'docs' / 'remote_environments.md').read_text()
    assert f'The protocol, version {PROTOCOL}' in text
    assert f"'{MAGIC.decode()}'" in text
    assert f'uint32, little-endian; at most {MAX_HEADER_BYTES >> 20} MiB' in text
    assert f'likewise; at most {MAX_BODY_BYTES >> 20} MiB' in text
    assert f'at most {MAX_DIMENSIONS} dimensions' in text
    assert ', '.join(DTYPES) in ' '.join(text.split())
    assert f'if it hangs, {GRACE_S:g} s later' in text


class RawClient:
    """Talks to a worker byte by byte."""

    def __init__(self, factory: str = FACTORY) -> None:
        self.process = subprocess.Popen(
            python_worker(sys.executable, factory),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def send(self, data: bytes) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(data)
        self.process.stdin.flush()

    def receive(self) -> dict:
        assert self.process.stdout is not None
        return read_frame(reader_of(self.process.stdout)).header

    def end(self) -> int:
        """Hang up, as a client does that was killed, and wait for the exit code."""
        self.process.communicate(timeout=20)
        return self.process.returncode


def reader_of(stream) -> Callable[[int], bytearray]:
    def read(size: int) -> bytearray:
        return bytearray(stream.read(size))

    return read


def test_a_worker_answers_a_malformed_frame_with_an_error_and_ends():
    client = RawClient()
    client.send(b'GET / HTTP/1.1\r\n\r\n')
    assert client.receive()['error']['kind'] == 'protocol'
    assert client.end() == 0


def test_a_worker_refuses_another_protocol_and_unknown_calls():
    client = RawClient()
    for request, complaint in (
        ({'id': 1, 'call': 'reset'}, 'expects hello first'),
        ({'id': 2, 'call': 'hello', 'protocol': 99}, 'speaks protocol 1, not 99'),
        ({'id': 3, 'call': '__class__'}, 'expects hello first'),
    ):
        client.send(frame({**request, 'arrays': []}))
        answer = client.receive()
        assert answer['id'] == request['id']
        assert answer['error']['kind'] == 'protocol'
        assert complaint in answer['error']['message']
    client.send(frame({'id': 4, 'call': 'close', 'arrays': []}))
    assert client.receive()['reply'] == 'close'
    assert client.end() == 0


def test_a_worker_ends_when_its_client_goes():
    assert RawClient().end() == 0


@pytest.mark.slow
def test_a_worker_that_hangs_ends_soon_after_its_client():
    client = RawClient()
    hello = {'id': 1, 'call': 'hello', 'protocol': 1, 'arguments': {'behaviour': 'hangs'}}
    client.send(frame({**hello, 'arrays': []}))
    assert client.receive()['reply'] == 'hello'
    client.send(b''.join(encode({'id': 2, 'call': 'advance'}, {'action': np.zeros(7)})))
    assert client.end() == 1


def test_a_missing_factory_is_an_error_of_the_hello():
    client = RawClient('no_such_module:make')
    client.send(frame({'id': 1, 'call': 'hello', 'protocol': 1, 'arguments': {}, 'arrays': []}))
    assert client.receive()['error']['type'] == 'ModuleNotFoundError'
    assert client.end() == 0
