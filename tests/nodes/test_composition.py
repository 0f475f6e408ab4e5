"""The whole graph in lockstep, with a fake simulator and a fake policy."""

import numpy as np
import pytest

from vla_cache_ros.nodes.composition import Graph

pytestmark = pytest.mark.ros

LOCKSTEP = {
    'policy_node': {'use_sim_time': True},
    'sim_bridge': {'camera_names': ['agentview', 'wrist'], 'frame_every': 8},
    'command_guard': {'pacing': 'state', 'actions_per_chunk': 8, 'use_sim_time': True},
}


@pytest.fixture
def graph(env, policy):
    with Graph(
        policy_factory=lambda _: policy, env_factory=lambda _: env, overrides=LOCKSTEP
    ) as graph:
        yield graph


def test_episode_runs_to_success(graph, env, policy):
    result = graph.run_episode(task=2, init_state=7, seed=3)

    assert result.success
    assert result.reason == 'success'
    assert result.steps == 20  # 0.1 m at 0.005 m per step
    assert result.null_steps == result.late_commands == 0
    assert env.resets == [{'seed': 3, 'task': 2, 'init_state': 7}]
    assert env.renders == 3  # at steps 0, 8 and 16
    # Every action of every chunk was executed once, in order.
    indices = np.round(100 * np.array(env.actions)[:, 1]).astype(int)
    assert indices.tolist() == [*range(8), *range(8), *range(4)]
