from typing import Any

import gymnasium
import mujoco
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from vla_cache_ros.core.errors import ConfigError, UnknownNameError
from vla_cache_sim.libero import NULL_ACTION, LiberoEnv, make_env

pytestmark = pytest.mark.sim


def positions(env: LiberoEnv) -> np.ndarray:
    return env.scene.data.qpos.copy()


@pytest.mark.filterwarnings('error')
def test_passes_the_environment_checker_of_gymnasium():
    env = gymnasium.make('vla_cache_sim/LiberoObject-v0', task=1, image_size_px=32)
    check_env(env.unwrapped, skip_render_check=True)
    env.close()


def test_runs_in_a_vector_environment_beside_others():
    envs = gymnasium.make_vec(
        'vla_cache_sim/LiberoObject-v0',
        num_envs=2,
        vectorization_mode='sync',
        task=0,
        image_size_px=32,
    )
    observation, info = envs.reset(seed=[1, 2], options={'init_state': 3})
    first, second = observation['agentview']
    assert info['instruction'][0] == 'pick up the alphabet soup and place it in the basket'
    # The same initial state in two OpenGL contexts: the same picture, and not a black one.
    assert np.array_equal(first, second)
    assert first.std() > 10
    _, reward, terminated, truncated, _ = envs.step(np.zeros((2, 7), dtype=np.float32))
    assert not reward.any()
    assert not terminated.any()
    assert not truncated.any()
    envs.close()


def test_an_observation_lies_in_the_declared_space(object_env: LiberoEnv):
    observation, info = object_env.reset(seed=0, options={'task': 0, 'init_state': 0})
    assert object_env.observation_space.contains(observation)
    assert info['success'] is False
    assert info['task'] == 0
    assert info['init_state'] == 0
    assert np.linalg.norm(observation['ee_quaternion_xyzw']) == pytest.approx(1, abs=1e-3)
    assert observation['gripper_position_m'] == pytest.approx([0.04, -0.04], abs=2e-3)


def test_the_split_control_step_is_robosuites_own_bit_for_bit(object_env: LiberoEnv):
    actions = np.random.default_rng(0).uniform(-1, 1, (12, 7)) - [0, 0, 0.5, 0, 0, 0, 0]
    object_env.start(seed=0, options={'task': 0, 'init_state': 5})
    for action in actions:
        object_env.advance(action)
    split = positions(object_env)
    object_env.start(seed=0, options={'task': 0, 'init_state': 5})
    domain = object_env._domain
    domain.robots[0].controller.sim = domain.sim
    for action in np.clip(actions, -1, 1):
        domain.step(action)
    assert np.array_equal(positions(object_env), split)


def test_an_episode_depends_on_its_start_and_actions_alone(object_env: LiberoEnv):
    def episode() -> np.ndarray:
        object_env.start(seed=0, options={'task': 0, 'init_state': 7})
        for step in range(5):
            object_env.advance(np.full(7, 0.1 * step))
        return positions(object_env)

    first = episode()
    object_env.start(seed=9, options={'init_state': 'random'})
    for _ in range(4):
        object_env.advance(np.ones(7))  # leaves the gripper half closed
    assert np.array_equal(episode(), first)


def test_numpys_global_generator_is_left_alone(object_env: LiberoEnv):
    np.random.seed(3)
    expected = np.random.RandomState(3).rand()
    object_env.start(seed=0, options={'task': 0, 'init_state': 0})
    assert np.random.rand() == expected


def test_advance_and_observe_together_are_step(object_env: LiberoEnv):
    action = np.array([0.5, -0.2, -0.4, 0, 0, 0.1, 1])
    object_env.reset(seed=0, options={'task': 0, 'init_state': 2})
    stepped, *rest = object_env.step(action)
    object_env.start(seed=0, options={'task': 0, 'init_state': 2})
    assert list(object_env.advance(action)) == rest
    observed = object_env.observe()
    assert all(np.array_equal(stepped[name], observed[name]) for name in stepped)


def test_one_unit_of_action_is_a_goal_five_centimetres_away(object_env: LiberoEnv):
    object_env.start(seed=0, options={'task': 0, 'init_state': 0})
    start = object_env.scene.gripper_pose().position_m
    for _ in range(10):
        object_env.advance(np.array([0, 1, 0, 0, 0, 0, -1.0]))
    moved = object_env.scene.gripper_pose().position_m - start
    assert 0.05 < moved[1] < 0.25
    assert abs(moved[0]) < 0.02
    assert abs(moved[2]) < 0.02


