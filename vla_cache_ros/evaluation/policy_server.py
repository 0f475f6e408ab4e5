"""One policy for many simulators: requests that come together are computed together.

    session   one simulator and one preset: a policy object, so a cache, of its own
    request   (session, observation); a session has one at a time
    batch     taken when max_batch requests wait, when every session waits, or when the first has
              waited max_wait_ms
    answer    the session's chunk, or what its own policy raised: the others go on

Knows no transport: a connection is anything with open, reset, act and close; the server itself is
one. What a transport carries is a value or a `Failure`.
"""

import contextlib
import threading
import time
import uuid
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Protocol

from vla_cache_ros.core.errors import (
    ConfigError,
)
from vla_cache_ros.core.protocols import Policy
from vla_cache_ros.core.types import ActionChunk, Observation
from vla_cache_ros.evaluation.environment import PolicyFactory
from vla_cache_ros.evaluation.policy_messages import (
    PolicyServerBusyError,
    PolicyServerError,
    SessionInfo,
    SessionLostError,
)
from vla_cache_ros.evaluation.rollout import default_execute_steps
from vla_cache_ros.evaluation.statistics import Quantiles, quantiles

WINDOW = 10_000
"""Requests over which the times' quantiles are taken."""


class ActTogether(Protocol):
    """Computes several policies' chunks; that of vla_cache_models.batching in one forward."""

    def __call__(
        self,
        policies: Sequence[Any],
        observations: Sequence[Observation],
        on_batch: Callable[[int], None] | None = None,
    ) -> Sequence[ActionChunk | Exception]:
        """Per policy its chunk or what it raised; on_batch is told the size of each forward."""
        ...


def act_one_by_one(
    policies: Sequence[Policy],
    observations: Sequence[Observation],
    on_batch: Callable[[int], None] | None = None,
) -> list[ActionChunk | Exception]:
    """One policy after another, for those that cannot share a forward."""
    results: list[ActionChunk | Exception] = []
    for policy, observation in zip(policies, observations, strict=True):
        if on_batch is not None:
            on_batch(1)
        try:
            results.append(policy.act(observation))
        except Exception as error:  # this session's alone
            results.append(error)
    return results


