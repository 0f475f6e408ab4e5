from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from scipy.spatial.transform import Rotation

from vla_cache_ros.core.errors import ConfigError, UnknownNameError
from vla_cache_ros.evaluation.rollout import to_observation
from vla_cache_sim.maniskill import ManiSkillEnv, make_env

OPEN, CLOSED = -1.0, 1.0


def act(env: ManiSkillEnv, steps: int, *motion: float, gripper: float = OPEN) -> None:
    action = np.zeros(7)
    action[: len(motion)] = motion
    action[6] = gripper
    for _ in range(steps):
        env.advance(action)


def hand(env: ManiSkillEnv) -> tuple[np.ndarray, Rotation]:
    state = env.robot.proprioception()
    return state['ee_position_m'], Rotation.from_quat(state['ee_quaternion_xyzw'])


@pytest.mark.parametrize(
    ('arguments', 'error', 'message'),
    [
        ({'suite': 'libero_goal'}, UnknownNameError, 'valid: simpler_bridge, maniskill'),
        ({'task': 4}, UnknownNameError, 'valid: 0, 1, 2, 3'),
        ({'cameras': ('wrist',)}, UnknownNameError, "'wrist'.*valid: agentview"),
        ({'cameras': ()}, ConfigError, 'at least one'),
        ({'cameras': ('agentview', 'agentview')}, ConfigError, 'once'),
        ({'image_size_px': 8}, ConfigError, '16..2048'),
        ({'render_mode': 'human'}, UnknownNameError, 'rgb_array'),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_built(
    arguments: dict[str, Any], error: type[Exception], message: str
):
    with pytest.raises(error, match=message):
        ManiSkillEnv(**arguments)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'episode_id': 3}, "'episode_id'.*valid: task, init_state"),
        ({'task': 7}, 'valid: 0, 1, 2, 3'),
        ({'init_state': 24}, r'0\.\.23'),
        ({'init_state': True}, r'0\.\.23'),
        ({'init_state': 'random'}, r'0\.\.23'),
    ],
)
def test_bad_options_are_refused_before_anything_is_built(options: dict[str, Any], message: str):
    with pytest.raises(UnknownNameError, match=message):
        ManiSkillEnv().reset(options=options)


def test_there_is_no_scene_before_the_first_reset():
    env = ManiSkillEnv('maniskill')
    with pytest.raises(ConfigError, match='reset'):
        env.observe()
    with pytest.raises(ConfigError, match='reset'):
        env.advance(np.zeros(7))


def test_bridges_images_have_the_published_size_whatever_is_asked_for():
    assert make_env('simpler_bridge', image_size_px=256).image_shape == (480, 640)
    assert make_env('maniskill', image_size_px=256).image_shape == (256, 256)


