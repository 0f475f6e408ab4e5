import json

import pytest
from cli_fakes import FakeEnv, FakeEnvs, FakePolicies, FakePolicy
from vla_cache_ros.cli.episodes import EpisodeSpec, read_rows, run_episode

from vla_cache_ros.cli.evaluate import EvaluationError, evaluate, rates_by_task
from vla_cache_ros.cli.tasks import TaskName
from vla_cache_ros.core.errors import ConfigError

SPECS = [
    EpisodeSpec('libero_object', task, init_state, cache)
    for task in (0, 1)
    for init_state in range(3)
    for cache in ('off', 'safe')
]


def run(tmp_path, workers=0, policy_fault='', env_fault='', specs=SPECS, **options):
    return evaluate(
        FakePolicies(policy_fault),
        specs,
        workers,
        tmp_path / 'rows.jsonl',
        make_env=FakeEnvs(env_fault),
        quiet=True,
        **options,
    )


def test_episode_renders_only_what_the_policy_reads():
    env, policy = FakeEnv('libero_object', 0, 32), FakePolicy('safe')
    row = run_episode(env, policy, EpisodeSpec('libero_object', 0, 1, 'safe'))
    assert (row.outcome, row.steps, row.policy_steps) == ('success', 10, 3)
    assert env.observed == 3
    assert policy.resets == ['episode start']
    assert row.modes == {'keyframe': 1, 'cached': 2}
    assert row.keyframes == {'first step': 1}
    assert list(row.stage_ms) == ['preprocess', 'diff', 'selection', 'vision', 'decoder', 'head']
    assert 0.0 < row.recompute_ratio < 1.0


def test_step_limit_is_a_failure_and_execute_steps_is_obeyed():
    row = run_episode(
        FakeEnv('libero_object', 0, 32), FakePolicy(), EpisodeSpec('libero_object', 0, 0), 2
    )
    assert (row.outcome, row.steps, row.policy_steps) == ('failure', 20, 10)


def test_nan_action_is_the_policys_failure():
    row = run_episode(
        FakeEnv('libero_object', 0, 32), FakePolicy(fault='nan'), EpisodeSpec('x', 0, 1)
    )
    assert row.outcome == 'failure'
    assert 'NaN' in row.note


@pytest.mark.parametrize('workers', [0, 2])
def test_rows_come_in_the_order_asked_for(tmp_path, workers):
    rows = run(tmp_path, workers)
    assert [row.spec for row in rows] == SPECS
    assert [row.success for row in rows] == [spec.init_state != 0 for spec in SPECS]
    assert len(read_rows(tmp_path / 'rows.jsonl')) == len(SPECS)
    rate = rates_by_task(rows)[TaskName('libero_object', 1), 'safe']
    assert (rate.successes, rate.trials) == (2, 3)


def test_finished_episodes_never_run_twice(tmp_path):
    run(tmp_path, specs=SPECS[:4])
    new = []
    rows = run(tmp_path, on_row=new.append)
    assert {row.spec for row in new} == set(SPECS[4:])
    assert len(rows) == len(SPECS)


def test_a_line_cut_short_is_run_again(tmp_path):
    run(tmp_path, specs=SPECS[:2])
    path = tmp_path / 'rows.jsonl'
    path.write_text(path.read_text()[:-20])
    new = []
    run(tmp_path, specs=SPECS[:2], on_row=new.append)
    assert len(new) == 1
    assert [json.loads(line)['outcome'] for line in path.read_text().splitlines()] == [
        'failure'
    ] * 2


def test_rows_of_other_weights_are_refused(tmp_path):
    run(tmp_path, specs=SPECS[:1], fingerprint=lambda cache: 'aaa')
    with pytest.raises(ConfigError, match='aaa'):
        run(tmp_path, specs=SPECS[:1], fingerprint=lambda cache: 'bbb')
    with pytest.raises(ConfigError, match='aaa/execute2'):
        run(tmp_path, specs=SPECS[:1], fingerprint=lambda cache: 'aaa', execute_steps=2)


@pytest.mark.parametrize(
    ('workers', 'fault', 'note'),
    [(0, 'raises', 'has a bug'), (1, 'dies', 'exit code 7')],
)
def test_a_simulators_failure_is_not_the_policys(tmp_path, workers, fault, note):
    specs = [EpisodeSpec('libero_object', 0, i) for i in range(3)]
    rows = run(tmp_path, workers, env_fault=fault, specs=specs)
    assert [row.outcome for row in rows] == ['failure', 'simulator_error', 'success']
    assert note in rows[1].note
    (rate,) = rates_by_task(rows).values()
    assert (rate.successes, rate.trials) == (1, 2)

    again = []
    rows = run(tmp_path, 0, specs=specs, on_row=again.append)
    assert [row.outcome for row in rows] == ['failure', 'success', 'success']
    assert len(again) == 1


def test_a_broken_simulator_stops_the_evaluation(tmp_path):
    with pytest.raises(EvaluationError, match='3 times in a row'):
        run(tmp_path, env_fault='broken')


@pytest.mark.parametrize('workers', [0, 1])
def test_a_policys_bug_is_shown_and_not_counted(tmp_path, workers):
    with pytest.raises((EvaluationError, RuntimeError), match='the policy has a bug'):
        run(tmp_path, workers, policy_fault='raises')
    assert read_rows(tmp_path / 'rows.jsonl') == []