def test_an_episode_is_truncated_at_the_limit(object_env: LiberoEnv):
    object_env.start(seed=0, options={'task': 0, 'init_state': 0})
    object_env._steps = object_env.suite.step_limit - 2
    assert object_env.advance(NULL_ACTION)[2] is False
    assert object_env.advance(NULL_ACTION)[2] is True


def test_success_ends_the_episode_with_reward_one(object_env: LiberoEnv):
    object_env.start(seed=0, options={'task': 0, 'init_state': 0})
    scene = object_env.scene
    scene.free_joint_qpos(scene.target)[:3] = scene.goal_position_m()
    reward, terminated, _, info = object_env.advance(NULL_ACTION)
    assert (reward, terminated, info['success']) == (1.0, True, True)


def test_a_new_task_changes_scene_and_instruction():
    env = make_env('libero_object', 0, image_size_px=32)
    env.start(seed=0, options={'init_state': 0})
    _, info = env.reset(seed=0, options={'task': 6, 'init_state': 1})
    assert 'butter' in info['instruction']
    assert env.scene.target == 'butter_1'
    env.close()


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ({'suite': 'libero_subject'}, 'libero_subject.*libero_spatial'),
        ({'task': 10}, 'task of libero_object 10.*valid: 0'),
        ({'cameras': ('agentview', 'rear')}, "camera 'rear'; valid: agentview, wrist"),
        ({'cameras': ()}, 'at least one'),
        ({'cameras': ('wrist', 'wrist')}, 'once'),
        ({'image_size_px': 4}, r'16\.\.2048, not 4'),
        ({'render_mode': 'human'}, "render mode 'human'; valid: rgb_array"),
    ],
)
def test_bad_arguments_are_refused_by_name(arguments: dict[str, Any], message: str):
    with pytest.raises(ConfigError, match=message):
        LiberoEnv(**arguments)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'init_state': 50}, r"initial state 50; valid: 0\.\.49, 'random'"),
        ({'init_state': 'first'}, "'random'"),
        ({'init_state': True}, 'initial state True'),
        ({'task': 11}, 'task of libero_object 11'),
        ({'init_sate': 1}, "reset option 'init_sate'; valid: task, init_state, spread"),
        ({'init_state': 'random', 'spread': -1}, r'0\.\.2, not -1'),
    ],
)
def test_bad_reset_options_are_refused_by_name(
    object_env: LiberoEnv, options: dict[str, Any], message: str
):
    object_env.start(seed=0, options={'task': 0, 'init_state': 0})
    with pytest.raises(ConfigError, match=message):
        object_env.reset(seed=0, options=options)
    object_env.advance(NULL_ACTION)  # still usable


@pytest.mark.parametrize('action', [np.zeros(6), np.full(7, np.nan), np.full(7, np.inf)])
def test_an_action_that_is_no_action_is_refused(object_env: LiberoEnv, action: np.ndarray):
    object_env.start(seed=0, options={'task': 0, 'init_state': 0})
    before = positions(object_env)
    with pytest.raises(ConfigError, match='7 finite numbers'):
        object_env.advance(action)
    assert np.array_equal(positions(object_env), before)


def test_a_step_before_the_first_reset_is_refused():
    env = make_env('libero_object', 0)
    with pytest.raises(ConfigError, match=r'call reset\(\) first'):
        env.advance(NULL_ACTION)
    with pytest.raises(ConfigError, match=r'call reset\(\) first'):
        env.observe()


def test_an_unknown_camera_cannot_be_rendered(object_env: LiberoEnv):
    object_env.start(seed=0, options={'task': 0, 'init_state': 0})
    with pytest.raises(UnknownNameError, match='valid: agentview, wrist, front'):
        object_env.render_camera('rear')


def test_the_simulator_is_at_rest_after_the_waiting_steps(object_env: LiberoEnv):
    object_env.start(seed=0, options={'task': 0, 'init_state': 11})
    mujoco.mj_forward(object_env.scene.model, object_env.scene.data)
    assert np.abs(object_env.scene.data.qvel).max() < 0.1
