"""The graph of a robot: simulator in realtime, fault injector, policy, guard, sink, observer.

The injector gives what the simulator sends the stamps of the wall's clock, so that the nodes
behind it run as beside a real arm: no /clock, no lockstep, nobody waits.
"""

import json
import os
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from node_graph.processes import ROOT, NodeProcesses, NodeSpec
from node_graph.verdict import Event

NODES = 'vla_cache_ros.nodes'
PYTHONPATH = os.pathsep.join(
    filter(None, (str(ROOT / 'benchmarks'), os.environ.get('PYTHONPATH')))
)
CAMERAS = ('agentview', 'wrist')
SOURCES = (*(f'camera/{name}/image_raw' for name in CAMERAS), 'joint_states', 'ee_pose')


@dataclass(frozen=True)
class RobotGraph:
    """How the graph is set up.

    Attributes:
        control_hz: Commands and control steps per second.
        frame_every: Control steps from one pair of images to the next.
        actions_per_chunk: Actions that the guard runs of a chunk.
        stale_image_timeout_s: The guard's limit of age, and the policy's.
        stand_in: Settings of the stand-ins; None: LIBERO and the package's own policy.
        suite: LIBERO's suite, where it is LIBERO.
        faults: Folder of the files that break the policy.
        recordings: Folder of the recorder's files; None: nothing is recorded.
    """

    faults: Path
    control_hz: float = 20.0
    frame_every: int = 4
    actions_per_chunk: int = 8
    stale_image_timeout_s: float = 0.6
    stand_in: Mapping[str, Any] | None = field(default_factory=dict)
    suite: str = 'libero_object'
    recordings: Path | None = None

    @property
    def period_ms(self) -> float:
        """Between two commands."""
        return 1e3 / self.control_hz

    @property
    def frame_period_ms(self) -> float:
        """Between two pairs of images."""
        return self.frame_every * self.period_ms

    @property
    def limit_ms(self) -> float:
        """Greatest age of the image behind a command."""
        return 1e3 * self.stale_image_timeout_s

    def nodes(self) -> list[NodeSpec]:
        """Every node, in the order of their start."""
        recorder = [] if self.recordings is None else [self.recorder()]
        return [
            self.guard(),
            self.sink(),
            *recorder,
            self.injector(),
            self.policy(),
            self.simulator(),
        ]

    def simulator(self) -> NodeSpec:
        """The simulator, whose sensors are the injector's sources."""
        parameters = {
            'mode': 'realtime',
            'control_frequency_hz': self.control_hz,
            'frame_every': self.frame_every,
            'camera_names': list(CAMERAS),
            'suite': self.suite,
            'autostart': True,
            'episodes': 0 if self.stand_in is None else 1,
        }
        remaps = {topic: f'source/{topic}' for topic in SOURCES}
        if self.stand_in is None:
            return NodeSpec('sim_bridge', f'{NODES}.sim_bridge', parameters, remaps)
        settings = json.dumps({'steps': 10**9, 'motion': 0.1, **self.stand_in})
        return NodeSpec(
            'sim_bridge', 'stand_ins.py', parameters, remaps, arguments=('simulator', settings)
        )

    def injector(self, **parameters: Any) -> NodeSpec:
        """The relay between simulator and policy."""
        values = {'camera_names': list(CAMERAS), 'restamp': True, **parameters}
        return NodeSpec('fault_injector', f'{NODES}.fault_injector', values)

    def policy(self, **parameters: Any) -> NodeSpec:
        """The policy, which a file in `faults` can break."""
        values = {
            'autostart': True,
            'control_frequency_hz': self.control_hz,
            'stale_image_timeout_s': self.stale_image_timeout_s,
            **parameters,
        }
        settings = {'faults': str(self.faults)}
        kind = 'load'
        if self.stand_in is None:  # as the robots' files in config/ have it
            values = {'frozen_image_timeout_s': 0.5, 'black_image_contrast': 2.0} | values
        else:
            kind = 'policy'
            settings |= {'motion': 0.1, **self.stand_in}
        return NodeSpec(
            'policy_node', 'stand_ins.py', values, arguments=(kind, json.dumps(settings))
        )

    def guard(self, **parameters: Any) -> NodeSpec:
        """The guard, as a process that needs no model."""
        values = {
            'autostart': True,
            'control_frequency_hz': self.control_hz,
            'actions_per_chunk': self.actions_per_chunk,
            'stale_image_timeout_s': self.stale_image_timeout_s,
            **parameters,
        }
        return NodeSpec('command_guard', f'{NODES}.command_guard', values)

    def sink(self, **parameters: Any) -> NodeSpec:
        """The command sink, whose twists the observer receives in the servo's place."""
        values = {
            'autostart': True,
            'control_frequency_hz': self.control_hz,
            'position_scale_m': 0.05,
            'rotation_scale_rad': 0.5,
            **parameters,
        }
        return NodeSpec('command_sink', f'{NODES}.command_sink', values)

    def recorder(self, **parameters: Any) -> NodeSpec:
        """The recorder."""
        values = {'autostart': True, 'folder': str(self.recordings), 'min_free_mib': 0}
        return NodeSpec('recorder', f'{NODES}.recorder', values | parameters)


