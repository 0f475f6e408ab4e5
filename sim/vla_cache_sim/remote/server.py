"""The worker: a simulator in a Python environment of its own, served over two pipes.

    PYTHON server.py --factory published_libero.py:make

This one file needs Python 3.8 and NumPy, nothing of this project; docs/remote_environments.md
describes the protocol. The first half is the codec of its messages, which the client uses too.

A frame is, with sizes as little-endian uint32,

    magic 'VCR1' | header's size | body's size | header | body

The header is a JSON object. Its list 'arrays' names each array with dtype and shape, and the body
holds their elements one array after another, row-major and little-endian.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import math
import os
import platform
import select
import struct
import sys
import threading
import time
import traceback
from typing import Any, Callable, Dict, NamedTuple, Union

import numpy as np

PROTOCOL = 1
MAGIC = b'VCR1'
PREFIX = struct.Struct('<4sII')
MAX_HEADER_BYTES = 1 << 20
MAX_BODY_BYTES = 1 << 28
MAX_DIMENSIONS = 8

GRACE_S = 5.0
"""Seconds that a worker has for its close when its client has gone."""

DTYPES = {
    name: np.dtype(name).newbyteorder('<')
    for name in (
        'bool',
        *('int8', 'int16', 'int32', 'int64'),
        *('uint8', 'uint16', 'uint32', 'uint64'),
        *('float16', 'float32', 'float64'),
    )
}
"""Element types that may travel, by their name in a header."""

Arrays = Dict[str, np.ndarray]
Buffer = Union[bytes, memoryview]


class FrameError(ValueError):
    """A frame is malformed, too large or incomplete; the stream cannot be read any further."""


class Message(NamedTuple):
    """What a frame holds."""

    header: dict[str, Any]
    arrays: Arrays


def encode(header: dict[str, Any], arrays: Arrays) -> list[Buffer]:
    """Turn a message into the buffers of a frame, without copying contiguous arrays.

    Raises:
        FrameError: An element type that may not travel, a header that is not JSON, or a frame
            beyond the limits.
    """
    entries, buffers = [], []
    for name, array in arrays.items():
        if array.dtype.name not in DTYPES:
            valid = ', '.join(DTYPES)
            raise FrameError(f'array {name!r} has elements {array.dtype}; valid: {valid}')
        entries.append({'name': name, 'dtype': array.dtype.name, 'shape': list(array.shape)})
        if array.size:
            flat = np.ascontiguousarray(array, DTYPES[array.dtype.name]).reshape(-1)
            buffers.append(flat.view(np.uint8).data)
    try:
        text = json.dumps({**header, 'arrays': entries}, allow_nan=False).encode()
    except (TypeError, ValueError) as error:
        raise FrameError(f'the header is not JSON: {error}') from error
    body_bytes = sum(len(buffer) for buffer in buffers)
    _check_sizes(len(text), body_bytes)
    return [PREFIX.pack(MAGIC, len(text), body_bytes) + text, *buffers]


def read_frame(read: Callable[[int], Any]) -> Message:
    """Read the next frame.

    Args:
        read: Returns so many bytes in a buffer of its own; raises where it cannot.

    Returns:
        The message; its arrays are views of the buffer read.

    Raises:
        FrameError: The frame is malformed or beyond the limits.
    """
    magic, header_bytes, body_bytes = PREFIX.unpack(read(PREFIX.size))
    if magic != MAGIC:
        raise FrameError(f'a frame begins with {MAGIC!r}, not {magic!r}')
    _check_sizes(header_bytes, body_bytes)
    header = _parse(bytes(read(header_bytes)))
    return Message(header, _split(header.pop('arrays', None), read(body_bytes)))


def _check_sizes(header_bytes: int, body_bytes: int) -> None:
    for part, size, limit in (
        ('header', header_bytes, MAX_HEADER_BYTES),
        ('body', body_bytes, MAX_BODY_BYTES),
    ):
        if size > limit:
            raise FrameError(f"a frame's {part} of {size} bytes exceeds the limit of {limit}")


def _parse(text: bytes) -> dict[str, Any]:
    def refuse(constant: str) -> None:
        raise ValueError(f'{constant} is not JSON')

    try:
        header = json.loads(text.decode(), parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise FrameError(f"a frame's header is not JSON: {error}") from error
    if not isinstance(header, dict):
        raise FrameError(f"a frame's header is a JSON object, not {type(header).__name__}")
    return header


def _split(entries: Any, body: Any) -> Arrays:
    """Cut the body into the arrays that the header lists."""
    if not isinstance(entries, list):
        raise FrameError("a frame's header has no list 'arrays'")
    arrays: Arrays = {}
    offset = 0
    for entry in entries:
        name, dtype, shape = _check_entry(entry)
        if name in arrays:
            raise FrameError(f'two arrays are called {name!r}')
        size = dtype.itemsize
        for length in shape:  # Python's integers do not overflow
            size *= length
        if offset + size > len(body):
            raise FrameError(f'array {name!r} ends behind the body of {len(body)} bytes')
        try:
            flat = np.ndarray(size // dtype.itemsize, dtype, body, offset)
            arrays[name] = flat.reshape(shape)
        except ValueError as error:  # e.g. [0, 2^30, 2^30, 2^30]
            raise FrameError(f'array {name!r}: {error}') from error
        offset += size
    if offset != len(body):
        raise FrameError(f'the arrays take {offset} bytes of a body of {len(body)}')
    return arrays


def _check_entry(entry: Any) -> tuple[str, np.dtype, list[int]]:
    if not isinstance(entry, dict) or set(entry) != {'name', 'dtype', 'shape'}:
        raise FrameError(f'an array is described by name, dtype and shape, not {entry!r:.200}')
    name, dtype, shape = entry['name'], entry['dtype'], entry['shape']
    if not isinstance(name, str):
        raise FrameError(f"an array's name is a string, not {name!r:.200}")
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise FrameError(f'array {name!r}: dtype {dtype!r:.200} is none of {", ".join(DTYPES)}')
    whole = isinstance(shape, list) and all(type(n) is int and 0 <= n < 1 << 31 for n in shape)
    if not whole or len(shape) > MAX_DIMENSIONS:
        raise FrameError(f'array {name!r}: shape {shape!r:.200} is not a list of sizes')
    return name, DTYPES[dtype], shape


class Pipes:
    """The worker's ends, kept from whatever the simulator prints or reads."""

    def __init__(self) -> None:
        """Move stdin and stdout away: prints go to stderr from now on, and stdin is empty."""
        sys.stdout.flush()
        self._in = os.dup(0)
        self._out = os.dup(1)
        os.dup2(2, 1)
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        os.close(nothing)
        threading.Thread(target=self._end_with_client, daemon=True).start()

    def _end_with_client(self) -> None:
        """End a simulator that hangs when its client has gone; others read the end themselves."""
        gone = select.poll()
        gone.register(self._in, 0)  # a hang-up is reported unasked
        gone.poll()
        time.sleep(GRACE_S)
        os._exit(1)

    def read(self, size: int) -> bytearray:
        """Read so many bytes.

        Raises:
            EOFError: The client has gone.
        """
        buffer = bytearray(size)
        view = memoryview(buffer)
        while view:
            count = os.readv(self._in, [view])
            if not count:
                raise EOFError
            view = view[count:]
        return buffer

    def write(self, buffers: list[Buffer]) -> None:
        """Write all of them."""
        for buffer in buffers:
            view = memoryview(buffer)
            while view:
                view = view[os.write(self._out, view) :]


