"""The batching policy server, without any transport."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.cli.cli_fakes import FakeEnvs, FakePolicies, FakePolicy
from vla_cache_ros.core.errors import ConfigError, ObservationError, UnknownNameError
from vla_cache_ros.core.protocols import Policy
from vla_cache_ros.core.types import ActionChunk, Observation, Proprioception
from vla_cache_ros.evaluation.episode import EpisodeSpec
from vla_cache_ros.evaluation.policy_messages import (
    Failure,
    PolicyServerBusyError,
    PolicyServerError,
    SessionLostError,
    unpack,
)
from vla_cache_ros.evaluation.policy_server import PolicyServer, ServerLimits, act_one_by_one
from vla_cache_ros.evaluation.remote_policy import RemotePolicy
from vla_cache_ros.evaluation.runner import EpisodeRunner, Job

PATIENT = ServerLimits(max_wait_ms=10_000.0)
"""A batch is complete only when it is full or every session waits."""
EAGER = ServerLimits(max_wait_ms=0.0)


def observation(stamp_ns: int = 0) -> Observation:
    image = np.zeros((32, 32, 3), np.uint8)
    state = Proprioception(np.zeros(3), np.array([0.0, 0.0, 0.0, 1.0]), np.zeros(2))
    return Observation({'agentview': image, 'wrist': image}, state, 'pick', stamp_ns)


@contextmanager
def serving(*args: Any, **options: Any) -> Iterator[PolicyServer]:
    server = PolicyServer(*args, **options)
    try:
        yield server
    finally:
        server.stop()


class Gate:
    """Computes one by one, but only while it is open."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.entered = threading.Event()

    def __call__(self, policies: Any, observations: Any, on_batch: Any = None) -> Any:
        self.entered.set()
        assert self.open.wait(10)
        return act_one_by_one(policies, observations, on_batch)


def test_requests_of_all_sessions_are_computed_together_and_each_gets_its_own() -> None:
    with serving(FakePolicies(), limits=PATIENT) as server:
        sessions = [server.open('safe').session for _ in range(3)]
        answers = [server.submit(name, observation(i)) for i, name in enumerate(sessions)]
        assert [answer.result(5).stamp_ns for answer in answers] == [0, 1, 2]
        statistics = server.statistics()
    assert statistics.batches == {3: 1}
    assert statistics.forwards == {1: 3}  # these policies cannot share a forward
    assert statistics.requests == 3
    assert statistics.wait_ms is not None
    assert statistics.wait_ms.max < 5000


def test_a_batch_is_never_larger_than_its_limit() -> None:
    gate = Gate()
    with serving(FakePolicies(), gate, replace(EAGER, max_batch=2)) as server:
        sessions = [server.open('off').session for _ in range(6)]
        first = server.submit(sessions[0], observation())
        assert gate.entered.wait(5)
        rest = [server.submit(name, observation()) for name in sessions[1:]]
        gate.open.set()
        for answer in (first, *rest):
            answer.result(5)
        assert server.statistics().batches == {1: 2, 2: 2}


def test_a_lone_request_waits_no_longer_than_the_limit() -> None:
    with serving(FakePolicies(), limits=ServerLimits(max_wait_ms=20.0)) as server:
        sessions = [server.open('off').session for _ in range(2)]
        server.submit(sessions[0], observation()).result(5)
        wait_ms = server.statistics().wait_ms
    assert wait_ms is not None
    assert wait_ms.max >= 20.0


def test_a_policy_that_raises_fails_its_own_session_alone() -> None:
    faults = iter(['', 'raises', ''])

    def make(preset: str) -> Policy:
        return FakePolicy(preset, next(faults))

    with serving(make, limits=PATIENT) as server:
        sessions = [server.open('off').session for _ in range(3)]
        answers = [server.submit(name, observation()) for name in sessions]
        assert isinstance(answers[0].result(5), ActionChunk)
        assert isinstance(answers[2].result(5), ActionChunk)
        with pytest.raises(RuntimeError, match='has a bug'):
            answers[1].result(5)
        assert server.statistics().failures == 1


def test_a_batch_that_raises_leaves_the_server_running() -> None:
    broken = [True]

    def together(policies: Any, observations: Any, on_batch: Any = None) -> Any:
        if broken.pop() if broken else False:
            raise RuntimeError('out of memory')
        return act_one_by_one(policies, observations, on_batch)

    with serving(FakePolicies(), together, EAGER) as server:
        session = server.open('off').session
        with pytest.raises(RuntimeError, match='out of memory'):
            server.act(session, observation())
        assert server.act(session, observation(3)).stamp_ns == 3


