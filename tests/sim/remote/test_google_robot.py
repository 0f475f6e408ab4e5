"""The Google robot's conventions against a fake of ManiSkill2_real2sim's interface."""

import importlib
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest

from vla_cache_models.prismatic.embodiment import EMBODIMENTS
from vla_cache_ros.cli.environments import environment_factory, simulator_versions
from vla_cache_ros.core.errors import ConfigError, SimulatorError, UnknownNameError
from vla_cache_sim.google_robot import PYTHON_VARIABLE, make_env
from vla_cache_sim.remote.client import RemoteEnvironment
from vla_cache_sim.remote.google_robot import SUITES, TEXTURES, GoogleRobot, RefusedError
from vla_cache_sim.remote.process import python_worker
from vla_cache_sim.suites import suites_of

FAKE = Path(__file__).parent / 'fake_real2sim'


@pytest.fixture
def real2sim(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The fake simulator's module, whose MADE lists the arguments of every environment made."""
    monkeypatch.syspath_prepend(str(FAKE))
    before = dict(gymnasium.registry)
    yield importlib.import_module('mani_skill2_real2sim.envs')
    gymnasium.registry.clear()
    gymnasium.registry.update(before)
    for name in ('mani_skill2_real2sim', 'mani_skill2_real2sim.envs'):
        sys.modules.pop(name, None)


def begin(suite: str, task: int, init_state: int) -> tuple[GoogleRobot, dict[str, np.ndarray]]:
    env = GoogleRobot(suite, 0)
    observation, _ = env.reset(seed=0, options={'task': task, 'init_state': init_state})
    return env, observation


def test_the_suites_are_those_that_the_command_line_lists():
    listed = suites_of('google_robot')
    assert set(listed) == set(SUITES)
    for name, suite in SUITES.items():
        assert listed[name].tasks == len(suite.tasks)
        assert listed[name].step_limit == suite.step_limit
        assert {len(TEXTURES) * len(task.placements) for task in suite.tasks} == {
            listed[name].init_states
        }
        assert listed[name].control_frequency_hz == GoogleRobot.control_frequency_hz == 3


@pytest.mark.parametrize('suite', SUITES)
def test_every_initial_state_is_another_episode(suite: str):
    for task in SUITES[suite].tasks:
        assert max(Counter(map(repr, task.placements)).values()) == 1


@pytest.mark.parametrize(
    ('suite', 'init_state', 'robot_xy', 'robot_quaternion', 'objects', 'texture', 'overlay'),
    [
        (
            'simpler_google_coke_can',
            24,
            [0.35, 0.2],
            [0, 0, 0, 1],
            {'init_xy': pytest.approx([-0.12, 0.42])},
            '',
            'google_coke_can_real_eval_1.png',
        ),
        (
            'simpler_google_coke_can',
            26,
            [0.35, 0.2],
            [0, 0, 0, 1],
            {'init_xy': pytest.approx([-0.35, 0.09])},
            'recolor_tabletop_visual_matching_1',
            'google_coke_can_real_eval_1.png',
        ),
        (
            'simpler_google_move_near',
            239,
            [0.35, 0.21],
            # transforms3d: qmult(euler2quat(0, 0, -0.09), [0, 0, 0, 1])
            [0.04498481, 0, 0, 0.99898767],
            {'episode_id': 59},
            'recolor_cabinet_visual_matching_1',
            'google_move_near_real_eval_1.png',
        ),
        (
            'simpler_google_drawer',
            2,
            [0.889, -0.203],
            [0.0299955, 0, 0, 0.99955003],
            {'init_xy': pytest.approx([0, 0])},
            '',
            'open_drawer_a2.png',
        ),
    ],
)
def test_an_initial_state_is_a_published_episode(
    real2sim: Any,
    suite: str,
    init_state: int,
    robot_xy: list[float],
    robot_quaternion: list[float],
    objects: dict[str, Any],
    texture: str,
    overlay: str,
):
    env, _ = begin(suite, 0, init_state)
    domain = env._domain
    robot = domain.options['robot_init_options']
    assert robot['init_xy'] == pytest.approx(robot_xy)
    assert robot['init_rot_quat'] == pytest.approx(robot_quaternion, abs=1e-7)
    assert domain.options['obj_init_options'] == objects
    made = real2sim.MADE[-1]
    assert made['urdf_version'] == texture
    assert made['rgb_overlay_path'] == f'/assets/real_inpainting/{overlay}'
    assert (made['control_freq'], made['sim_freq']) == (3, 513)
    assert made['robot'] == 'google_robot_static'
    assert env.instruction == domain.get_language_instruction()


def test_the_tasks_of_the_can_are_its_orientations(real2sim: Any):
    env = GoogleRobot('simpler_google_coke_can', 0)
    for task, orientation in enumerate(('lr_switch', 'laid_vertically', 'upright')):
        env.reset(options={'task': task})
        assert real2sim.MADE[-1][orientation] is True


def test_the_simulator_is_built_anew_for_another_texture_alone(real2sim: Any):
    env = GoogleRobot('simpler_google_coke_can', 0)
    made = len(real2sim.MADE)
    for init_state in (0, 1, 24, 25, 26):
        env.reset(options={'init_state': init_state})
    assert len(real2sim.MADE) == made + 2


def test_an_observation_has_our_names_and_units(real2sim: Any):
    env, observation = begin('simpler_google_move_near', 0, 7)
    image = observation['agentview']
    assert image.shape == (512, 640, 3)
    assert image[0].all()
    assert not image[1:].any()
    # In the base's frame, however the base stands and is turned.
    assert observation['ee_position_m'] == pytest.approx([0.5, 0, 1], abs=1e-6)
    assert np.abs(observation['ee_quaternion_xyzw']) == pytest.approx([0, 0, 0, 1], abs=1e-6)
    assert observation['gripper_position_m'].tolist() == [0, 0]
    assert {name: space['dtype'] for name, space in env.spaces['observation'].items()} == {
        name: array.dtype.name for name, array in observation.items()
    }


def test_actions_reach_the_simulator_as_they_are_and_the_gripper_is_relative(real2sim: Any):
    env, _ = begin('simpler_google_coke_can', 0, 0)
    sent = np.array([0.01, -0.02, 0.03, 0.1, -0.2, 0.3, 0.4])
    env.advance(sent)
    assert np.array_equal(env._domain.actions[-1], sent)
    assert env.observe()['ee_position_m'] == pytest.approx([0.51, -0.02, 1.03])
    before = env.observe()['gripper_position_m']
    env.advance(np.zeros(7))
    assert np.array_equal(env.observe()['gripper_position_m'], before)


def test_a_change_of_the_gripper_is_repeated_by_the_embodiment_alone(real2sim: Any):
    embodiment = EMBODIMENTS['google_robot'].fresh()
    env, _ = begin('simpler_google_coke_can', 0, 0)
    chunk = np.zeros((14, 7))
    chunk[:, 6] = [1, 1, *[0] * 12]  # the data's open, open, closed for good
    for action in embodiment.to_actions(chunk):
        env.advance(action)
    assert [action[6] for action in env._domain.actions] == [0, 0, *[1] * 10, 0, 0]


def test_an_episode_takes_all_its_steps_and_its_end_decides(real2sim: Any):
    env, _ = begin('simpler_google_coke_can', 0, 0)
    close = np.array([0, 0, 0, 0, 0, 0, 1.0])
    for step in range(1, 80):
        _, success, truncated, info = env.advance(close)
        assert (success, truncated) == (False, False)
        assert info['success'] == (step >= 2)
    assert env.advance(close)[:3] == (1.0, True, True)
    env.reset(options={'init_state': 0})
    for _ in range(70):
        env.advance(close)
    for _ in range(10):
        last = env.advance(-close)
    assert last[:3] == (0.0, False, True)


@pytest.mark.parametrize(
    ('options', 'complaint'),
    [
        ({'init_state': 100}, '0..99'),
        ({'init_state': 'random'}, '0..99'),
        ({'task': 3}, '0..2'),
        ({'condition': 'shake'}, 'valid: task, init_state'),
    ],
)
def test_what_there_is_not_is_refused(options: dict[str, Any], complaint: str):
    env = GoogleRobot('simpler_google_coke_can', 0)
    with pytest.raises(RefusedError, match=complaint):
        env.reset(options=options)


def test_an_episode_runs_through_a_process_of_its_own():
    env = RemoteEnvironment(
        python_worker(sys.executable, 'google_robot.py:make'),
        {'suite': 'simpler_google_drawer', 'task': 4},
        environ={'PYTHONPATH': str(FAKE)},
    )
    observation, info = env.reset(seed=0, options={'task': 4, 'init_state': 35})
    assert env.observation_space.contains(observation)
    assert info['init_state'] == 35
    assert env.control_frequency_hz == 3
    with pytest.raises(ConfigError, match='0..35'):
        env.reset(options={'init_state': 36})
    env.close()


def test_without_a_python_of_its_own_the_command_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv(PYTHON_VARIABLE, raising=False)
    for ask in (
        lambda: make_env('simpler_google_drawer', 0, 256),
        lambda: environment_factory()('simpler_google_drawer', 0, 256),
        lambda: simulator_versions(['simpler_google_drawer']),
    ):
        with pytest.raises(SimulatorError, match=f'(?s)ManiSkill2_real2sim.*{PYTHON_VARIABLE}='):
            ask()
    monkeypatch.setenv(PYTHON_VARIABLE, sys.executable)
    assert simulator_versions(['simpler_google_drawer'])['mani-skill2-real2sim'] == 'not installed'
    env = make_env('simpler_google_drawer', 0, 256)
    with pytest.raises(SimulatorError, match="No module named 'mani_skill2_real2sim'"):
        env.reset(options={'init_state': 0})
    env.close()
    with pytest.raises(UnknownNameError):
        make_env('libero_object', 0, 256)
