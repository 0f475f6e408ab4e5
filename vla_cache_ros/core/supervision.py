"""Supervision of lifecycle nodes: bring them up in order, fall back when one is lost.

The supervisor compares what it was told (`Goal`) with what it has seen of the nodes and asks for
the next steps between the two. It keeps no plan, so that whatever happens in between, a crash
during a transition too, leads to the same rules:

- Up: configure every node in order, then activate every node in order.
- A node is lost (silent, dead, no answer, fallen out of its state): the goal falls back to
  inactive. The rest is deactivated in reverse order, but for the nodes that hold the robot: a
  guard and a sink that stay active send "no motion" instead of nothing, keep the emergency stop
  at hand and leave no moment in which the arm has no commander.
- A lost process is started again and its node configured; it is activated when told to.
- Too many restarts in a window of time: the node is given up until somebody says `activate`.
"""

import enum
from collections.abc import Iterator
from dataclasses import dataclass

from vla_cache_ros.core.supervised_node import (
    LIVING,
    RANKS,
    TARGETS,
    SupervisedNode,
    SupervisionConfig,
)

_ANSWER_TIMEOUT_S = 1.0  # a question after a node's state is asked again


class Goal(enum.Enum):
    """What the nodes are to come to."""

    REST = 'rest'  # nobody has said anything yet: nodes are left alone
    ACTIVE = 'active'
    INACTIVE = 'inactive'
    ENDED = 'ended'


@dataclass(frozen=True)
class Request:
    """One thing to do.

    Attributes:
        node: Name of the node.
        action: A transition (TARGETS), or 'ask' (after its state), 'start' or 'stop' (its
            process).
    """

    node: str
    action: str


