import multiprocessing
import os
import signal

import pytest
from cli_fakes import FakeEnvs, FakePolicies

from vla_cache_ros.core.errors import ConfigError, EvaluationError
from vla_cache_ros.evaluation.crew import InlineCrew, LocalCrew
from vla_cache_ros.evaluation.episode import EpisodeSpec
from vla_cache_ros.evaluation.runner import Job

SPECS = [EpisodeSpec('libero_object', 0, i, arm) for i in range(3) for arm in ('off', 'safe')]


def job(env_fault: str = '', policy_fault: str = '', step_s: float = 0.0) -> Job:
    return Job(FakePolicies(policy_fault), FakeEnvs(env_fault, step_s=step_s))


@pytest.mark.parametrize('crew', [InlineCrew(), LocalCrew(2)])
def test_every_spec_gives_one_row(crew):
    rows = {row.spec: row for row in crew.run(job(), SPECS)}
    assert set(rows) == set(SPECS)
    assert [rows[spec].success for spec in SPECS] == [spec.init_state != 0 for spec in SPECS]
    assert rows[SPECS[1]].summary.divergence_mean == 0.0


@pytest.mark.parametrize(
    ('fault', 'note'),
    [
        ('dies', 'the worker died in reset with exit code 7'),
        ('hangs', 'reset did not return within 0.5 s; the worker was killed'),
    ],
)
def test_a_lost_worker_takes_its_episode_alone_and_is_replaced(fault, note):
    crew = LocalCrew(1, step_timeout_s=0.5)
    rows = {row.spec: row for row in crew.run(job(fault), SPECS)}
    assert set(rows) == set(SPECS)
    for spec, row in rows.items():
        assert row.judged == (spec.init_state != 1)
        assert row.note == ('' if row.judged else note)


def test_the_policy_may_think_for_longer_than_a_step_may_take():
    crew = LocalCrew(1, step_timeout_s=0.2)
    (row,) = crew.run(job(policy_fault='slow'), SPECS[2:3])
    assert row.success
    assert row.wall_s > 0.3


def test_a_policys_bug_stops_with_its_traceback():
    with pytest.raises(EvaluationError, match=r'(?s)cli_fakes\.py.*the policy has a bug'):
        list(LocalCrew(1).run(job(policy_fault='raises'), SPECS))


def test_bad_input_stops_with_its_message_alone():
    with pytest.raises(ConfigError, match=r"^unknown preset 'none such'; valid:[^\n]*$"):
        list(LocalCrew(1).run(job(policy_fault='refuses'), SPECS))


def test_a_crew_that_is_not_needed_any_more_is_gone():
    rows = LocalCrew(1, step_timeout_s=60).run(job(step_s=0.01), SPECS)
    first = next(rows)
    assert first.judged
    assert _workers()
    rows.close()
    assert not _workers()


def test_a_killed_worker_is_a_simulators_error():
    rows = LocalCrew(1).run(job(step_s=0.05), SPECS[:3])
    assert next(rows).judged
    for child in _workers():
        os.kill(child, signal.SIGKILL)
    found = list(rows)
    assert [row.judged for row in found] == [False, True]
    assert found[0].note.endswith('with exit code -9')


def test_workers_compute_with_one_thread_and_leave_stdout_alone(capfd):
    (row,) = LocalCrew(1).run(job(policy_fault='talks'), SPECS[2:3])
    assert row.success
    said = capfd.readouterr()
    assert said.out == ''
    assert 'threads: 1\n' in said.err


@pytest.mark.parametrize('options', [{'workers': 0}, {'step_timeout_s': 0.0}, {'threads': -1}])
def test_nonsense_is_refused(options):
    with pytest.raises(ConfigError, match='greater than 0'):
        LocalCrew(**options)


def _workers() -> list[int]:
    return [child.pid for child in multiprocessing.active_children() if child.pid]
