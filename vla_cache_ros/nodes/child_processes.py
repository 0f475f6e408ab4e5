"""The bring-up manager's processes: started without a shell, reaped, and gone when it is gone."""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

_PR_SET_PDEATHSIG = 1  # prctl(2)
_POLL_PERIOD_S = 0.02

CommandOf = Callable[[str], Sequence[str]]
"""Name of a node -> the words of its command."""


def node_command(name: str, ros_arguments: Sequence[str] = ()) -> list[str]:
    """The command that runs one of the package's nodes below this process.

    Args:
        name: Name of the node and its executable.
        ros_arguments: What follows `--ros-args`.
    """
    parent = ['--parent', str(os.getpid())]
    words = [sys.executable, '-m', 'vla_cache_ros.nodes', *parent, name]
    return [*words, '--ros-args', *ros_arguments] if ros_arguments else words


def passed_on(arguments: Sequence[str]) -> list[str]:
    """Those of a process's ROS arguments that its children are to have as well.

    Parameter files, remappings and log levels go on; what belongs to one node (its name, its
    enclave, a parameter given by hand) does not.

    Args:
        arguments: A whole command line, as in sys.argv.
    """
    kept: list[str] = []
    inside = False
    words = iter(arguments)
    for word in words:
        if word in ('--ros-args', '--'):
            inside = word == '--ros-args'
        elif inside and word in ('-p', '--param', '-e', '--enclave'):
            next(words, None)
        elif inside and word in ('-r', '--remap'):
            rule = next(words, '')
            if not rule.startswith(('__node:=', '__name:=')):
                kept += [word, rule]
        elif inside:
            kept.append(word)
    return kept


def sibling_enclave(arguments: Sequence[str], name: str) -> list[str]:
    """The ROS arguments that give a child its own access rights under SROS 2.

    Args:
        arguments: A whole command line, as in sys.argv.
        name: The child's node.

    Returns:
        The enclave beside this process's own that is called like the node; nothing where this
        process has none.
    """
    words = list(arguments)
    for flag in ('-e', '--enclave'):
        if flag in words[:-1]:
            parent = words[words.index(flag) + 1].rpartition('/')[0]
            return ['--enclave', f'{parent}/{name}']
    return []


def stop_with_parent(parent: int) -> None:
    """Have this process told to stop (SIGTERM) when its parent dies; Linux alone can do that.

    Args:
        parent: Process id of the parent; when that is no longer it, this process stops now.
    """
    if sys.platform == 'linux':
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        raise SystemExit(1)


class ChildProcesses:
    """Processes by node name, each a group of its own, so that what it starts goes with it."""

    def __init__(self, command_of: CommandOf) -> None:
        """Start nothing yet.

        Args:
            command_of: Says how a node is run.
        """
        self._command_of = command_of
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._stopping: dict[str, float] = {}

    def process_id(self, name: str) -> int | None:
        """Process id of a node; None when it is not running."""
        process = self._running.get(name)
        return None if process is None else process.pid

    def start(self, name: str) -> None:
        """Start a node.

        Raises:
            OSError: The system cannot start it.
        """
        self._running[name] = subprocess.Popen(
            list(self._command_of(name)), stdin=subprocess.DEVNULL, start_new_session=True
        )

    def stop(self, name: str, patience_s: float) -> None:
        """Tell a node to stop; `ended` kills it when its patience is over."""
        if name in self._running:
            _signal_group(self._running[name], signal.SIGTERM)
            self._stopping[name] = time.monotonic() + patience_s

    def ended(self) -> dict[str, str]:
        """Reap what has ended since the last call: name -> how it ended."""
        now_s = time.monotonic()
        for name, deadline_s in self._stopping.items():
            if now_s > deadline_s:
                _signal_group(self._running[name], signal.SIGKILL)
        gone = [name for name, process in self._running.items() if _has_ended(process)]
        return {name: self._reap(name) for name in gone}

    def close(self, patience_s: float) -> None:
        """Stop every process and wait for its end, the newest first told; blocks."""
        for name in reversed(list(self._running)):
            self.stop(name, patience_s)
        while self._running:
            self.ended()
            time.sleep(_POLL_PERIOD_S)

    def _reap(self, name: str) -> str:
        """Kill what a process left behind, then free its id: after that it may be another's."""
        process = self._running.pop(name)
        self._stopping.pop(name, None)
        _signal_group(process, signal.SIGKILL)
        return _describe(process.wait())


def _has_ended(process: subprocess.Popen[bytes]) -> bool:
    """Whether a process is over, without reaping it."""
    return os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _signal_group(process: subprocess.Popen[bytes], number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def _describe(code: int) -> str:
    if code >= 0:
        return f'process ended with status {code}'
    with contextlib.suppress(ValueError):
        return f'process ended by {signal.Signals(-code).name}'
    return f'process ended by signal {-code}'