@pytest.mark.simpler
@pytest.mark.slow
class TestCubes:
    @pytest.mark.filterwarnings('error', 'ignore::DeprecationWarning')
    def test_passes_the_environment_checker_of_gymnasium(self):
        env = gymnasium.make('vla_cache_sim/ManiSkill-v0', image_size_px=32)
        check_env(env.unwrapped, skip_render_check=True)
        env.close()

    def test_runs_in_a_vector_environment_beside_others(self):
        envs = gymnasium.make_vec(
            'vla_cache_sim/ManiSkill-v0', num_envs=2, vectorization_mode='sync', image_size_px=32
        )
        observation, info = envs.reset(seed=[1, 2], options={'init_state': 3})
        first, second = observation['agentview']
        assert info['instruction'][0].startswith('pick up the red cube')
        assert np.array_equal(first, second)
        assert first.std() > 10
        _, reward, terminated, truncated, _ = envs.step(np.zeros((2, 7), dtype=np.float32))
        assert not reward.any()
        assert not terminated.any()
        assert not truncated.any()
        envs.close()

    def test_an_observation_lies_in_the_declared_space_and_suits_a_policy(self, cube_env):
        observation, info = cube_env.reset(options={'init_state': 0})
        assert cube_env.observation_space.contains(observation)
        assert (info['success'], info['init_state']) == (False, 0)
        assert observation['gripper_position_m'] == pytest.approx([0.04, -0.04], abs=2e-3)
        to_observation(observation, ('agentview', 'wrist'), info['instruction'], 0)

    def test_the_goal_can_be_seen(self, cube_env):
        """ManiSkill hides it: no policy could solve the task from images."""
        image = cube_env.reset(options={'init_state': 1})[0]['agentview'].astype(int)
        green = (image[..., 1] > 100) & (image[..., 0] < 60) & (image[..., 2] < 60)
        assert green.sum() > 3

    def test_an_episode_depends_on_its_start_and_actions_alone(self, cube_env):
        def episode() -> np.ndarray:
            cube_env.start(options={'init_state': 7})
            act(cube_env, 5, 0.3, -0.2, -0.5)
            return cube_env.domain.get_state().numpy()

        first = episode()
        cube_env.start(options={'init_state': 3})
        act(cube_env, 6, 1, 1, -1, 0, 0, 1, gripper=CLOSED)
        assert np.array_equal(episode(), first)

    def test_initial_states_differ(self, cube_env):
        cubes = []
        for init_state in range(3):
            cube_env.start(options={'init_state': init_state})
            cubes.append(cube_env.domain.cube.pose.p[0].tolist())
        assert len({tuple(cube) for cube in cubes}) == 3

    def test_one_unit_is_a_goal_five_centimetres_away(self, cube_env):
        cube_env.start(options={'init_state': 0})
        start, _ = hand(cube_env)
        goal = start + (0.0, 0.05, 0.0)
        cube_env.advance(np.array([0, 1, 0, 0, 0, 0, OPEN]))
        once, _ = hand(cube_env)
        assert 0.005 < (once - start)[1] < 0.05
        # Steered at that goal from the present place it arrives, and stays.
        for _ in range(15):
            act(cube_env, 1, *(goal - hand(cube_env)[0]) / 0.05)
        assert hand(cube_env)[0] == pytest.approx(goal, abs=2e-3)

    @pytest.mark.parametrize('axis', [0, 1, 2])
    def test_a_positive_rotation_turns_right_handed_about_the_bases_axis(self, cube_env, axis):
        cube_env.start(options={'init_state': 0})
        position, start = hand(cube_env)
        turn = np.zeros(3)
        turn[axis] = 0.2
        act(cube_env, 6, 0, 0, 0, *turn)
        turned = (hand(cube_env)[1] * start.inv()).as_rotvec()
        assert turned[axis] > 0.15
        assert np.abs(np.delete(turned, axis)).max() < 0.05
        assert hand(cube_env)[0] == pytest.approx(position, abs=0.01)

    def test_minus_one_opens_and_one_closes(self, cube_env):
        cube_env.start(options={'init_state': 0})
        act(cube_env, 10, gripper=CLOSED)
        assert cube_env.robot.fingers_m().max() < 0.005
        act(cube_env, 10, gripper=OPEN)
        assert cube_env.robot.fingers_m().min() > 0.035

    def test_advance_and_observe_together_are_step(self, cube_env):
        action = np.array([0.5, -0.2, -0.4, 0, 0, 0.1, 1])
        cube_env.reset(options={'init_state': 2})
        stepped, *rest = cube_env.step(action)
        cube_env.start(options={'init_state': 2})
        assert list(cube_env.advance(action)) == rest
        observed = cube_env.observe()
        assert all(np.array_equal(stepped[name], observed[name]) for name in stepped)

    def test_a_condition_disturbs_the_images_of_its_own_episode_alone(self, cube_env):
        def first(**options):
            observation, info = cube_env.reset(seed=0, options={'init_state': 2, **options})
            assert info['condition'] == options.get('condition', 'none')
            return observation['agentview'].astype(int)

        plain, noisy, again = first(), first(condition='noise'), first()
        assert 0.5 < np.abs(noisy - plain).mean() < 5
        assert np.array_equal(plain, again)
        with pytest.raises(UnknownNameError, match='camera_shake.*valid: none, noise'):
            first(condition='camera_shake')

    def test_an_episode_is_truncated_at_the_limit(self, cube_env):
        cube_env.start(options={'init_state': 0})
        cube_env._steps = cube_env.step_limit - 2
        assert cube_env.advance(np.zeros(7))[2] is False
        assert cube_env.advance(np.zeros(7))[2] is True

    @pytest.mark.parametrize('action', [np.zeros(6), np.full(7, np.nan)])
    def test_a_bad_action_is_refused(self, cube_env, action):
        cube_env.start(options={'init_state': 0})
        with pytest.raises(ConfigError, match='7 finite numbers'):
            cube_env.advance(action)


