"""Nodes as processes: started with parameters and remappings, watched, killed, started again."""

import ctypes
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parents[2]
STOP_S = 10.0
_LIBC = ctypes.CDLL(None)
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class NodeSpec:
    """How a node is started.

    Attributes:
        name: Name of the process, and of its log.
        module: Module whose `main` runs the node; or, ending in .py, a script of benchmarks/.
        parameters: Parameter -> value, beside params_file.
        remaps: Topic or node name -> another.
        arguments: Words before `--ros-args`.
        params_file: ROS parameter file.
        environment: Variables beside the present ones.
        prefix: Words before the command, e.g. `ip netns exec ..`.
        limits: Resource limits, name of the `resource` module -> soft limit.
    """

    name: str
    module: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
    remaps: Mapping[str, str] = field(default_factory=dict)
    arguments: Sequence[str] = ()
    params_file: Path | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    prefix: Sequence[str] = ()
    limits: Mapping[str, int] = field(default_factory=dict)

    def changed(self, **parameters: Any) -> 'NodeSpec':
        """The same with other values of some parameters."""
        return replace(self, parameters={**self.parameters, **parameters})

    def command(self) -> list[str]:
        """The command line."""
        if self.module.endswith('.py'):
            start = [str(ROOT / 'benchmarks' / self.module)]
        else:
            start = ['-c', f'import sys; from {self.module} import main; sys.exit(main())']
        words = [*self.prefix, sys.executable, *start, *self.arguments, '--ros-args']
        if self.params_file is not None:
            words += ['--params-file', str(self.params_file)]
        for name, value in self.parameters.items():
            text = value if isinstance(value, str) and value else json.dumps(value)
            words += ['-p', f'{name}:={text}']
        for name, other in self.remaps.items():
            words += ['-r', f'{name}:={other}']
        return words


class NodeProcesses:
    """The processes of one graph. Each one's output goes to <folder>/<name>.log.

    Attributes:
        folder: Where the logs lie.
    """

    def __init__(self, folder: Path, environment: Mapping[str, str] | None = None) -> None:
        """Start with none.

        Args:
            folder: For the logs; made if missing.
            environment: Variables of every process, beside the present ones.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._environment = {
            **os.environ,
            'AMENT_PREFIX_PATH': os.environ.get('AMENT_PREFIX_PATH', sys.prefix),
            'PYTHONUNBUFFERED': '1',
            'OMP_NUM_THREADS': os.environ.get('OMP_NUM_THREADS', '1'),
            'ROS_LOG_DIR': str(folder / 'ros'),
            **(environment or {}),
        }
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, spec: NodeSpec, stdin: Any = subprocess.DEVNULL) -> subprocess.Popen[bytes]:
        """Start a node; one of the same name must have ended."""
        limits = {getattr(resource, name): soft for name, soft in spec.limits.items()}

        def prepare() -> None:
            _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # it must not outlive this process
            for kind, soft in limits.items():
                resource.setrlimit(kind, (soft, resource.getrlimit(kind)[1]))

        with (self.folder / f'{spec.name}.log').open('ab') as log:
            self._running[spec.name] = subprocess.Popen(
                spec.command(),
                env={**self._environment, **spec.environment},
                stdin=stdin,
                stdout=log,
                stderr=subprocess.STDOUT,
                preexec_fn=prepare,
                start_new_session=True,
            )
        return self._running[spec.name]

    def signal(self, name: str, number: signal.Signals) -> int:
        """Send a signal to a node; returns CLOCK_MONOTONIC just before, nanoseconds."""
        moment_ns = time.monotonic_ns()
        self._running[name].send_signal(number)
        return moment_ns

    def kill(self, name: str) -> int:
        """SIGKILL a node, wait for its end; returns CLOCK_MONOTONIC just before, nanoseconds."""
        moment_ns = self.signal(name, signal.SIGKILL)
        self._running.pop(name).wait()
        return moment_ns

    def stop(self, name: str) -> int:
        """Ask a node to end, as Ctrl-C does, and wait; returns its exit status."""
        process = self._running.pop(name)
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
        try:
            return process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait()

    def ended(self) -> dict[str, int]:
        """Nodes that have ended without being told -> exit status."""
        return {
            name: process.returncode
            for name, process in self._running.items()
            if process.poll() is not None
        }

    def forget(self, name: str) -> None:
        """No longer count a node that has ended; it may be started again."""
        self._running.pop(name).wait()

    def usage(self) -> dict[str, psutil.Process]:
        """Running nodes as psutil sees them."""
        return {
            name: psutil.Process(process.pid)
            for name, process in self._running.items()
            if process.poll() is None
        }

    def log(self, name: str) -> str:
        """What a node has written."""
        path = self.folder / f'{name}.log'
        return path.read_text(encoding='utf-8', errors='replace') if path.exists() else ''

    def close(self) -> None:
        """End all of them, together."""
        for process in self._running.values():
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.send_signal(signal.SIGINT)
        for name in list(self._running):
            self.stop(name)


@contextmanager
def node_processes(
    folder: Path, environment: Mapping[str, str] | None = None
) -> Iterator[NodeProcesses]:
    """Processes that end with the block."""
    processes = NodeProcesses(folder, environment)
    try:
        yield processes
    finally:
        processes.close()
