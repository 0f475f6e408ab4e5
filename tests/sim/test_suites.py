import gymnasium
import pytest

import vla_cache_sim
from vla_cache_ros.core.errors import UnknownNameError
from vla_cache_sim.suites import SUITES, find_suite


def test_every_suite_is_registered_with_gymnasium():
    for suite in SUITES.values():
        spec = gymnasium.spec(suite.gym_id)
        assert spec.kwargs == {'suite': suite.name}
        assert suite.gym_id.startswith('vla_cache_sim/')


def test_step_limits_are_the_published_ones():
    limits = {name: suite.step_limit for name, suite in vla_cache_sim.SUITES.items()}
    assert limits == {
        'libero_spatial': 220,
        'libero_object': 280,
        'libero_goal': 300,
        'libero_10': 520,
    }


def test_an_unknown_suite_is_refused_with_the_valid_names():
    with pytest.raises(UnknownNameError, match=r"'libero_objects'.*libero_object, libero_goal"):
        find_suite('libero_objects')
