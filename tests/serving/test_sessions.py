import asyncio
import threading

import pytest
from serving_fakes import RememberingPolicy, image, state

from vla_cache_ros.core.errors import ConfigError, ObservationError, ServingError
from vla_cache_ros.core.types import Observation, Proprioception
from vla_cache_ros.serving.limits import Limits
from vla_cache_ros.serving.sessions import PolicyHost


def observation(seed=0, words='pick', x_m=0.0):
    arm = Proprioception(state(x_m)[:3], [0, 0, 0, 1], state()[6:])
    return Observation({'agentview': image(seed), 'wrist': image(seed + 1)}, arm, words)


@pytest.fixture
def policies():
    return []


@pytest.fixture
def make_policy(policies):
    def make():
        policies.append(RememberingPolicy())
        return policies[-1]

    return make


def test_robots_take_turns(make_policy, policies):
    """Whoever asks again while others wait stands behind them."""
    order = []

    async def robot(host, name, session):
        for _ in range(3):
            await host.chunk(session, observation())
            order.append(name)

    async def run():
        host = PolicyHost(make_policy)
        sessions = [await host.open(str(n)) for n in range(3)]
        await asyncio.gather(*(robot(host, n, session) for n, session in enumerate(sessions)))
        host.stop()

    asyncio.run(run())
    assert [sorted(order[n : n + 3]) for n in (0, 3, 6)] == [[0, 1, 2]] * 3


def test_one_step_runs_at_a_time():
    running = threading.Lock()

    class Policy(RememberingPolicy):
        def act(self, observation):
            assert running.acquire(blocking=False)
            try:
                return super().act(observation)
            finally:
                running.release()

    async def run():
        host = PolicyHost(Policy)
        sessions = [await host.open(str(n)) for n in range(4)]
        await asyncio.gather(*(host.chunk(s, observation()) for s in sessions for _ in range(5)))
        assert host.status()['steps_served'] == 20
        host.stop()

    asyncio.run(run())


def test_a_failed_step_empties_its_own_cache_alone(make_policy, policies):
    async def run():
        host = PolicyHost(make_policy)
        one, two = await host.open('one'), await host.open('two')
        for session in (one, two):
            await host.chunk(session, observation())
        with pytest.raises(ServingError, match='RuntimeError: the policy has a bug'):
            await host.chunk(one, observation(words='fail'))
        host.stop()

    asyncio.run(run())
    assert [policy.resets for policy in policies] == [['fault'], []]


def test_a_refused_observation_changes_nothing(make_policy, policies):
    async def run():
        host = PolicyHost(make_policy)
        session = await host.open('one')
        await host.action(session, observation())
        with pytest.raises(ObservationError):
            await host.action(session, observation(words='refuse'))
        host.stop()

    asyncio.run(run())
    assert policies[0].resets == []


def test_sessions_opened_at_the_same_time_keep_the_bound(make_policy):
    async def run():
        host = PolicyHost(make_policy, Limits(sessions=2))
        opened = await asyncio.gather(
            *(host.open(str(n)) for n in range(5)), return_exceptions=True
        )
        host.stop()
        return opened

    opened = asyncio.run(run())
    assert sum(isinstance(result, ServingError) for result in opened) == 3


def test_requests_of_one_session_share_its_policy(make_policy, policies):
    async def run():
        host = PolicyHost(make_policy)
        found = await asyncio.gather(*(host.find_or_open('one') for _ in range(4)))
        host.stop()
        return found

    assert len(set(map(id, asyncio.run(run())))) == len(policies) == 1


def test_a_jump_counts_from_the_last_observation_even_where_the_chunk_lasts(make_policy, policies):
    async def run():
        host = PolicyHost(make_policy, execute_steps=4)
        session = await host.open('one')
        for n in range(4):
            await host.action(session, observation(x_m=0.1 * n))
        await host.action(session, observation(x_m=0.0))
        host.stop()

    asyncio.run(run())
    assert policies[0].resets == ['the arm was put elsewhere']


def test_idle_sessions_are_closed(make_policy):
    now = [0.0]

    async def run():
        host = PolicyHost(make_policy, Limits(idle_s=10), clock=lambda: now[0])
        await host.open('old')
        now[0] = 9.0
        await host.open('new')
        now[0] = 11.0
        assert host.close_idle() == ['old']
        assert host.sessions == ('new',)
        host.stop()

    asyncio.run(run())


@pytest.mark.parametrize(
    'limit', ['message_bytes', 'image_side_px', 'sessions', 'rate_hz', 'idle_s']
)
def test_limits_are_positive(limit):
    with pytest.raises(ConfigError, match=f'{limit} must be positive'):
        Limits(**{limit: 0})


def test_execute_steps_is_positive(make_policy):
    with pytest.raises(ConfigError, match='execute_steps'):
        PolicyHost(make_policy, execute_steps=0)
