"""The whole graph in lockstep, with a fake simulator and a fake policy."""

from pathlib import Path

import numpy as np
import pytest

from vla_cache_ros.core.errors import (
    CheckpointError,
    ConfigError,
    SimulatorError,
    UnknownNameError,
)
from vla_cache_ros.nodes.composition import Graph

pytestmark = pytest.mark.ros

LOCKSTEP = {
    'sim_bridge': {'frame_every': 8},
    'command_guard': {'pacing': 'state', 'actions_per_chunk': 8},
}
CONFIG = Path(__file__).resolve().parents[2] / 'config'


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
    # Each observation shows the state at which its chunk began.
    assert [int(seen.images['wrist'][0, 0, 0]) for seen in policy.observations] == [0, 8, 16]
    x_m = [float(seen.proprioception.ee_position_m[0]) for seen in policy.observations]
    np.testing.assert_allclose(x_m, [0, 0.04, 0.08], atol=1e-6)
    assert policy.resets[-1] == 'reset'


def test_episodes_are_independent_of_those_before(graph, env, policy):
    actions = []
    for _ in range(3):
        assert graph.run_episode(task=0, init_state=1).success
        actions.append(np.array(env.actions))
    np.testing.assert_array_equal(actions[0], actions[1])
    np.testing.assert_array_equal(actions[0], actions[2])
    assert policy.resets.count('reset') == 3
    assert graph.policy_node.drops == {}


def test_monitor_sees_every_step_and_command(graph):
    graph.run_episode(task=0, init_state=0)
    snapshot = graph.monitor.snapshot()
    assert snapshot.steps == 3
    assert snapshot.commands == 20
    assert snapshot.null_commands == 0
    assert len(graph.monitor.samples('image_to_command')) == 3
    for name in ('transport', 'queue', 'vision', 'head', 'inference', 'publish', 'overhead'):
        assert snapshot.latency[name].count == 3, name
    whole, inference = (
        graph.monitor.samples('image_to_command'),
        graph.monitor.samples('inference'),
    )
    assert all(total > part for total, part in zip(whole, inference, strict=True))


def test_faulty_step_means_null_actions_until_the_next_images(graph, env, policy):
    act, calls = policy.act, []

    def act_or_fail(observation):
        calls.append(observation)
        if len(calls) == 2:
            raise RuntimeError('out of memory')
        return act(observation)

    policy.act = act_or_fail
    result = graph.run_episode(task=0, init_state=0)
    moves = np.array(env.actions)[:, 0] > 0
    assert moves.tolist() == [True] * 8 + [False] * 8 + [True] * 12
    assert result.success
    assert result.null_steps == 0  # the guard said so at once: nobody waited
    assert graph.policy_node.drops == {'inference_fault': 1}
    assert 'fault' in policy.resets


def test_unknown_initial_state_is_refused_and_the_graph_goes_on(graph):
    with pytest.raises(UnknownNameError, match=r'0\.\.49'):
        graph.run_episode(task=0, init_state=50)
    assert graph.run_episode(task=0, init_state=49).success


def test_simulator_failure_is_raised_and_the_graph_goes_on(graph, env):
    env.fail_at = 5
    with pytest.raises(SimulatorError, match='the fake physics diverged'):
        graph.run_episode(task=0, init_state=0)
    env.fail_at = None
    assert graph.run_episode(task=0, init_state=0).success


def test_policy_that_cannot_be_loaded_ends_the_bring_up(env):
    def fail(_):
        raise CheckpointError('there are no weights.')

    with pytest.raises(ConfigError, match='policy_node could not be configured'):
        Graph(policy_factory=fail, env_factory=lambda _: env)


def test_missing_parameter_file_is_refused():
    with pytest.raises(ConfigError, match='nowhere.yaml does not exist'):
        Graph(params_file='nowhere.yaml')


@pytest.mark.parametrize('namespace', ['', 'left_arm'])
def test_graph_from_a_parameter_file(env, policy, namespace):
    with Graph(
        policy_factory=lambda _: policy,
        env_factory=lambda _: env,
        params_file=CONFIG / 'libero_small_vla.yaml',
        overrides={'sim_bridge': {'episodes': 0}},
        namespace=namespace,
    ) as graph:
        assert graph.command_guard.get_parameter('pacing').value == 'state'
        assert graph.run_episode(task=0, init_state=0).success


def test_realtime_reaches_the_goal_too(env, policy):
    rate = {'control_frequency_hz': 50.0}
    with Graph(
        policy_factory=lambda _: policy,
        env_factory=lambda _: env,
        overrides={
            'policy_node': rate,
            'sim_bridge': {**rate, 'mode': 'realtime', 'frame_every': 2},
            'command_guard': {**rate, 'pacing': 'timer'},
        },
    ) as graph:
        result = graph.run_episode(task=0, init_state=0)
    assert result.reason in ('success', 'step limit')  # a busy machine may be late ..
    assert env.position_m[0] > 0.02  # .. but the arm moved on commands
