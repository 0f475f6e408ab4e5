from dataclasses import replace

import pytest
from cli_fakes import FakeEnv, FakePolicy

from vla_cache_ros.core.errors import ConfigError, SimulatorError
from vla_cache_ros.core.shadow import Divergence
from vla_cache_ros.evaluation.episode import EpisodeSpec
from vla_cache_ros.evaluation.rollout import (
    default_execute_steps,
    reset_options,
    run_episode,
)

SPEC = EpisodeSpec('libero_object', 0, 1, 'safe')


def env(**options) -> FakeEnv:
    return FakeEnv('libero_object', 0, 32, **options)


def test_episode_renders_only_what_the_policy_reads():
    simulator, policy = env(), FakePolicy('safe')
    row = run_episode(simulator, policy, SPEC)
    assert (row.outcome, row.steps, row.summary.policy_steps) == ('success', 10, 3)
    assert [step.control_step for step in row.trace] == [0, 4, 8]
    assert simulator.observed == 3
    assert policy.resets == ['episode start']
    assert row.summary.modes == {'keyframe': 1, 'cached': 2}
    assert row.summary.keyframes == {'first step': 1}
    stages = ['preprocess', 'diff', 'selection', 'vision', 'decoder', 'head']
    assert list(row.summary.stage_ms) == stages
    assert row.summary.recompute_ratio is not None
    assert 0.0 < row.summary.recompute_ratio < 1.0
    assert row.summary.divergence_mean is None


def test_step_limit_is_a_failure_and_the_arms_steps_are_executed():
    row = run_episode(env(), FakePolicy(), EpisodeSpec('libero_object', 0, 0, 'off@2'))
    assert (row.outcome, row.steps, row.summary.policy_steps) == ('failure', 20, 10)


def test_the_dense_policy_sees_every_observation_and_changes_nothing():
    dense = FakePolicy('off')
    row = run_episode(env(), FakePolicy('safe'), SPEC, dense)
    assert dense.step == 3
    assert [step.divergence for step in row.trace] == [Divergence(0.0, 0.0, 0)] * 3
    alone = run_episode(env(), FakePolicy('safe'), SPEC)
    assert alone.trace == tuple(replace(step, divergence=None) for step in row.trace)


def test_nan_action_is_the_policys_failure():
    row = run_episode(env(), FakePolicy(fault='nan'), SPEC, FakePolicy())
    assert (row.outcome, row.steps) == ('failure', 0)
    assert 'NaN' in row.note
    assert row.trace[0].divergence is None


def test_what_the_simulator_raises_is_the_simulators():
    with pytest.raises(SimulatorError, match='reset failed: ValueError: the simulator has a bug'):
        run_episode(env(fault='raises'), FakePolicy(), SPEC)


def test_what_the_policy_raises_is_not_the_simulators():
    with pytest.raises(RuntimeError, match='the policy has a bug'):
        run_episode(env(), FakePolicy(fault='raises'), SPEC)


def test_a_camera_that_the_simulator_lacks_is_named():
    with pytest.raises(ConfigError, match='has no chest, only agentview, wrist'):
        run_episode(env(), FakePolicy(camera_names=('agentview', 'chest')), SPEC)


def test_the_watchdog_hears_of_every_call_and_of_its_return():
    calls = []
    run_episode(env(), FakePolicy(), SPEC, on_call=calls.append)
    assert calls[1::2] == [''] * (len(calls) // 2)
    advance = ['advance'] * 4
    expected = ['reset', *advance, 'observe', *advance, 'observe', 'advance', 'advance']
    assert calls[::2] == expected
    calls.clear()
    with pytest.raises(SimulatorError):
        run_episode(env(fault='raises'), FakePolicy(), SPEC, on_call=calls.append)
    assert calls == ['reset', '']


def test_overhead_is_neither_policy_nor_simulator():
    row = run_episode(env(step_s=0.01), FakePolicy(), SPEC)
    assert row.wall_s > 0.1
    assert 0.0 < row.overhead_ms < 5.0


def test_only_a_disturbed_episode_has_a_condition():
    assert reset_options(SPEC) == {'task': 0, 'init_state': 1}
    assert reset_options(replace(SPEC, condition='shake'))['condition'] == 'shake'


def test_half_of_the_chunk_is_executed_where_the_policy_says_nothing():
    class Plain:
        chunk_size = 8

    assert default_execute_steps(Plain()) == 4  # type: ignore[arg-type]
    assert default_execute_steps(FakePolicy(execute_steps=3)) == 3
