"""What is refused before a cluster is asked for anything."""

import sys

import pytest

from tests.cli.cli_fakes import FakeEnvs, FakePolicies
from vla_cache_ros.core.errors import ConfigError
from vla_cache_ros.evaluation.episode import EpisodeSpec
from vla_cache_ros.evaluation.ray_crew import RayCrew
from vla_cache_ros.evaluation.runner import Job

JOB = Job(FakePolicies(), FakeEnvs())


@pytest.mark.parametrize(
    ('address', 'message'),
    [
        ('127.0.0.1:1', 'no Ray cluster answers at 127.0.0.1:1'),
        ('ray://127.0.0.1:1', 'no Ray cluster answers'),
        ('here', "'here' is no address; valid: local"),
        ('host:', 'is no address'),
    ],
)
def test_an_address_at_which_nobody_listens_is_refused_at_once(address: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        list(RayCrew(address).run(JOB, [EpisodeSpec('libero_object', 0, 0)]))


def test_nothing_to_run_starts_nothing() -> None:
    assert list(RayCrew('127.0.0.1:1').run(JOB, [])) == []


def test_without_ray_the_command_that_installs_it_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, 'ray', None)
    with pytest.raises(ConfigError, match='make setup-ray'):
        RayCrew('local')


@pytest.mark.parametrize(('workers', 'timeout_s'), [(-1, 1.0), (1, 0.0)])
def test_settings_out_of_range_are_refused(workers: int, timeout_s: float) -> None:
    with pytest.raises(ConfigError, match='valid'):
        RayCrew('local', workers, timeout_s)