def test_sessions_have_caches_of_their_own() -> None:
    with serving(FakePolicies(), limits=EAGER) as server:
        first, second = (RemotePolicy(server, 'safe') for _ in range(2))
        first.act(observation())
        modes = [policy.act(observation()).report.mode for policy in (first, second)]
        assert modes == ['cached', 'keyframe']
        first.reset('episode start')
        modes = [policy.act(observation()).report.mode for policy in (first, second)]
        assert modes == ['keyframe', 'cached']


def test_a_session_whose_client_vanished_is_dropped() -> None:
    now = [0.0]
    limits = replace(EAGER, idle_timeout_s=60.0, max_sessions=1)
    with serving(FakePolicies(), limits=limits, clock=lambda: now[0]) as server:
        session = server.open('off').session
        with pytest.raises(PolicyServerBusyError, match='1 sessions are open'):
            server.open('off')
        now[0] = 61.0
        server.open('off')
        with pytest.raises(SessionLostError, match='idle for more than 60 s'):
            server.submit(session, observation())
        assert server.statistics().dropped == 1
        assert server.statistics().sessions == 1


def test_a_request_that_waits_past_its_deadline_is_refused_and_not_computed() -> None:
    now, gate = [0.0], Gate()
    with serving(FakePolicies(), gate, EAGER, clock=lambda: now[0]) as server:
        sessions = [server.open('off').session for _ in range(2)]
        first = server.submit(sessions[0], observation())
        assert gate.entered.wait(5)
        late = server.submit(sessions[1], observation())
        now[0] = 61.0
        gate.open.set()
        first.result(5)
        with pytest.raises(PolicyServerBusyError, match='waited more than 60 s'):
            late.result(5)
        assert server.statistics().expired == 1
        assert server.act(sessions[1], observation(5)).stamp_ns == 5


def test_a_session_has_one_request_at_a_time_and_one_given_up_costs_the_session() -> None:
    gate = Gate()
    with serving(FakePolicies(), gate, EAGER) as server:
        policy = RemotePolicy(server, 'off')
        answer = server.submit(policy._info.session, observation())
        with pytest.raises(PolicyServerError, match='one request at a time'):
            server.submit(policy._info.session, observation())
        policy.reset('episode start')  # the client gave the request up: a new session
        gate.open.set()
        assert isinstance(answer.result(5), ActionChunk)
        assert isinstance(policy.act(observation()), ActionChunk)


def test_an_episode_whose_session_is_lost_fails_and_the_next_one_opens_another() -> None:
    with serving(FakePolicies(), limits=EAGER) as server:
        policy = RemotePolicy(server, 'off')
        server.close(policy._info.session)
        with pytest.raises(SessionLostError):
            policy.act(observation())
        policy.reset('episode start')
        assert isinstance(policy.act(observation()), ActionChunk)


def test_requests_that_wait_are_refused_when_the_server_stops() -> None:
    server = PolicyServer(FakePolicies(), limits=PATIENT)
    sessions = [server.open('off').session for _ in range(2)]
    answer = server.submit(sessions[0], observation())
    server.stop()
    with pytest.raises(SessionLostError, match='stopped'):
        answer.result(5)


def test_episodes_are_the_same_behind_a_server_as_in_the_process() -> None:
    job = Job(FakePolicies(), FakeEnvs())
    specs = [EpisodeSpec('libero_object', 0, i, arm) for i in range(3) for arm in ('off', 'safe')]
    alone = EpisodeRunner(job)
    expected = [_judged(alone.run(spec)) for spec in specs]
    with serving(FakePolicies(), limits=ServerLimits(max_wait_ms=2.0)) as server:

        def connect(preset: str) -> Policy:
            return RemotePolicy(server, preset)

        def simulate(part: list[EpisodeSpec]) -> list[Any]:
            runner = EpisodeRunner(replace(job, policy_factory=connect))
            return [_judged(runner.run(spec)) for spec in part]

        with ThreadPoolExecutor(2) as pool:
            halves = list(pool.map(simulate, (specs[:3], specs[3:])))
    assert halves[0] + halves[1] == expected


def _judged(row: Any) -> Any:
    return row.spec, row.outcome, row.steps, [step.mode for step in row.trace]


@pytest.mark.parametrize(
    ('error', 'kind'),
    [
        (SessionLostError('gone'), SessionLostError),
        (ObservationError('no camera'), ObservationError),
        (UnknownNameError('preset', 'x', ['off']), Exception),
        (KeyError('oops'), RuntimeError),
    ],
)
def test_failures_keep_their_kind_and_their_message_over_a_transport(
    error: Exception, kind: type[Exception]
) -> None:
    with pytest.raises(kind, match=str(error.args[0])[:20]):
        unpack(Failure.of(error))
    assert unpack(3) == 3


def test_limits_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ConfigError, match='max_batch is 0'):
        ServerLimits(max_batch=0)
