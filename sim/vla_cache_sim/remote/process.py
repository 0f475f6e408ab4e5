"""A worker process and the exchange of messages with it, guarded by deadlines."""

import contextlib
import fcntl
import json
import os
import select
import signal
import subprocess
import threading
import time
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path

from vla_cache_ros.core.errors import SimulatorError
from vla_cache_sim.remote.server import FrameError, Message, encode, read_frame

_STDERR_BYTES = 16384
_STDERR_LINES = 15
_PIPE_BYTES = 1 << 20
"""Two images of 256 x 256 fit into a pipe of this size, which is the most that Linux allows."""

_NOT_INHERITED = ('PYTHONPATH', 'PYTHONHOME', 'VIRTUAL_ENV')
"""They would lead the worker's Python to this environment's packages."""

_PRINT_VERSIONS = """
import importlib.metadata, json, sys
versions = {}
for name in sys.argv[1:]:
    try:
        versions[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        versions[name] = 'not installed'
print(json.dumps(versions))
"""


class WorkerProcess:
    """A started worker; whatever goes wrong with it is a SimulatorError that shows its stderr."""

    def __init__(
        self, command: Sequence[str], environ: Mapping[str, str] | None = None, hint: str = ''
    ) -> None:
        """Start the process.

        Args:
            command: The program and its arguments.
            environ: Environment variables set for it besides this process's.
            hint: What to do where the program is missing, or dies before its first answer.

        Raises:
            SimulatorError: It cannot be started.
        """
        self._hint = hint
        self._ended = ''
        self._answered = False
        inherited = {k: v for k, v in os.environ.items() if k not in _NOT_INHERITED}
        try:
            self._process = subprocess.Popen(
                list(command),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                bufsize=0,
                env={**inherited, **(environ or {})},
                start_new_session=True,  # it ends when the pipe does, not by a Ctrl-C of its own
            )
        except OSError as error:
            raise SimulatorError(self._hinted(f'cannot start {command[0]}: {error}')) from error
        pipes = self._process
        assert pipes.stdin is not None
        assert pipes.stdout is not None
        assert pipes.stderr is not None
        self._in, self._out = pipes.stdin.fileno(), pipes.stdout.fileno()
        for descriptor in (self._in, self._out):
            os.set_blocking(descriptor, False)
            with contextlib.suppress(OSError):  # an unprivileged user's share may be used up
                fcntl.fcntl(descriptor, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        self._writable, self._readable = select.poll(), select.poll()
        self._writable.register(self._in, select.POLLOUT)
        self._readable.register(self._out, select.POLLIN)
        self._stderr = _Tail(pipes.stderr.fileno())
        self._finalizer = weakref.finalize(self, _kill, self._process)

    @property
    def pid(self) -> int:
        """The process's id."""
        return self._process.pid

    def exchange(self, message: Message, timeout_s: float) -> Message:
        """Send a message and wait for the answer.

        Args:
            message: What to send.
            timeout_s: Time for both; a worker that needs longer is killed.

        Raises:
            SimulatorError: The process has died, hangs, or does not keep to the protocol.
        """
        if self._ended:
            raise SimulatorError(self._ended)
        call = message.header['call']
        deadline = time.monotonic() + timeout_s
        late = f'did not answer {call!r} within {timeout_s:g} s and was killed'

        def wait(poll: select.poll) -> None:
            left_s = deadline - time.monotonic()
            if left_s <= 0 or not poll.poll(1e3 * left_s):
                raise self.end(late)

        def read(size: int) -> bytearray:
            buffer = bytearray(size)
            view = memoryview(buffer)
            while view:
                try:
                    count = os.readv(self._out, [view])
                except BlockingIOError:
                    wait(self._readable)
                    continue
                if not count:
                    raise self._died(call)
                view = view[count:]
            return buffer

        for buffer in encode(*message):
            view = memoryview(buffer)
            while view:
                try:
                    view = view[os.write(self._in, view) :]
                except BlockingIOError:
                    wait(self._writable)
                except BrokenPipeError:
                    raise self._died(call) from None
        try:
            answer = read_frame(read)
        except FrameError as error:
            raise self.end(f'does not keep to the protocol and was killed: {error}') from error
        self._answered = True
        return answer

    def close(self, timeout_s: float) -> None:
        """End the process, which was told so or not; killed where it stays longer."""
        self._ended = self._ended or 'the simulator process was closed; build a new one'
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout_s)
        self._finalizer()
        self._stderr.stop()

    def _died(self, call: str) -> SimulatorError:
        try:
            code = self._process.wait(5.0)
        except subprocess.TimeoutExpired:
            return self.end(f'closed its pipe during {call!r} and was killed')
        how = f'with exit code {code}' if code >= 0 else f'of {signal.Signals(-code).name}'
        return self.end(f'died {how} during {call!r}')

    def end(self, what: str) -> SimulatorError:
        """Kill what is left of the process; the error says why, with its last lines."""
        _kill(self._process)
        message = f'the simulator process {what}'
        if lines := self._stderr.lines():
            message += '; its last lines:\n' + '\n'.join(lines)
        self._ended = message if self._answered else self._hinted(message)
        return SimulatorError(self._ended)

    def _hinted(self, message: str) -> str:
        return f'{message}\n{self._hint}' if self._hint else message


class _Tail:
    """Reads a stream to its end in a thread, however much comes, and keeps the last of it."""

    def __init__(self, descriptor: int) -> None:
        self._kept = bytearray()
        self._descriptor = os.dup(descriptor)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def lines(self) -> list[str]:
        """The last lines of a process that has ended."""
        self._thread.join(1.0)
        return self._kept.decode(errors='replace').splitlines()[-_STDERR_LINES:]

    def stop(self) -> None:
        """Wait for the stream's end; a child of the process may keep it open."""
        self._thread.join(1.0)

    def _run(self) -> None:
        try:
            while block := os.read(self._descriptor, 65536):
                self._kept += block
                del self._kept[:-_STDERR_BYTES]
        finally:
            os.close(self._descriptor)


def _kill(process: 'subprocess.Popen[bytes]') -> None:
    """Kill the process with its children, who are in its session."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for pipe in (process.stdin, process.stdout, process.stderr):
        if pipe is not None:
            pipe.close()


def python_worker(python: str | Path, factory: str) -> list[str]:
    """The command of a Python worker: this package's server in another Python environment.

    Args:
        python: The environment's interpreter.
        factory: 'module:function' or 'file.py:function', as `server.load_factory` reads it; a
            file without a folder is one beside the server.
    """
    here = Path(__file__).parent
    place, _, function = factory.rpartition(':')
    if place.endswith('.py') and not Path(place).parent.name:
        place = str(here / place)
    # -u: what a simulator prints before it dies is not lost in a buffer.
    return [str(python), '-u', str(here / 'server.py'), '--factory', f'{place}:{function}']


def package_versions(python: str | Path, packages: Sequence[str], hint: str) -> dict[str, str]:
    """Package -> version in another Python environment.

    Args:
        python: The environment's interpreter, 3.8 or later.
        packages: Names of distributions.
        hint: What to do where there is no such interpreter.

    Raises:
        SimulatorError: The interpreter cannot be run.
    """
    try:
        printed = subprocess.run(
            [str(python), '-c', _PRINT_VERSIONS, *packages],
            env={k: v for k, v in os.environ.items() if k not in _NOT_INHERITED},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=True,
            timeout=60.0,
        ).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise SimulatorError(f'cannot ask {python} for its packages: {error}\n{hint}') from error
    return json.loads(printed)
