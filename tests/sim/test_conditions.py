from dataclasses import replace

import pytest

from vla_cache_ros.core.errors import ConfigError, UnknownNameError
from vla_cache_sim.conditions import (
    CONDITIONS,
    IMAGE_CONDITIONS,
    CameraShake,
    Condition,
    Dropped,
    Lighting,
    Noise,
    episode_key,
    find_condition,
)


def test_the_table_names_every_condition_by_its_key_and_describes_it():
    for name, condition in CONDITIONS.items():
        assert condition.name == name
        assert condition.description
    assert find_condition('none') == Condition('none', 'nothing disturbs')
    delays = [CONDITIONS[f'delay_{ms}ms'].delay_s for ms in (10, 50, 100, 200)]
    assert delays == [0.01, 0.05, 0.1, 0.2]


def test_image_conditions_are_those_that_leave_the_scene_alone():
    assert IMAGE_CONDITIONS == ('none', 'noise', 'noise_strong', 'jpeg', 'dropped')


@pytest.mark.parametrize('name', ['fog', 3, None])
def test_an_unknown_condition_names_the_valid_ones(name):
    with pytest.raises(UnknownNameError, match='valid: none, camera_shake'):
        find_condition(name)


def test_a_condition_that_a_simulator_cannot_have_is_refused_by_name():
    with pytest.raises(UnknownNameError, match="'lighting'; valid: none, noise"):
        find_condition('lighting', IMAGE_CONDITIONS)


@pytest.mark.parametrize(
    'part',
    [
        {'jpeg_quality': 0},
        {'delay_s': -0.1},
        {'delay_s': 2.0},
        {'dropped': Dropped(1.0, 4.0)},
        {'dropped': Dropped(0.2, 0.5)},
        {'noise': Noise(-1.0, 0.0)},
        {'shake': CameraShake(0.002, float('nan'), 0.2)},
        {'lighting': Lighting((0.5, float('inf')), 0.1, 2.0, 0.1, 6.0)},
    ],
)
def test_a_value_out_of_range_is_refused(part):
    with pytest.raises(ConfigError, match=r'valid|finite'):
        replace(CONDITIONS['none'], **part)


def test_every_episode_has_a_key_of_its_own():
    episodes = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 0, 'random')]
    keys = [episode_key(*episode) for episode in episodes]
    assert len(set(keys)) == len(episodes)
    assert keys == [episode_key(*episode) for episode in episodes]