class EventLog:
    """Reads the observer's file piece by piece."""

    def __init__(self, path: Path) -> None:
        """Start at its beginning.

        Args:
            path: May not exist yet.
        """
        self._path = path
        self._offset = 0

    def new(self) -> list[Event]:
        """Events written since the call before."""
        if not self._path.exists():
            return []
        with self._path.open('rb') as file:
            file.seek(self._offset)
            block = file.read()
        whole = block[: block.rfind(b'\n') + 1]  # the last line may still be being written
        self._offset += len(whole)
        return [json.loads(line) for line in whole.splitlines()]


class Observed:
    """A graph's processes and what the observer has written about them."""

    def __init__(
        self,
        processes: NodeProcesses,
        topics: Sequence[str] = (),
        place: Callable[[NodeSpec], NodeSpec] = lambda spec: spec,
    ) -> None:
        """Start the observer.

        Args:
            processes: Where it runs.
            topics: What it listens to; default: everything it knows.
            place: Puts it into its network.
        """
        path = processes.folder / 'events.jsonl'
        path.unlink(missing_ok=True)
        self.processes = processes
        self.new = EventLog(path).new
        self._events: list[Event] = []
        spec = NodeSpec(
            'observer',
            'node_graph/observer.py',
            arguments=(str(path), *topics),
            environment={'PYTHONPATH': PYTHONPATH},
        )
        self._observer = processes.start(place(spec), stdin=subprocess.PIPE)
        self.wait_for('observer', lambda events: bool(events))

    def order(self, **order: Any) -> None:
        """Have the observer do something; see its module."""
        assert self._observer.stdin is not None  # it was started with a pipe
        self._observer.stdin.write(json.dumps(order).encode() + b'\n')
        self._observer.stdin.flush()

    def events(self, since_ns: int = 0) -> list[Event]:
        """What was received since a moment of CLOCK_MONOTONIC; `ready` is always among it."""
        self._events += self.new()
        return [e for e in self._events if e['at_ns'] >= since_ns or e['kind'] == 'ready']

    def wait_for(
        self, what: str, condition: Callable[[list[Event]], bool], timeout_s: float = 30.0
    ) -> list[Event]:
        """Wait until the events of the whole run satisfy a condition.

        Raises:
            TimeoutError: They did not; the message holds the logs' last lines.
        """
        end_s = time.monotonic() + timeout_s
        while not condition(events := self.events()):
            if time.monotonic() > end_s:
                logs = self.processes.folder.glob('*.log')
                tails = '\n'.join(f'{p.name}: {p.read_text()[-600:]}' for p in logs)
                raise TimeoutError(f'{what}: not within {timeout_s:g} s.\n{tails}')
            time.sleep(0.02)
        return events

    def wait_for_motion(self, since_ns: int = 0, count: int = 5, timeout_s: float = 60.0) -> None:
        """Wait until so many actions have been let through since a moment."""

        def moves(events: list[Event]) -> bool:
            passed = [e for e in events if e['kind'] == 'status' and not e['is_null']]
            return sum(event['published_ns'] >= since_ns for event in passed) >= count

        self.wait_for('the arm moves', moves, timeout_s)