class Supervisor:
    """Decides what is asked of which node; knows neither clock nor network."""

    def __init__(self, config: SupervisionConfig, now_s: float) -> None:
        """Start with nothing known and nothing told.

        Args:
            config: Whom to supervise.
            now_s: The time, of any steady clock; so in every other method.
        """
        self.config = config
        self.goal = Goal.REST
        self._holding = False
        self._resume = False
        self._nodes = {
            name: SupervisedNode(name, owned=name in config.processes, since_s=now_s)
            for name in config.nodes
        }

    @property
    def nodes(self) -> tuple[SupervisedNode, ...]:
        """What is known of each node, in order."""
        return tuple(self._nodes.values())

    @property
    def state(self) -> str:
        """The whole in one word: down, starting, active, inactive, degraded or failed."""
        nodes = self.nodes
        if any(node.failed for node in nodes):
            return 'failed'
        if self.goal is Goal.ENDED:
            return 'down'
        if any(node.is_missing for node in nodes):
            return 'degraded'
        if self.goal is Goal.ACTIVE:
            return 'active' if all(node.state == 'active' for node in nodes) else 'starting'
        return 'down' if self.goal is Goal.REST else 'inactive'

    # What it is told

    def activate(self) -> None:
        """Bring everything up; what was given up is tried anew."""
        self._tell(Goal.ACTIVE)

    def deactivate(self) -> None:
        """Configure everything and activate nothing, holders included."""
        self._tell(Goal.INACTIVE)

    def end(self) -> None:
        """Shut every node down and stop its process."""
        self._tell(Goal.ENDED)

    def _tell(self, goal: Goal) -> None:
        self.goal = goal
        self._holding = self._resume = False
        for node in self.nodes:
            node.failed = False
            node.restarted_s.clear()

    # What it sees

    def heard(self, name: str, state: str, now_s: float) -> None:
        """Note a heartbeat; one that contradicts what is known gives rise to a question.

        A heartbeat may be older than the answer to a transition, so it is no proof.
        """
        node = self._nodes[name]
        if node.owned and not node.running:
            return
        node.heard_s = now_s
        expected = TARGETS[node.pending] if node.pending else ''
        if state != node.state and (not node.pending or state == expected):
            node.doubtful = True

    def observed(self, name: str, state: str, now_s: float) -> None:
        """Note a node's own answer after its state."""
        node = self._nodes[name]
        if node.asked_s is None:
            return  # answers a question that a loss has voided
        node.asked_s = None
        if state not in RANKS or (node.pending and state != TARGETS[node.pending]):
            return  # in the midst of a transition
        node.pending = ''
        node.doubtful = False
        node.heard_s = now_s
        known, node.state = node.state, state
        if known in RANKS and RANKS[state] < RANKS[known]:
            node.detail = f'went from {known} to {state} unasked'
            self._fall_back()
        if state == 'unconfigured' and node.configured:
            node.configured = False
            self._count_restart(node, now_s)
        if state in ('inactive', 'active'):
            node.configured = True

    def answered(self, name: str, transition: str, success: bool, now_s: float) -> None:
        """Note a node's answer to a transition."""
        node = self._nodes[name]
        if node.pending != transition:
            return
        node.pending = ''
        node.heard_s = now_s
        if not success:
            node.failed = node.doubtful = True
            node.detail = f'{transition} failed; its log says why'
            self._fall_back()
            return
        node.state = TARGETS[transition]
        node.configured = node.state in ('inactive', 'active')
        node.detail = ''

    def process_ended(self, name: str, why: str, now_s: float) -> None:
        """Note that a process of its own is gone."""
        node = self._nodes[name]
        node.running = node.stopping = False
        self._lose(node, why, now_s)

    # What it decides

    def tick(self, now_s: float) -> list[Request]:
        """Say what is to be done now; to be called more often than heartbeats come."""
        for node in self.nodes:
            self._watch(node, now_s)
        self._try_to_resume()
        requests: list[Request] = []
        for node in self.nodes:
            requests += self._care_for_process(node, now_s)
            requests += self._question(node, now_s)
        requests += self._transitions(now_s)
        return requests

    def _watch(self, node: SupervisedNode, now_s: float) -> None:
        if node.state not in LIVING:
            return
        if not node.pending:
            silence_s = now_s - node.heard_s
            if silence_s > self.config.heartbeat_timeout_s:
                self._lose(node, f'silent for {silence_s:.2f} s', now_s)
            return
        slow = node.pending == 'configure'
        patience_s = self.config.configure_timeout_s if slow else self.config.transition_timeout_s
        if now_s - node.pending_since_s > patience_s:
            self._lose(node, f'no answer to {node.pending} for {patience_s:g} s', now_s)

    def _lose(self, node: SupervisedNode, why: str, now_s: float) -> None:
        is_news = node.state != 'lost'  # else whoever said `activate` since then knew of it
        node.state, node.detail, node.since_s = 'lost', why, now_s
        node.pending, node.doubtful, node.asked_s = '', False, None
        if is_news:
            self._fall_back()

    def _fall_back(self) -> None:
        """Nobody moves on without the lost one."""
        if self.goal is Goal.ACTIVE:
            self.goal = Goal.INACTIVE
            self._holding = True
            self._resume = self.config.reactivate

    def _try_to_resume(self) -> None:
        """With `reactivate`: go up again once all have come down and are configured."""
        if not self._resume or self.goal is not Goal.INACTIVE:
            return
        if all(node.is_settled and self._is_down(node) for node in self.nodes):
            self.goal = Goal.ACTIVE
            self._holding = self._resume = False

    def _is_down(self, node: SupervisedNode) -> bool:
        return node.state == 'inactive' or (node.state == 'active' and self._holds(node))

    def _holds(self, node: SupervisedNode) -> bool:
        return self._holding and node.name in self.config.holders

    def _care_for_process(self, node: SupervisedNode, now_s: float) -> Iterator[Request]:
        """Start what is gone, stop what hangs."""
        if not node.owned or node.stopping:
            return
        if self.goal is Goal.ENDED:
            if node.running and (node.failed or node.state not in LIVING):
                node.stopping = True
                yield Request(node.name, 'stop')
        elif not node.running:
            if self._may_start(node, now_s):
                node.state, node.since_s = 'starting', now_s
                node.running = node.started = True
                node.configured = False
                yield Request(node.name, 'start')
        elif self._hangs(node, now_s):
            node.stopping = True
            yield Request(node.name, 'stop')

    def _may_start(self, node: SupervisedNode, now_s: float) -> bool:
        if node.failed:
            return False
        return not node.started or self._count_restart(node, now_s)

    def _hangs(self, node: SupervisedNode, now_s: float) -> bool:
        waited_s = now_s - node.since_s
        if node.state == 'starting':
            return waited_s > self.config.startup_timeout_s
        if node.state == 'lost':
            return waited_s > self.config.hang_timeout_s
        return node.state == 'finalized'

    def _count_restart(self, node: SupervisedNode, now_s: float) -> bool:
        """Count a restart, or give the node up."""
        times_s, window_s = node.restarted_s, self.config.restart_window_s
        while times_s and now_s - times_s[0] > window_s:
            times_s.popleft()
        if len(times_s) >= self.config.max_restarts:
            node.failed = True
            node.detail = f'given up after {len(times_s)} restarts in {window_s:g} s'
            return False
        times_s.append(now_s)
        node.restarts += 1
        return True

    def _question(self, node: SupervisedNode, now_s: float) -> Iterator[Request]:
        waits = node.asked_s is not None and now_s - node.asked_s < _ANSWER_TIMEOUT_S
        if node.doubtful and not waits:
            node.asked_s = now_s
            yield Request(node.name, 'ask')

    def _transitions(self, now_s: float) -> list[Request]:
        if self.goal is Goal.REST:
            return []
        if self.goal is Goal.ACTIVE:
            steps = [self._next_up()]
        elif self.goal is Goal.INACTIVE:
            steps = [self._next_configure(), self._next_down()]
        else:
            steps = [self._next_down() or self._next_shutdown()]
        requests: list[Request] = []
        for step in filter(None, steps):
            node = self._nodes[step.node]
            if node.is_settled:
                node.pending, node.pending_since_s = step.action, now_s
                requests.append(step)
        return requests

    def _next_up(self) -> Request | None:
        """Every node in order: first configure all, then activate all."""
        for node in self.nodes:
            if node.state not in ('inactive', 'active'):
                ready = node.state == 'unconfigured'
                return Request(node.name, 'configure') if ready else None
        for node in self.nodes:
            if node.state != 'active':
                return Request(node.name, 'activate')
        return None

    def _next_configure(self) -> Request | None:
        """A node that began anew, whatever the others are at."""
        for node in self.nodes:
            if node.state == 'unconfigured' and not node.failed:
                return Request(node.name, 'configure')
        return None

    def _next_down(self) -> Request | None:
        """The last active node that does not hold the robot."""
        for node in reversed(self.nodes):
            rises = node.pending == 'activate'
            if (node.state == 'active' or rises) and not self._holds(node) and not node.failed:
                return Request(node.name, 'deactivate')
        return None

    def _next_shutdown(self) -> Request | None:
        for node in reversed(self.nodes):
            if node.state in LIVING and not node.failed:
                return Request(node.name, 'shutdown')
        return None
