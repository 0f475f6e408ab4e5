from collections.abc import Iterator

import pytest

from vla_cache_sim.libero import LiberoEnv, make_env


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
