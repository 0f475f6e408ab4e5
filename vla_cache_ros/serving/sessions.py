"""Sessions: a policy for each robot, and the one thread that runs them all.

All calls of a policy are made by one thread, in the order of arrival. A client waits for its
answer before it asks again, so that robots take turns.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from vla_cache_ros.core.errors import ConfigError, ServingError, VlaCacheError
from vla_cache_ros.core.protocols import Policy
from vla_cache_ros.core.types import Observation, StepReport
from vla_cache_ros.serving.limits import Limits

T = TypeVar('T')
logger = logging.getLogger(__name__)

LATENCIES_KEPT = 1000
PERCENTILES = (50, 95, 99)

EPISODE_JUMP_M = 0.15
"""No arm moves so far between two observations: it was put there, so an episode has begun."""


@dataclass(frozen=True)
class Answer:
    """What a session gives for an observation.

    Attributes:
        actions: [T, 7] or, one at a time, [7]; see ActionChunk.
        infer_ms: Time of the policy, milliseconds; 0 for an action of an earlier chunk.
        report: What the policy did; None for an action of an earlier chunk.
    """

    actions: NDArray[np.float32]
    infer_ms: float
    report: StepReport | None

    def details(self) -> dict[str, Any]:
        """What the cache did, in plain numbers, for protocols that let answers say more."""
        if self.report is None:
            return {'mode': 'open loop'}
        plan = self.report.plan
        return {
            'mode': self.report.mode,
            'step': self.report.step,
            'stage_ms': {name: float(ms) for name, ms in self.report.stage_ms.items()},
            'vision_reuse_ratio': 1.0 - float(plan.vision_recompute_ratio),
            'recompute_ratio': float(plan.recompute_ratio),
            'flush_reason': self.report.flush_reason,
            'keyframe_reason': self.report.keyframe_reason,
        }


class Session:
    """One robot's policy. The host's thread alone calls what runs the policy."""

    def __init__(self, name: str, policy: Policy, execute_steps: int) -> None:
        """Begin with an empty cache.

        Args:
            name: As logs and errors call it.
            policy: Its own.
            execute_steps: Actions of each chunk that are executed when they are asked for one at
                a time.
        """
        self.name = name
        self.last_used = 0.0
        self._policy = policy
        self._execute_steps = execute_steps
        self._left: deque[NDArray[np.float32]] = deque()
        self._instruction = ''
        self._position_m: NDArray[np.float32] | None = None
        self._free_at = 0.0

    def start_episode(self, reason: str = 'episode start') -> None:
        """Forget the episode before."""
        self._policy.reset(reason)
        self._left.clear()
        self._position_m = None

    def chunk(self, observation: Observation) -> Answer:
        """Compute a chunk.

        Raises:
            ObservationError: The observation cannot be used; nothing was changed.
            ServingError: The policy failed; its cache is empty now.
        """
        self._notice_jump(observation)
        begin = time.perf_counter()
        try:
            chunk = self._policy.act(observation)
        except VlaCacheError:
            raise
        except Exception as error:
            logger.exception('session %s: the policy failed', self.name)
            self.start_episode('fault')
            raise ServingError(
                f'the policy failed: {type(error).__name__}: {error}; its cache was flushed.'
            ) from error
        if not np.isfinite(chunk.actions).all():
            self.start_episode('fault')
            raise ServingError('the policy gave NaN or infinity; its cache was flushed.')
        return Answer(chunk.actions, 1e3 * (time.perf_counter() - begin), chunk.report)

    def action(self, observation: Observation) -> Answer:
        """Give the next action: of the present chunk, or of a new one when it is used up.

        Raises:
            ObservationError, ServingError: As `chunk`.
        """
        self._notice_jump(observation)
        if observation.instruction != self._instruction:
            self._left.clear()
        if self._left:
            return Answer(self._left.popleft(), 0.0, None)
        answer = self.chunk(observation)
        self._instruction = observation.instruction
        self._left.extend(answer.actions[: self._execute_steps])
        return Answer(self._left.popleft(), answer.infer_ms, answer.report)

    def delay_s(self, now: float, rate_hz: float) -> float:
        """How long the message that has just come must wait, seconds."""
        delay_s = max(0.0, self._free_at - now)
        self._free_at = max(now, self._free_at) + 1.0 / rate_hz
        return delay_s

    def _notice_jump(self, observation: Observation) -> None:
        position_m = observation.proprioception.ee_position_m
        before, self._position_m = self._position_m, position_m
        if before is not None and np.linalg.norm(position_m - before) > EPISODE_JUMP_M:
            self.start_episode('the arm was put elsewhere')
            self._position_m = position_m


class PolicyHost:
    """Opens, runs and closes sessions. Its methods belong to one event loop."""

    def __init__(
        self,
        make_policy: Callable[[], Policy],
        limits: Limits | None = None,
        execute_steps: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Start the thread; no policy is made yet.

        Args:
            make_policy: Makes a policy with a state of its own, on shared weights.
            limits: See `Limits`.
            execute_steps: Actions of each chunk executed when they are asked for one at a time;
                None: what the policy says, else half of its chunk.
            clock: Seconds, monotonic.

        Raises:
            ConfigError: execute_steps is not positive.
        """
        if execute_steps is not None and execute_steps < 1:
            raise ConfigError(f'execute_steps must be at least 1; got {execute_steps}.')
        self.limits = limits or Limits()
        self._make_policy = make_policy
        self._execute_steps = execute_steps
        self._clock = clock
        self._thread = ThreadPoolExecutor(1, 'policy')
        self._sessions: dict[str, Session] = {}
        self._one_opens = asyncio.Lock()
        self._opening = 0
        self._opened = 0
        self._steps = 0
        self._latencies_ms: deque[float] = deque(maxlen=LATENCIES_KEPT)

    @property
    def sessions(self) -> tuple[str, ...]:
        """Names of the open ones."""
        return tuple(self._sessions)

    async def open(self, name: str) -> Session:
        """Open a session with a policy of its own.

        Raises:
            ServingError: All sessions are taken, or this one is open.
        """
        if name in self._sessions:
            raise ServingError(f'session {name!r} is open already.')
        if len(self._sessions) + self._opening >= self.limits.sessions:
            raise ServingError(
                f'all {self.limits.sessions} sessions of this server are taken; try again when '
                'another client has gone, or start it with a larger --max-sessions.'
            )
        self._opening += 1
        try:
            policy = await self._run(self._make_policy)
        finally:
            self._opening -= 1
        steps = self._execute_steps or getattr(
            policy, 'execute_steps', max(1, policy.chunk_size // 2)
        )
        session = Session(name, policy, steps)
        session.last_used = self._clock()
        self._sessions[name] = session
        self._opened += 1
        logger.info('session %s: open', name)
        return session

    def find(self, name: str) -> Session | None:
        """The open session of that name."""
        return self._sessions.get(name)

    async def find_or_open(self, name: str) -> Session:
        """The session of that name, opened by the first who asks for it.

        Raises:
            ServingError: All sessions are taken.
        """
        async with self._one_opens:
            return self.find(name) or await self.open(name)

    def close(self, session: Session) -> None:
        """Forget the session; its cache goes as soon as no step of it runs."""
        if self._sessions.get(session.name) is session:
            del self._sessions[session.name]
            logger.info('session %s: closed', session.name)

    def close_idle(self) -> list[str]:
        """Close the sessions that have been silent for too long; their names."""
        horizon = self._clock() - self.limits.idle_s
        idle = [session for session in self._sessions.values() if session.last_used < horizon]
        for session in idle:
            self.close(session)
        return [session.name for session in idle]

    async def start_episode(self, session: Session) -> None:
        """Flush the session's cache."""
        await self._turn(session)
        await self._run(session.start_episode)

    async def chunk(self, session: Session, observation: Observation) -> Answer:
        """See `Session.chunk`; waits for its turn."""
        return await self._answer(session, session.chunk, observation)

    async def action(self, session: Session, observation: Observation) -> Answer:
        """See `Session.action`; waits for its turn."""
        return await self._answer(session, session.action, observation)

    def status(self) -> dict[str, Any]:
        """What /health says of the sessions."""
        latencies = np.array(self._latencies_ms)
        return {
            'sessions': len(self._sessions),
            'max_sessions': self.limits.sessions,
            'sessions_served': self._opened,
            'steps_served': self._steps,
            'policy_ms': {
                f'p{q}': round(float(np.percentile(latencies, q)), 3) for q in PERCENTILES
            }
            if len(latencies)
            else {},
        }

    def stop(self) -> None:
        """Drop what waits for its turn and end the thread, after the step that runs."""
        self._sessions.clear()
        self._thread.shutdown(wait=True, cancel_futures=True)

    async def _answer(
        self,
        session: Session,
        infer: Callable[[Observation], Answer],
        observation: Observation,
    ) -> Answer:
        await self._turn(session)
        answer = await self._run(lambda: infer(observation))
        session.last_used = self._clock()
        self._steps += 1
        if answer.report is not None:
            self._latencies_ms.append(answer.infer_ms)
        return answer

    async def _turn(self, session: Session) -> None:
        """Slow down a client that sends more than it may."""
        session.last_used = self._clock()
        delay_s = session.delay_s(session.last_used, self.limits.rate_hz)
        if delay_s:
            await asyncio.sleep(delay_s)

    async def _run(self, call: Callable[[], T]) -> T:
        """Call in the policies' thread. Cancelled before its turn, it is not called at all."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, call)
