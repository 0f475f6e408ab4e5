"""Faults, one after another, on a running graph of processes: begun, ended, judged."""

import random
import signal
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from node_graph.processes import NodeProcesses, NodeSpec
from node_graph.robot_graph import Observed, RobotGraph
from node_graph.verdict import Event, Verdict, judge

BEFORE_NS = 1_000_000_000
"""So much of the stream before a fault belongs to its judgement."""
AFTER_S = 1.0
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
    """

    name: str
    begin: Callable[['FaultRun'], int]
    end: Callable[['FaultRun'], int]
    hold_s: float = 1.0
    due: str = 'stale'


class FaultRun:
    """A graph that is up, and what is done to it.

    Attributes:
        graph: Its settings.
        processes: Its processes.
        observed: What it says.
    """

    def __init__(self, graph: RobotGraph, processes: NodeProcesses, seed: int = 0) -> None:
        """Start every node and wait until the arm moves.

        Args:
            graph: What to start.
            processes: Where.
            seed: Of the phases at which faults begin.
        """
        self.graph = graph
        self.processes = processes
        self._random = random.Random(seed)
        graph.faults.mkdir(parents=True, exist_ok=True)
        self.observed = Observed(processes)
        self.specs: dict[str, NodeSpec] = {spec.name: spec for spec in graph.nodes()}
        for spec in self.specs.values():
            processes.start(spec)
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
        return {
            **asdict(verdict),
            'due': case.due,
            'due_ms': self.due_ms(case.due),
            'kept': self.is_kept(case.due, verdict),
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
        reacted_ms = verdict.first_zero_ms if due == 'zero' else verdict.first_null_ms
        return reacted_ms is not None and reacted_ms <= limit_ms

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
    lambda run: run.instruct('do something else'),
    lambda run: run.instruct('and now something else again'),
    due='on',
)
POLICY_CASES = (
    by_file('200 ms stalls', 'stall', 'on'),
    by_file('NaN actions', 'nan', 'stale'),
    killed('policy_node', 'null'),
    hung('policy_node', 'null'),
)


def _is_active(node: str) -> Callable[[list[Event]], bool]:
    return lambda events: any(
        event['kind'] == 'state' and event['node'] == node and event['state'] == 'active'
        for event in events
    )
