"""Ensemble and prefix in the whole graph, lockstep: reproducible, each step executed once."""

import numpy as np
import pytest

from vla_cache_ros.nodes.composition import Graph

pytestmark = pytest.mark.ros


def run_episodes(env, policy, count: int = 2, **guard) -> list[np.ndarray]:
    """What the simulator executed in each episode: the index within its chunk, per step."""
    overrides = {
        'sim_bridge': {'frame_every': 4},
        'command_guard': {'pacing': 'state', 'actions_per_chunk': 4, **guard},
    }
    executed = []
    with Graph(
        policy_factory=lambda _: policy, env_factory=lambda _: env, overrides=overrides
    ) as graph:
        for _ in range(count):
            result = graph.run_episode(task=0, init_state=1)
            assert result.success
            assert result.steps == 20
            assert result.null_steps == result.late_commands == 0
            executed.append(np.round(100 * np.array(env.actions)[:, 1]).astype(int))
    return executed


@pytest.mark.parametrize('mode', ['open_loop', 'prefix', 'ensemble'])
def test_without_delay_all_modes_execute_each_chunk_from_its_first_action(env, policy, mode):
    for executed in run_episodes(env, policy, chunk_execution=mode):
        assert executed.tolist() == [*range(4)] * 5


def test_with_a_delay_prefix_skips_what_ran_from_the_old_chunk(env, policy):
    settings = {'chunk_execution': 'prefix', 'lockstep_delay_steps': 2}
    for executed in run_episodes(env, policy, **settings):
        assert executed.tolist() == [0, 1, *[2, 3, 4, 5] * 4, 2, 3]


def test_a_policy_is_given_what_runs_while_it_computes(env, policy):
    run_episodes(env, policy, count=1, chunk_execution='prefix', lockstep_delay_steps=2)
    committed = [seen.committed for seen in policy.observations]
    assert committed[0] is None
    given = [actions for actions in committed[1:] if actions is not None]
    assert given
    for actions in given:  # what the chunk before holds for the observation's own step
        assert np.round(100 * actions[0, 1]) == 4
