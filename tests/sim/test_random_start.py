import numpy as np
import pytest

from vla_cache_sim import random_start
from vla_cache_sim.libero import LiberoEnv
from vla_cache_sim.random_start import ARM_HIGH_M, ARM_LOW_M

pytestmark = pytest.mark.sim

SEEDS = range(6)


def start(env: LiberoEnv, seed: int) -> np.ndarray:
    env.start(seed=seed, options={'init_state': 'random'})
    return env.scene.data.qpos.copy()


@pytest.mark.parametrize('fixture', ['object_env', 'spatial_env'])
def test_starts_are_seeded_valid_and_none_of_the_evaluation_states(
    request: pytest.FixtureRequest, fixture: str
):
    env: LiberoEnv = request.getfixturevalue(fixture)
    starts = [start(env, seed) for seed in SEEDS]
    assert np.array_equal(start(env, SEEDS[0]), starts[0])
    official = env._init_states[:, 1 : 1 + len(starts[0])]
    for qpos in starts:
        assert np.abs(official - qpos).max(axis=1).min() > 0.01
    for seed in SEEDS:
        start(env, seed)
        assert not env.check_success()
        assert np.abs(env.scene.data.qvel).max() < 0.2
        groups = random_start._groups(env.scene)
        assert not random_start._collides(env.scene, groups)


def test_hand_and_objects_vary_by_centimetres(object_env: LiberoEnv):
    object_env.start(seed=0, options={'task': 0, 'init_state': 0})
    hands, targets, goals = [], [], []
    for seed in SEEDS:
        start(object_env, seed)
        hands.append(object_env.scene.gripper_pose().position_m)
        targets.append(object_env.scene.target_position_m())
        goals.append(object_env.scene.goal_position_m())
    assert np.std(hands, axis=0).min() > 0.015
    assert np.ptp(hands, axis=0).max() < (ARM_HIGH_M - ARM_LOW_M).max() + 0.05
    assert np.std(targets, axis=0)[:2].min() > 0.01
    assert np.std(goals, axis=0)[:2].min() > 0.01


def test_what_stands_on_something_moves_with_it(spatial_env: LiberoEnv):
    for seed in (0, 1):
        start(spatial_env, seed)
        bowl = spatial_env.scene.target_position_m()
        box = spatial_env.scene.pose('cookies_1').position_m
        assert np.hypot(*(bowl - box)[:2]) < 0.03
        assert bowl[2] > box[2]


def test_no_spread_is_liberos_own_reset(object_env: LiberoEnv):
    object_env.start(seed=4, options={'task': 0, 'init_state': 'random', 'spread': 0})
    low, high = np.array([-0.15, -0.27]), np.array([-0.09, -0.21])
    target = object_env.scene.target_position_m()[:2]
    assert (low < target).all()
    assert (target < high).all()
