import gymnasium
import pytest

import vla_cache_sim  # noqa: F401  # registers the ids
from vla_cache_ros.core.errors import UnknownNameError
from vla_cache_sim.suites import SUITES, find_suite, suites_of


def test_every_suite_is_registered_with_gymnasium():
    for suite in SUITES.values():
        spec = gymnasium.spec(suite.gym_id)
        assert spec.kwargs == {'suite': suite.name}
        assert suite.gym_id.startswith('vla_cache_sim/')


def test_step_limits_are_the_published_ones():
    limits = {name: suite.step_limit for name, suite in suites_of('libero').items()}
    assert limits == {
        'libero_spatial': 220,
        'libero_object': 280,
        'libero_goal': 300,
        'libero_10': 520,
    }


def test_an_unknown_suite_is_refused_with_the_valid_names():
    with pytest.raises(UnknownNameError, match=r"'libero_objects'.*libero_object, libero_goal"):
        find_suite('libero_objects')


def test_a_suite_of_another_simulator_is_refused_with_those_of_this_one():
    with pytest.raises(UnknownNameError, match=r"'libero_10'.*simpler_bridge, maniskill"):
        find_suite('libero_10', 'maniskill')


def test_every_task_of_a_suite_with_instructions_has_one():
    for suite in SUITES.values():
        assert len(set(suite.instructions)) in (0, suite.tasks)