class Worker:
    """Answers a client's calls, one after another."""

    def __init__(self, factory: Callable[..., Any]) -> None:
        """Build nothing yet: the simulator comes with the client's hello.

        Args:
            factory: Builds the simulator from the arguments of the client's hello.
        """
        self._factory = factory
        self._env: Any = None

    def answer(self, message: Message) -> tuple[Message, bool]:
        """Carry one call out.

        Returns:
            The reply, and whether another call may follow.
        """
        header, arrays = message
        call = header.get('call')
        reply: dict[str, Any] = {'id': header.get('id'), 'reply': call}
        try:
            if call == 'hello':
                return Message({**reply, **self._hello(header)}, {}), True
            if call == 'close':
                self.close()
                return Message(reply, {}), False
            if self._env is None or call not in ('reset', 'advance', 'observe'):
                raise RefusedError(
                    f'the worker expects hello first, then reset, advance, observe or '
                    f'close; not {call!r}'
                )
            more, observation = getattr(self, '_' + call)(header, arrays)
            return Message({**reply, **more}, observation), True
        except Exception as error:  # noqa: BLE001  # simulators raise anything
            return Message({'id': header.get('id'), 'error': describe(error)}, {}), True

    def close(self) -> None:
        """Free the simulator."""
        env, self._env = self._env, None
        if env is not None:
            env.close()

    def _hello(self, header: dict[str, Any]) -> dict[str, Any]:
        if header.get('protocol') != PROTOCOL:
            raise RefusedError(
                f'the worker speaks protocol {PROTOCOL}, not {header.get("protocol")!r}'
            )
        self.close()
        self._env = env = self._factory(**header.get('arguments', {}))
        return {
            'protocol': PROTOCOL,
            'worker': f'Python {platform.python_version()}, NumPy {np.__version__}',
            'instruction': env.instruction,
            'control_frequency_hz': float(env.control_frequency_hz),
            'cameras': list(env.cameras),
            'spaces': env.spaces,
        }

    def _reset(self, header: dict[str, Any], _: Arrays) -> tuple[dict[str, Any], Arrays]:
        observation, info = self._env.reset(seed=header.get('seed'), options=header.get('options'))
        return {'instruction': self._env.instruction, 'info': plain(info)}, observation

    def _advance(self, _: dict[str, Any], arrays: Arrays) -> tuple[dict[str, Any], Arrays]:
        if 'action' not in arrays:
            raise RefusedError("advance takes an array called 'action'")
        reward, success, truncated, info = self._env.advance(arrays['action'])
        return {
            'reward': float(reward),
            'success': bool(success),
            'truncated': bool(truncated),
            'instruction': self._env.instruction,
            'info': plain(info),
        }, {}

    def _observe(self, _: dict[str, Any], __: Arrays) -> tuple[dict[str, Any], Arrays]:
        return {}, self._env.observe()