@dataclass(frozen=True)
class ServerLimits:
    """How long and how much the server waits for.

    Attributes:
        max_batch: Requests computed together.
        max_wait_ms: How long the first request of a batch waits for others.
        max_sessions: Sessions at a time; each holds a K/V cache.
        deadline_s: A request that is not begun within this time is refused.
        idle_timeout_s: A session without a request for so long is dropped: its client has gone.
    """

    max_batch: int = 8
    max_wait_ms: float = 5.0
    max_sessions: int = 256
    deadline_s: float = 60.0
    idle_timeout_s: float = 1800.0

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            ConfigError: A limit is not positive.
        """
        for name, value in vars(self).items():
            if not value > 0 and not (name == 'max_wait_ms' and value == 0):
                raise ConfigError(f'{name} is {value}; valid: greater than 0.')


@dataclass(frozen=True)
class ServerStatistics:
    """What a server did so far.

    Attributes:
        sessions: Open now.
        dropped: Sessions whose clients had gone.
        requests: Answered with a chunk.
        failures: Answered with the policy's error.
        expired: Refused because their deadline had passed.
        batches: Requests taken together -> how often.
        forwards: Sessions in one forward -> how often; 1 alone where a policy cannot batch.
        wait_ms: From a request's arrival to its batch, milliseconds.
        compute_ms: Of a batch, milliseconds.
    """

    sessions: int
    dropped: int
    requests: int
    failures: int
    expired: int
    batches: Mapping[int, int]
    forwards: Mapping[int, int]
    wait_ms: Quantiles | None
    compute_ms: Quantiles | None

    def __str__(self) -> str:
        """Format as '41 chunks in 20 batches, 1 to 4 sessions per forward, ..'."""
        parts = [f'{self.requests} chunks in {sum(self.batches.values())} batches']
        if self.forwards:
            parts.append(f'{min(self.forwards)} to {max(self.forwards)} sessions per forward')
        if self.wait_ms is not None and self.compute_ms is not None:
            parts.append(f'a wait of {self.wait_ms.p50:.1f} ms')
            parts.append(f'{self.compute_ms.p50:.1f} ms of computing each (medians)')
        for name in ('failures', 'expired', 'dropped'):
            if count := getattr(self, name):
                parts.append(f'{count} {name}')
        return ', '.join(parts)


@dataclass
class _Session:
    policy: Policy
    used_s: float
    busy: bool = False


@dataclass(frozen=True)
class _Request:
    session: _Session
    observation: Observation
    since_s: float
    answer: 'Future[ActionChunk]' = field(default_factory=Future)


class PolicyServer:
    """Batches the requests of many sessions; every method may be called from any thread."""

    def __init__(
        self,
        policy_factory: PolicyFactory,
        act_together: ActTogether = act_one_by_one,
        limits: ServerLimits | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Start the computing thread; policies come with their sessions.

        Args:
            policy_factory: Builds the policy of a preset, one per session.
            act_together: Computes a batch.
            limits: Its limits.
            clock: Seconds, monotonic; injected in tests.
        """
        self._policy_factory = policy_factory
        self._act_together = act_together
        self._limits = limits or ServerLimits()
        self._clock = clock
        self._building = threading.Lock()
        self._changed = threading.Condition()
        self._sessions: dict[str, _Session] = {}
        self._pending: deque[_Request] = deque()
        self._stopped = False
        self._counts: Counter[str] = Counter()
        self._batches: Counter[int] = Counter()
        self._forwards: Counter[int] = Counter()
        self._wait_ms: deque[float] = deque(maxlen=WINDOW)
        self._compute_ms: deque[float] = deque(maxlen=WINDOW)
        self._thread = threading.Thread(target=self._serve, name='policies', daemon=True)
        self._thread.start()

    def open(self, preset: str) -> SessionInfo:
        """Start a session.

        Raises:
            PolicyServerBusyError: There are as many as the server takes.
            VlaCacheError: There is no such preset, or its policy cannot be built.
        """
        with self._changed:
            self._drop_idle()
            if len(self._sessions) >= self._limits.max_sessions:
                raise PolicyServerBusyError(
                    f'{len(self._sessions)} sessions are open, as many as this server takes; '
                    'close one, try again later, or raise max_sessions.'
                )
        with self._building:
            policy = self._policy_factory(preset)
        name = uuid.uuid4().hex
        with self._changed:
            self._sessions[name] = _Session(policy, self._clock())
        return SessionInfo(
            name,
            policy.chunk_size,
            tuple(policy.camera_names),
            policy.image_size_px,
            policy.layout,
            default_execute_steps(policy),
        )

    def reset(self, session: str, reason: str = 'reset') -> None:
        """Start the session's next episode.

        Raises:
            SessionLostError: There is no such session, or a request of it still runs, whose
                client gave it up; the session is closed then.
        """
        with self._changed:
            found = self._found(session)
            if found.busy:
                del self._sessions[session]
                raise SessionLostError('a request of this session still runs; open another one.')
            found.used_s = self._clock()
        found.policy.reset(reason)

    def submit(self, session: str, observation: Observation) -> 'Future[ActionChunk]':
        """Ask for the session's next chunk; the answer holds the chunk or what was raised.

        Raises:
            SessionLostError: There is no such session.
            PolicyServerError: An earlier request of the session still runs.
        """
        with self._changed:
            found = self._found(session)
            if found.busy:
                raise PolicyServerError('a session has one request at a time.')
            request = _Request(found, observation, self._clock())
            found.busy = True
            self._pending.append(request)
            self._changed.notify_all()
        return request.answer

    def act(self, session: str, observation: Observation) -> ActionChunk:
        """`submit`, and wait for the answer."""
        return self.submit(session, observation).result()

    def close(self, session: str) -> None:
        """End a session; one that is gone already is not missed."""
        with self._changed:
            self._sessions.pop(session, None)

    def statistics(self) -> ServerStatistics:
        """What the server did so far."""
        with self._changed:
            return ServerStatistics(
                sessions=len(self._sessions),
                dropped=self._counts['dropped'],
                requests=self._counts['requests'],
                failures=self._counts['failures'],
                expired=self._counts['expired'],
                batches=dict(sorted(self._batches.items())),
                forwards=dict(sorted(self._forwards.items())),
                wait_ms=quantiles(list(self._wait_ms)) if self._wait_ms else None,
                compute_ms=quantiles(list(self._compute_ms)) if self._compute_ms else None,
            )

    def stop(self) -> None:
        """End the computing thread; requests that still wait are refused."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        self._thread.join()
        for request in self._pending:
            request.answer.set_exception(SessionLostError('the policy server stopped.'))

    def _found(self, session: str) -> _Session:
        if self._stopped or session not in self._sessions:
            raise SessionLostError(
                'the policy server knows no such session: it was restarted, or the session was '
                f'idle for more than {self._limits.idle_timeout_s:g} s.'
            )
        return self._sessions[session]

    def _serve(self) -> None:
        while batch := self._next_batch():
            self._answer(batch)

    def _next_batch(self) -> list[_Request]:
        """Wait for requests, and for more of them as long as the limits say."""
        limits = self._limits
        with self._changed:
            while not self._stopped:
                self._drop_idle()
                self._refuse_late()
                if not self._pending:
                    self._changed.wait(min(1.0, limits.idle_timeout_s / 4))
                    continue
                wait_s = self._pending[0].since_s + limits.max_wait_ms / 1e3 - self._clock()
                enough = min(limits.max_batch, len(self._sessions))
                if len(self._pending) >= enough or wait_s <= 0:
                    count = min(limits.max_batch, len(self._pending))
                    return [self._pending.popleft() for _ in range(count)]
                self._changed.wait(wait_s)
        return []

    def _answer(self, batch: Sequence[_Request]) -> None:
        """Compute a batch and hand out its results."""
        begin = self._clock()
        sizes: list[int] = []
        results: Sequence[ActionChunk | Exception]
        try:
            results = self._act_together(
                [request.session.policy for request in batch],
                [request.observation for request in batch],
                sizes.append,
            )
        except Exception as error:  # the batch's: its sessions' policies start anew by themselves
            results = [error] * len(batch)
        end = self._clock()
        with self._changed:
            self._batches[len(batch)] += 1
            self._forwards.update(sizes)
            self._compute_ms.append(1e3 * (end - begin))
            self._wait_ms.extend(1e3 * (begin - request.since_s) for request in batch)
            for request, result in zip(batch, results, strict=True):
                request.session.busy = False
                request.session.used_s = end
                failed = isinstance(result, Exception)
                self._counts['failures' if failed else 'requests'] += 1
        for request, result in zip(batch, results, strict=True):
            with contextlib.suppress(Exception):  # its client has cancelled it
                if isinstance(result, Exception):
                    request.answer.set_exception(result)
                else:
                    request.answer.set_result(result)

    def _drop_idle(self) -> None:
        before = self._clock() - self._limits.idle_timeout_s
        gone = [
            name
            for name, session in self._sessions.items()
            if not session.busy and session.used_s < before
        ]
        for name in gone:
            del self._sessions[name]
        self._counts['dropped'] += len(gone)

    def _refuse_late(self) -> None:
        now = self._clock()
        while self._pending and now - self._pending[0].since_s > self._limits.deadline_s:
            request = self._pending.popleft()
            request.session.busy = False
            self._counts['expired'] += 1
            request.answer.set_exception(
                PolicyServerBusyError(
                    f'the request waited more than {self._limits.deadline_s:g} s for its batch; '
                    'use fewer simulators per server, or raise deadline_s.'
                )
            )
