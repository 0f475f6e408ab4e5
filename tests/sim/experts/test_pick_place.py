import numpy as np
import pytest

from vla_cache_ros.core.errors import ConfigError
from vla_cache_sim.experts import make_expert
from vla_cache_sim.libero import LiberoEnv, make_env

pytestmark = pytest.mark.sim


def drive(env: LiberoEnv, expert, until) -> None:
    """Let the expert drive until a condition holds."""
    for _ in range(env.suite.step_limit):
        if until():
            return
        _, success, truncated, _ = env.advance(expert.act())
        if success or truncated:
            pytest.fail(f'the episode ended in phase {expert.phase}')
    pytest.fail('the condition was never met')


def finish(env: LiberoEnv, expert) -> list[str]:
    """Let the expert finish the episode; returns the phases it went through."""
    phases = []
    while True:
        action = expert.act()
        assert env.action_space.contains(action)
        phases.append(expert.phase)
        _, success, truncated, _ = env.advance(action)
        if success or truncated:
            assert success, phases
            return phases


def test_succeeds_from_an_official_state(object_env: LiberoEnv):
    object_env.start(seed=0, options={'task': 0, 'init_state': 0})
    phases = finish(object_env, make_expert(object_env))
    assert len(phases) < 150
    order = [phases.index(name) for name in ('approach', 'descend', 'close', 'lift', 'transport')]
    assert order == sorted(order)


def test_places_a_bowl_by_its_rim(spatial_env: LiberoEnv):
    spatial_env.start(seed=0, options={'init_state': 3})
    assert len(finish(spatial_env, make_expert(spatial_env))) < 150


def test_recovers_from_a_gripper_closed_on_nothing(object_env: LiberoEnv):
    object_env.start(seed=0, options={'task': 0, 'init_state': 1})
    expert = make_expert(object_env)
    for _ in range(15):
        object_env.advance(np.array([0, 0, 0, 0, 0, 0, 1.0]))
    assert object_env.scene.gripper_opening_m() < 0.01
    expert.act()
    assert expert.act()[6] == -1
    finish(object_env, expert)


def test_picks_the_object_up_again_after_a_drop(object_env: LiberoEnv):
    object_env.start(seed=0, options={'task': 0, 'init_state': 1})
    expert = make_expert(object_env)
    start = object_env.scene.target_position_m()[2]
    drive(object_env, expert, lambda: object_env.scene.target_position_m()[2] > start + 0.05)
    for _ in range(14):
        object_env.advance(np.array([0, 0, 0.5, 0, 0, 0, -1.0]))
    assert object_env.scene.target_position_m()[2] < start + 0.02
    assert finish(object_env, expert).count('close') > 2


def test_follows_an_object_that_was_pushed(object_env: LiberoEnv):
    object_env.start(seed=0, options={'task': 0, 'init_state': 1})
    expert = make_expert(object_env)
    drive(object_env, expert, lambda: expert.phase == 'descend')
    object_env.scene.free_joint_qpos(object_env.scene.target)[0] += 0.06
    finish(object_env, expert)


def test_the_action_is_a_function_of_the_state(object_env: LiberoEnv):
    """A fresh expert agrees with one that has watched the episode: it can label any state."""
    object_env.start(seed=0, options={'task': 0, 'init_state': 2})
    watching = make_expert(object_env)
    differences = []
    for _ in range(60):
        action = watching.act()
        differences.append(np.abs(make_expert(object_env).act() - action).max())
        object_env.advance(action)
    assert np.mean(np.array(differences) < 0.1) > 0.95


def test_reset_forgets_the_episode(object_env: LiberoEnv):
    expert = None
    actions = []
    for _ in range(2):
        object_env.start(seed=0, options={'task': 0, 'init_state': 2})
        expert = expert or make_expert(object_env)
        expert.reset()
        actions.append([expert.act().copy()])
        for _ in range(40):
            object_env.advance(actions[-1][-1])
            actions[-1].append(expert.act().copy())
    assert np.array_equal(actions[0], actions[1])


def test_there_is_no_expert_for_other_suites():
    env = make_env('libero_goal', 0)
    with pytest.raises(ConfigError, match='libero_goal.*libero_object, libero_spatial'):
        make_expert(env)
