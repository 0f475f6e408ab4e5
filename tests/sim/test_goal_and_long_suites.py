"""libero_goal and libero_10: fixtures that open and light up, goals of two parts."""

from collections.abc import Iterator

import numpy as np
import pytest

from vla_cache_sim.libero import NULL_ACTION, LiberoEnv, make_env

pytestmark = pytest.mark.sim


@pytest.fixture(scope='module')
def goal_env() -> Iterator[LiberoEnv]:
    env = make_env('libero_goal', 0, image_size_px=32)
    yield env
    env.close()


@pytest.fixture(scope='module')
def long_env() -> Iterator[LiberoEnv]:
    env = make_env('libero_10', 0, image_size_px=32)
    yield env
    env.close()


def set_joint(env: LiberoEnv, name: str, value: float) -> None:
    joint = env._domain.sim.model.joint_name2id(name)
    env.scene.data.qpos[env.scene.model.jnt_qposadr[joint]] = value


def put(env: LiberoEnv, name: str, place: str, offset_m: tuple[float, float, float]) -> None:
    """Move an object at once, at rest."""
    env.scene.free_joint_qpos(name)[:3] = env.scene.pose(place).position_m + offset_m


def succeeds(env: LiberoEnv) -> bool:
    reward, terminated, _, info = env.advance(NULL_ACTION)
    assert bool(reward) == terminated == info['success']
    return terminated


def check_protocol(env: LiberoEnv, task: int, words: str, step_limit: int) -> None:
    """An episode of a task starts, runs, repeats and ends as every other suite's."""
    observation, info = env.reset(seed=0, options={'task': task, 'init_state': 49})
    assert env.observation_space.contains(observation)
    assert words in info['instruction']
    assert min(observation[camera].std() for camera in env.cameras) > 10
    states = []
    for _ in range(2):
        env.start(seed=0, options={'init_state': 0})
        assert not env.check_success()
        for step in range(3):
            env.advance(np.full(7, 0.1 * step))
        states.append(env.scene.data.qpos.copy())
    assert np.array_equal(*states)
    env._steps = step_limit - 2
    assert env.advance(NULL_ACTION)[1:3] == (False, False)
    assert env.advance(NULL_ACTION)[1:3] == (False, True)
    env.start(seed=0, options={'init_state': 0})


def test_a_drawer_is_open_when_its_joint_is(goal_env: LiberoEnv):
    check_protocol(goal_env, 0, 'open the middle drawer', step_limit=300)
    set_joint(goal_env, 'wooden_cabinet_1_top_level', -0.15)
    assert not succeeds(goal_env)
    set_joint(goal_env, 'wooden_cabinet_1_middle_level', -0.15)
    assert succeeds(goal_env)


def test_a_stove_that_is_turned_on_lights_up_and_is_off_after_a_reset(goal_env: LiberoEnv):
    check_protocol(goal_env, 7, 'turn on the stove', step_limit=300)
    off = goal_env.render_camera('agentview')
    set_joint(goal_env, 'flat_stove_1_button', 2.0)
    assert succeeds(goal_env)
    lit = goal_env.render_camera('agentview').astype(int)
    assert np.abs(lit - off).max() > 30
    goal_env.start(seed=0, options={'init_state': 0})
    assert not goal_env.check_success()
    assert np.array_equal(goal_env.render_camera('agentview'), off)


def test_both_objects_must_be_in_the_basket(long_env: LiberoEnv):
    check_protocol(long_env, 0, 'both the alphabet soup and the tomato sauce', step_limit=520)
    basket = 'basket_1_contain_region'
    put(long_env, 'alphabet_soup_1', basket, (0, -0.04, 0))
    assert not succeeds(long_env)
    put(long_env, 'tomato_sauce_1', basket, (0, 0.04, 0))
    assert succeeds(long_env)


def test_the_stove_must_be_on_and_the_pot_must_stand_on_it(long_env: LiberoEnv):
    check_protocol(long_env, 2, 'turn on the stove and put the moka pot on it', step_limit=520)
    set_joint(long_env, 'flat_stove_1_button', 2.0)
    assert not succeeds(long_env)
    put(long_env, 'moka_pot_1', 'flat_stove_1_cook_region', (0, 0, 0.05))
    long_env.wait(5)
    assert succeeds(long_env)
    set_joint(long_env, 'flat_stove_1_button', 0.0)
    assert not succeeds(long_env)
