"""Faults, one after another, on a running graph of processes: begun, ended, judged."""

import random
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from node_graph.partition import Partition
from node_graph.processes import ROOT, NodeProcesses, NodeSpec
from node_graph.recordings import compare
from node_graph.robot_graph import Observed, RobotGraph
from node_graph.verdict import Event, Verdict, is_motion, judge

BEFORE_NS = 1_000_000_000
"""So much of the stream before a fault belongs to its judgement."""
AFTER_S = 1.0
COMPARED_NS = 2_000_000_000
"""So much of the stream before a recorder's death is compared with its file."""
OTHER_TASK = 'do something else'
DISK_BYTES = 2**18
"""So much of the stream after recovery."""


@dataclass(frozen=True)
class Case:
    """A fault.

    Attributes:
        name: What it is called.
        begin: Begins it; returns when, nanoseconds of CLOCK_MONOTONIC.
        end: Ends it; returns when.
        hold_s: How long it lasts.
        due: What is promised: 'null' within two command periods, 'stale' within the limit of age
            and two periods, 'zero' at the sink within two periods, or 'on' when the arm may go on.
        check: Judges what else is promised, from beginning and end: whether it held, and a note.
    """

    name: str
    begin: Callable[['FaultRun'], int]
    end: Callable[['FaultRun'], int]
    hold_s: float = 1.0
    due: str = 'stale'
    check: Callable[['FaultRun', int, int], tuple[bool, str]] = lambda *_: (True, '')


