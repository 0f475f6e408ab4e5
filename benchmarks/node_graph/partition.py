"""Two ways to cut the network between policy and robot: namespaces, or a relay between domains."""

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Protocol

from node_graph.processes import NodeProcesses, NodeSpec

UDP = {'FASTDDS_BUILTIN_TRANSPORTS': 'UDPv4', 'ROS_AUTOMATIC_DISCOVERY_RANGE': 'SUBNET'}


class Partition(Protocol):
    """A cable between robot and policy that can be cut."""

    def place(self, spec: NodeSpec) -> NodeSpec:
        """The node on its side of the cable."""
        ...

    def cut(self) -> int:
        """Cut it; returns when, nanoseconds of CLOCK_MONOTONIC."""
        ...

    def mend(self) -> int:
        """Mend it; returns when."""
        ...


class NamespacePartition:
    """Two network namespaces with one pair of virtual Ethernet ends between them."""

    def __init__(self) -> None:
        """Choose names."""
        self.robot, self.policy = f'vcr{os.getpid()}', f'vcp{os.getpid()}'

    def create(self) -> None:
        """Create both namespaces.

        Raises:
            subprocess.CalledProcessError: It is not permitted.
        """
        for name in (self.robot, self.policy):
            _ip('netns', 'add', name)
            _ip('-n', name, 'link', 'set', 'lo', 'up')
        ends = ('link', 'add', 'cable', 'netns', self.robot, 'type', 'veth')
        _ip(*ends, 'peer', 'name', 'cable', 'netns', self.policy)
        for name, address in ((self.robot, '10.213.7.1/30'), (self.policy, '10.213.7.2/30')):
            _ip('-n', name, 'address', 'add', address, 'dev', 'cable')
            self._up(name)

    def _up(self, name: str) -> None:
        _ip('-n', name, 'link', 'set', 'cable', 'up')
        _ip('-n', name, 'route', 'replace', '224.0.0.0/4', 'dev', 'cable')

    def destroy(self) -> None:
        """Remove both namespaces."""
        for name in (self.robot, self.policy):
            subprocess.run(['ip', 'netns', 'del', name], check=False, stderr=subprocess.DEVNULL)

    def place(self, spec: NodeSpec) -> NodeSpec:
        """The node in its namespace; shared memory, which knows no network, is off."""
        name = self.policy if spec.name == 'policy_node' else self.robot
        prefix = ('ip', 'netns', 'exec', name)
        return replace(spec, prefix=prefix, environment={**spec.environment, **UDP})

    def cut(self) -> int:
        """Take the policy's end of the cable down."""
        moment_ns = time.monotonic_ns()
        _ip('-n', self.policy, 'link', 'set', 'cable', 'down')
        return moment_ns

    def mend(self) -> int:
        """Take it up again."""
        self._up(self.policy)
        return time.monotonic_ns()


class RelayPartition:
    """Two DDS domains with one relay between them, which is stopped."""

    def __init__(self, processes: NodeProcesses) -> None:
        """Start the relay.

        Args:
            processes: Where it runs.
        """
        self._processes = processes
        robot = int(os.environ['ROS_DOMAIN_ID'])
        self._policy_domain = str((robot + 50) % 101)
        domains = (str(robot), self._policy_domain)
        processes.start(NodeSpec('domain_relay', 'node_graph/domain_relay.py', arguments=domains))

    def place(self, spec: NodeSpec) -> NodeSpec:
        """The node in its domain."""
        if spec.name != 'policy_node':
            return spec
        domain = {'ROS_DOMAIN_ID': self._policy_domain}
        return replace(spec, environment={**spec.environment, **domain})

    def cut(self) -> int:
        """Stop the relay."""
        return self._processes.signal('domain_relay', signal.SIGSTOP)

    def mend(self) -> int:
        """Let it go on, with what had piled up."""
        return self._processes.signal('domain_relay', signal.SIGCONT)


@contextmanager
def namespaces() -> Iterator[NamespacePartition | None]:
    """Network namespaces; None where they are not permitted."""
    partition = NamespacePartition()
    try:
        try:
            partition.create()
        except (OSError, subprocess.CalledProcessError):
            yield None
            return
        yield partition
    finally:
        partition.destroy()


def _ip(*words: str) -> None:
    subprocess.run(['ip', *words], check=True, capture_output=True, text=True)
