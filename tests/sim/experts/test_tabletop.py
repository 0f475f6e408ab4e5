from itertools import groupby

import numpy as np
import pytest

from vla_cache_ros.core.errors import ConfigError
from vla_cache_sim.experts.tabletop import TabletopExpert
from vla_cache_sim.maniskill import ManiSkillEnv

pytestmark = pytest.mark.slow


def run(env: ManiSkillEnv, init_state: int, drop_at: str = '') -> tuple[bool, list[str]]:
    """An episode: its success and the phases it went through; `drop_at` opens the hand once."""
    env.start(options={'init_state': init_state})
    expert, phases = TabletopExpert(env), []
    while True:
        action = expert.act()
        assert env.action_space.contains(action)
        phases.append(expert.phase)
        if expert.phase == drop_at:
            drop_at, action = '', np.array([0, 0, 0, 0, 0, 0, -1.0])
            for _ in range(6):
                env.advance(action)
        _, success, truncated, _ = env.advance(action)
        if success or truncated:
            return success, [phase for phase, _ in groupby(phases)]


@pytest.mark.simpler
@pytest.mark.parametrize('task', [0, 1])
def test_brings_the_cube_where_it_belongs(cube_env: ManiSkillEnv, task: int):
    cube_env.start(options={'task': task, 'init_state': 0})
    success, phases = run(cube_env, 0)
    cube_env.start(options={'task': 0, 'init_state': 0})
    assert success
    assert phases[:5] == ['approach', 'descend', 'close', 'lift', 'carry']


@pytest.mark.simpler
def test_picks_a_dropped_cube_up_again(cube_env: ManiSkillEnv):
    success, phases = run(cube_env, 2, drop_at='carry')
    assert success
    assert phases.count('close') == 2


@pytest.mark.simpler_assets
def test_brings_the_carrot_to_the_plate_and_leaves_it_there(carrot_env: ManiSkillEnv):
    success, phases = run(carrot_env, 4)
    assert success
    assert phases[-1] == 'retreat'


def test_there_is_no_expert_without_a_scene():
    with pytest.raises(ConfigError, match='reset'):
        TabletopExpert(ManiSkillEnv('maniskill'))
