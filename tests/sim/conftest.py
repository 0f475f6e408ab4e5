from collections.abc import Iterator

import pytest

from vla_cache_sim.libero import LiberoEnv, make_env
from vla_cache_sim.maniskill import ManiSkillEnv


@pytest.fixture(scope='session')
def object_env() -> Iterator[LiberoEnv]:
    """One simulator for all tests: building it takes seconds, resetting it a tenth of one."""
    env = make_env('libero_object', 0, image_size_px=32)
    yield env
    env.close()


@pytest.fixture(scope='session')
def spatial_env() -> Iterator[LiberoEnv]:
    """The task with a bowl on a box: something to be carried that stands on something."""
    env = make_env('libero_spatial', 3, image_size_px=32)
    yield env
    env.close()


@pytest.fixture(scope='session')
def cube_env() -> Iterator[ManiSkillEnv]:
    """ManiSkill's cubes."""
    env = ManiSkillEnv('maniskill', 0, image_size_px=64)
    yield env
    env.close()


@pytest.fixture(scope='session')
def carrot_env() -> Iterator[ManiSkillEnv]:
    """SIMPLER's carrot and plate."""
    env = ManiSkillEnv('simpler_bridge', 0)
    yield env
    env.close()