class RefusedError(ValueError):
    """The client asked for what the protocol does not have."""

    kind = 'protocol'


def describe(error: BaseException) -> dict[str, str]:
    """An exception for the wire; its class's attribute `kind` says whose fault it is."""
    lines = traceback.format_exception(type(error), error, error.__traceback__)
    return {
        'kind': str(getattr(error, 'kind', 'simulator')),
        'type': type(error).__name__,
        'message': str(error)[:4000],
        'traceback': ''.join(lines)[-16000:],
    }


def plain(value: Any) -> Any:
    """Reduce a simulator's info to what JSON has; NaN and infinity become null."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, (bool, int, str)) else repr(value)[:1000]


def serve(factory: Callable[..., Any], pipes: Pipes) -> None:
    """Answer calls until the client says close, or has gone."""
    worker = Worker(factory)
    try:
        follows = True
        while follows:
            try:
                message = read_frame(pipes.read)
            except FrameError as error:
                description = {**describe(error), 'kind': 'protocol'}
                pipes.write(encode({'id': None, 'error': description}, {}))
                return
            reply, follows = worker.answer(message)
            try:
                frame = encode(*reply)
            except FrameError as error:  # what the simulator gave cannot travel
                frame = encode({'id': reply.header['id'], 'error': describe(error)}, {})
            pipes.write(frame)
    except (EOFError, BrokenPipeError, KeyboardInterrupt):
        return
    finally:
        worker.close()


def load_factory(name: str) -> Callable[..., Any]:
    """Find 'package.module:function' or 'path/to/file.py:function'."""
    place, _, function = name.rpartition(':')
    if not place.endswith('.py'):
        return getattr(importlib.import_module(place), function)
    spec = importlib.util.spec_from_file_location('vla_cache_worker_factory', place)
    if spec is None or spec.loader is None:
        raise ImportError(f'cannot load {place}')
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return getattr(module, function)


def main() -> None:
    """Serve the factory that the command line names."""
    parser = argparse.ArgumentParser(description='Serve a simulator over stdin and stdout.')
    parser.add_argument('--factory', required=True, help='module:function or file.py:function')
    arguments = parser.parse_args()
    # The script's own folder may hold names of other packages.
    here = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [path for path in sys.path if os.path.abspath(path) != here]
    pipes = Pipes()
    # Loaded at the hello, so that what fails in its imports is reported like any other error.
    serve(lambda **given: load_factory(arguments.factory)(**given), pipes)


if __name__ == '__main__':
    main()