@pytest.mark.simpler_assets
@pytest.mark.slow
class TestBridge:
    def test_an_observation_is_as_published(self, carrot_env):
        observation, info = carrot_env.reset(options={'init_state': 0})
        assert carrot_env.observation_space.contains(observation)
        assert observation['agentview'].shape == (480, 640, 3)
        assert observation['agentview'].std() > 20
        assert info['instruction'] == 'put carrot on plate'
        assert (carrot_env.control_frequency_hz, carrot_env.step_limit) == (5.0, 60)
        # Some 30 cm in front of the base, fingers down.
        assert observation['ee_position_m'] == pytest.approx([0.292, -0.006, 0.135], abs=2e-3)
        assert observation['gripper_position_m'] == pytest.approx([0.037, 0.037], abs=1e-3)

    @pytest.mark.filterwarnings(
        'error', 'ignore::DeprecationWarning', 'ignore:.*symmetric and normalized'
    )
    def test_passes_the_environment_checker_of_gymnasium(self, carrot_env):
        check_env(carrot_env, skip_render_check=True)

    def test_the_24_episodes_are_the_published_grid(self, carrot_env):
        episodes = set()
        for episode in range(24):
            carrot_env.start(options={'init_state': episode})
            domain = carrot_env.domain
            carrot = domain.objs[domain.source_obj_name].pose
            plate = domain.objs[domain.target_obj_name].pose
            places = np.concatenate([carrot.p[0, :2], plate.p[0, :2]])
            assert np.abs(places - (-0.16, 0, -0.16, 0)) == pytest.approx(0.075, abs=0.01)
            w, z = carrot.raw_pose[0, 3], carrot.raw_pose[0, 6]
            quarter_turns = round(float(2 * np.arctan2(z, w) / (np.pi / 2))) % 4
            episodes.add((*np.sign(places - (-0.16, 0, -0.16, 0)).tolist(), quarter_turns))
        assert len(episodes) == 24

    def test_an_episode_depends_on_its_start_and_actions_alone(self, carrot_env):
        def episode() -> np.ndarray:
            carrot_env.start(options={'init_state': 5})
            act(carrot_env, 4, 0.02, -0.01, -0.01)
            return carrot_env.domain.get_state().numpy()

        first = episode()
        carrot_env.start(options={'init_state': 1})
        act(carrot_env, 6, -0.05, 0.05, -0.05, 0, 0, 0.1, gripper=CLOSED)
        assert np.array_equal(episode(), first)

    @pytest.mark.parametrize('axis', [0, 1, 2])
    def test_metres_are_metres_along_the_bases_axes(self, carrot_env, axis):
        carrot_env.start(options={'init_state': 0})
        start, _ = hand(carrot_env)
        motion = np.zeros(3)
        motion[axis] = 0.02
        act(carrot_env, 3, *motion)
        act(carrot_env, 5)
        assert hand(carrot_env)[0] - start == pytest.approx(3 * motion, abs=2e-3)

    @pytest.mark.parametrize(
        'turn', [(0.1, 0, 0), (0, 0.1, 0), (0, 0, 0.1), (0.1, -0.1, 0.2)], ids=str
    )
    def test_radians_are_a_rotation_vector_about_the_bases_axes(self, carrot_env, turn):
        carrot_env.start(options={'init_state': 0})
        _, start = hand(carrot_env)
        act(carrot_env, 2, 0, 0, 0, *turn)
        act(carrot_env, 5)
        expected = Rotation.from_rotvec(turn) * Rotation.from_rotvec(turn) * start
        assert (hand(carrot_env)[1] * expected.inv()).magnitude() < 0.02

    def test_minus_one_opens_and_one_closes(self, carrot_env):
        carrot_env.start(options={'init_state': 0})
        act(carrot_env, 5, gripper=CLOSED)
        assert carrot_env.robot.fingers_m() == pytest.approx([0.015, 0.015], abs=1e-3)
        act(carrot_env, 5, gripper=OPEN)
        assert carrot_env.robot.fingers_m() == pytest.approx([0.037, 0.037], abs=1e-3)

    def test_only_the_last_state_decides(self, carrot_env, monkeypatch):
        carrot_env.start(options={'init_state': 0})
        monkeypatch.setattr(carrot_env.domain, 'get_info', lambda: {'success': True})
        reward, terminated, truncated, info = carrot_env.advance(np.zeros(7))
        assert (reward, terminated, truncated, info['success']) == (0.0, False, False, True)
        carrot_env._steps = carrot_env.step_limit - 1
        assert carrot_env.advance(np.zeros(7))[:3] == (1.0, True, True)
        monkeypatch.setattr(carrot_env.domain, 'get_info', lambda: {'success': False})
        carrot_env._steps = carrot_env.step_limit - 1
        assert carrot_env.advance(np.zeros(7))[:3] == (0.0, False, True)