class FaultRun:
    """A graph that is up, and what is done to it.

    Attributes:
        graph: Its settings.
        processes: Its processes.
        observed: What it says.
        recording: The recorder's file, in faults of the recorder.
    """

    def __init__(
        self,
        graph: RobotGraph,
        processes: NodeProcesses,
        seed: int = 0,
        place: Callable[[NodeSpec], NodeSpec] = lambda spec: spec,
    ) -> None:
        """Start every node and wait until the arm moves.

        Args:
            graph: What to start.
            processes: Where.
            seed: Of the phases at which faults begin.
            place: Puts a node into its network.
        """
        self.graph = graph
        self.processes = processes
        self._random = random.Random(seed)
        graph.faults.mkdir(parents=True, exist_ok=True)
        self.observed = Observed(processes, place=place)
        self.specs: dict[str, NodeSpec] = {spec.name: place(spec) for spec in graph.nodes()}
        for spec in self.specs.values():
            processes.start(spec)
        self.recording: Path | None = None
        self._episodes = 0

    def begin_episode(self) -> None:
        """Begin a new episode of LIBERO, so that no end of one falls into a fault."""
        if self.graph.stand_in is None:
            self.observed.wait_for('simulator', _is_active('sim_bridge'), 120)
            self.observed.order(episode=[self._episodes % 10, self._episodes // 10])
            self._episodes += 1
        self.observed.wait_for_motion(time.monotonic_ns(), count=10, timeout_s=120)

    def suffer(self, case: Case) -> dict[str, Any]:
        """Inject a fault at a random phase, end it, wait for recovery, and judge."""
        self.begin_episode()
        time.sleep(self._random.uniform(0.2, 0.2 + 2e-3 * self.graph.frame_period_ms))
        began_ns = case.begin(self)
        time.sleep(case.hold_s)
        ended_ns = case.end(self)
        self._await_recovery(ended_ns)
        time.sleep(AFTER_S)
        events = self.observed.events(began_ns - BEFORE_NS)
        verdict = judge(events, began_ns, ended_ns, self.graph.limit_ms)
        held, note = case.check(self, began_ns, ended_ns)
        return {
            **asdict(verdict),
            'due': case.due,
            'due_ms': self.due_ms(case.due),
            'kept': held and self.is_kept(case.due, verdict),
            'note': note,
        }

    def _await_recovery(self, ended_ns: int) -> None:
        def recovered(events: list[Event]) -> bool:
            return judge(events, ended_ns, ended_ns, self.graph.limit_ms).recovery_ms is not None

        self.observed.wait_for('recovery', recovered, 60)

    def due_ms(self, due: str) -> float | None:
        """The latest moment of the reaction that is promised; None: none is."""
        two_periods_ms = 2 * self.graph.period_ms
        return {
            'null': two_periods_ms,
            'zero': two_periods_ms,
            'stale': self.graph.limit_ms + two_periods_ms,
        }.get(due)

    def is_kept(self, due: str, verdict: Verdict) -> bool:
        """Whether every promise held: age, repetition, finiteness, and the reaction in time."""
        if verdict.too_old or verdict.repeated or verdict.not_finite:
            return False
        limit_ms = self.due_ms(due)
        if limit_ms is None:
            return True
        if due == 'zero':
            return verdict.first_zero_ms is not None and (verdict.moving_ms or 0) <= limit_ms
        return verdict.first_null_ms is not None and verdict.first_null_ms <= limit_ms

    # What cases are made of

    def set_fault(self, name: str) -> int:
        """Have the injector break its inputs; returns when it did."""
        before = len(self._of_kind('injected'))
        self.observed.order(fault=name)
        self.observed.wait_for('fault', lambda _: len(self._of_kind('injected')) > before)
        return self._of_kind('injected')[-1]['began_ns']

    def restart(self, name: str, spec: NodeSpec | None = None) -> int:
        """Start a node again."""
        moment_ns = time.monotonic_ns()
        self.processes.start(spec or self.specs[name])
        return moment_ns

    def touch(self, name: str) -> int:
        """Break the policy by a file."""
        moment_ns = time.monotonic_ns()
        (self.graph.faults / name).touch()
        return moment_ns

    def untouch(self, name: str) -> int:
        """Mend it."""
        (self.graph.faults / name).unlink()
        return time.monotonic_ns()

    def instruct(self, text: str) -> int:
        """Give another task."""
        moment_ns = time.monotonic_ns()
        self.observed.order(instruction=text)
        return moment_ns

    def instruct_as_before(self) -> int:
        """Give the simulator's own task again, and leave no text behind that contradicts it."""
        texts = [event['instruction'] for event in self._of_kind('task')]
        tasks = [text for text in texts if text != OTHER_TASK]
        moment_ns = self.instruct(tasks[-1])
        self.observed.order(instruction='')
        return moment_ns

    def _of_kind(self, kind: str) -> list[Event]:
        return [event for event in self.observed.events() if event['kind'] == kind]


def injected(fault: str, due: str, hold_s: float = 1.0) -> Case:
    """A fault of inputs."""
    return Case(
        fault.replace('_', ' '),
        lambda run: run.set_fault(fault),
        lambda run: run.set_fault('none'),
        hold_s,
        due,
    )


def killed(node: str, due: str) -> Case:
    """A node that dies and is started again."""
    return Case(
        f'{node} killed (SIGKILL)',
        lambda run: run.processes.kill(node),
        lambda run: run.restart(node),
        1.0,
        due,
    )


def hung(node: str, due: str) -> Case:
    """A node that stops without dying, and goes on."""
    return Case(
        f'{node} hung (SIGSTOP)',
        lambda run: run.processes.signal(node, signal.SIGSTOP),
        lambda run: run.processes.signal(node, signal.SIGCONT),
        1.0,
        due,
    )


def cut_off(partition: Partition) -> Case:
    """A network that parts policy and robot."""
    return Case(
        'network partition', lambda _: partition.cut(), lambda _: partition.mend(), 1.5, 'null'
    )


def recorder_cases(graph: RobotGraph) -> list[Case]:
    """A recorder that dies, and one whose disk is full."""
    folder = graph.recordings
    assert folder is not None  # these cases need a recorder

    def kill(run: FaultRun) -> int:
        run.recording = _newest(folder)
        return run.processes.kill('recorder')

    def fill(run: FaultRun) -> int:
        run.processes.stop('recorder')
        run.recording = _newest(folder)
        limits = {'RLIMIT_FSIZE': DISK_BYTES}
        began_ns = run.restart('recorder', replace(run.specs['recorder'], limits=limits))
        run.observed.wait_for('recorder', lambda _: _newest(folder) != run.recording)
        run.recording = _newest(folder)
        return began_ns

    def empty(run: FaultRun) -> int:
        run.processes.stop('recorder')
        return run.restart('recorder')

    def is_whole(run: FaultRun, began_ns: int, ended_ns: int) -> tuple[bool, str]:
        """Nothing is missing before the last command in the file."""
        assert run.recording is not None  # begin has set it
        seen = compare(run.recording, run.observed.events(), ended_ns)
        size = run.recording.stat().st_size
        held = seen.recorded > 0 and not seen.missing_between
        return held, (
            f'{seen.recorded} commands in {size / 1e6:.1f} MB, {seen.missing_between} missing '
            f'before the last, {"; ".join(seen.losses) or "no losses"}'
        )

    def is_whole_to_the_kill(run: FaultRun, began_ns: int, _: int) -> tuple[bool, str]:
        assert run.recording is not None  # begin has set it
        # Before, other nodes may have been started again, which readers find one by one.
        seen = compare(run.recording, run.observed.events(began_ns - COMPARED_NS), began_ns)
        held = seen.recorded > 0 and not seen.missing_between and seen.missing_at_end <= 1
        return held, (
            f'{seen.recorded} of {seen.sent} commands of the last 2 s before the kill are '
            f'readable, '
            f'{"; ".join(seen.losses) or "no losses"}'
        )

    def restart(run: FaultRun) -> int:
        return run.restart('recorder')

    killed_case = Case('recorder killed (SIGKILL)', kill, restart, 1.0, 'on', is_whole_to_the_kill)
    return [killed_case, Case('disk full while recording', fill, empty, 5.0, 'on', is_whole)]


def with_nan_weights(folder: Path) -> Case:
    """A policy whose checkpoint holds NaN.

    Args:
        folder: Where the checkpoint is made.
    """

    def begin(run: FaultRun) -> int:
        if not folder.exists():
            write_nan_checkpoint(folder)
        began_ns = run.processes.kill('policy_node')
        spec = run.specs['policy_node'].changed(checkpoint=str(folder))
        started_ns = run.restart(
            'policy_node', replace(spec, arguments=('load', spec.arguments[1]))
        )

        def has_answered(events: list[Event]) -> bool:
            refused = 'configure failed' in run.processes.log('policy_node')
            return refused or any(
                event['kind'] == 'chunk' and event['at_ns'] > started_ns for event in events
            )

        run.observed.wait_for('the policy with NaN weights', has_answered, 120)
        return began_ns

    def end(run: FaultRun) -> int:
        run.processes.kill('policy_node')
        return run.restart('policy_node')

    def is_still(run: FaultRun, began_ns: int, ended_ns: int) -> tuple[bool, str]:
        """Nothing moves from two periods after the old policy's end on."""
        from_ns = began_ns + round(2e6 * run.graph.period_ms)
        moved = [
            event
            for event in run.observed.events(from_ns)
            if event['kind'] == 'command' and event['at_ns'] < ended_ns and is_motion(event)
        ]
        refused = 'configure failed' in run.processes.log('policy_node')
        return not moved, 'refused at configure' if refused else ''

    return Case('NaN weights', begin, end, 1.5, 'null', is_still)


def write_nan_checkpoint(folder: Path) -> None:
    """Copy the package's own weights, and write NaN into the first tensor of each file."""
    import numpy as np
    from safetensors.numpy import load_file, save_file

    shutil.copytree(ROOT / 'models' / 'weights', folder)
    for path in folder.glob('*.safetensors'):
        tensors = load_file(path)
        name = next(key for key, value in tensors.items() if value.dtype.kind == 'f')
        tensors[name] = np.full_like(tensors[name], np.nan)
        save_file(tensors, path)


def _newest(folder: Path) -> Path | None:
    files = sorted(folder.glob('*.mcap'), key=lambda path: path.stat().st_mtime_ns)
    return files[-1] if files else None


def by_file(name: str, file: str, due: str) -> Case:
    """A fault within the policy."""
    return Case(name, lambda run: run.touch(file), lambda run: run.untouch(file), 1.5, due)


NO_FAULT = Case('no fault', lambda _: time.monotonic_ns(), lambda _: time.monotonic_ns(), due='on')
INPUT_CASES = (
    injected('unplugged', 'stale', hold_s=1.5),
    injected('frozen', 'on'),
    injected('black', 'on'),
    injected('torn', 'on'),
    injected('rotated', 'on'),
    injected('resized', 'on'),
    injected('delayed', 'on'),
    injected('clock_forward', 'stale'),
    injected('clock_backward', 'stale'),
    injected('nan_state', 'stale'),
)
INSTRUCTION_CASE = Case(
    'instruction change',
    lambda run: run.instruct(OTHER_TASK),
    lambda run: run.instruct_as_before(),
    due='on',
)
POLICY_CASES = (
    by_file('200 ms stalls', 'stall', 'on'),
    by_file('NaN actions', 'nan', 'stale'),
    killed('policy_node', 'null'),
    hung('policy_node', 'null'),
)
GUARD_CASES = (killed('command_guard', 'zero'), hung('command_guard', 'zero'))


def _is_active(node: str) -> Callable[[list[Event]], bool]:
    return lambda events: any(
        event['kind'] == 'state' and event['node'] == node and event['state'] == 'active'
        for event in events
    )
