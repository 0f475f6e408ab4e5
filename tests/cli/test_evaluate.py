import contextlib
import json
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from cli_fakes import FakeEnvs, FakePolicies

from vla_cache_ros.cli.evaluate import (
    RESULT,
    EvaluateConfig,
    choose_crew,
    episode_grid,
    run_evaluate,
)
from vla_cache_ros.cli.main import INTERRUPTED, USAGE_ERROR, main
from vla_cache_ros.core.errors import ConfigError, UnknownNameError
from vla_cache_ros.evaluation.crew import LocalCrew
from vla_cache_ros.evaluation.episode import EpisodeSpec
from vla_cache_ros.evaluation.store import EpisodeStore

PROCESS = Path(__file__).with_name('eval_process.py')
ARGUMENTS = ['libero_object', '--episodes', '3', '--workers', '2', '--videos', '0']


def config(tmp_path, **options) -> EvaluateConfig:
    defaults = {'tasks': 'libero_object/0', 'episodes': 4, 'workers': 1, 'videos': 0}
    return EvaluateConfig(**{**defaults, 'out': tmp_path / 'out', **options})


def run(the_config, fault='') -> int:
    return run_evaluate(the_config, FakePolicies(), FakeEnvs(fault))


def start(out: Path, step_s: float) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, str(PROCESS), str(step_s), *ARGUMENTS, '--out', str(out)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A test run in a shell's background ignores SIGINT, and its children would, too.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


def finished(out: Path) -> list[EpisodeSpec]:
    with contextlib.suppress(ConfigError), EpisodeStore.read(out) as store:
        return [row.spec for row in store.rows()]
    return []


def wait_for_episodes(out: Path, count: int, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 120
    while len(finished(out)) < count:
        assert process.poll() is None, process.stderr and process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.05)


def wait_until_gone(processes: list[int]) -> None:
    """multiprocessing's resource tracker leaves a moment after its parent."""
    deadline = time.monotonic() + 10
    while left := [pid for pid in processes if _is_alive(pid)]:
        assert time.monotonic() < deadline, left
        time.sleep(0.05)


def test_the_grid_is_every_start_under_every_condition_in_every_arm():
    grid = episode_grid(
        EvaluateConfig(
            tasks='libero_object/3,libero_goal', cache='paired,off@7', episodes=2, seed=5
        )
    )
    assert len(grid) == len(set(grid)) == 11 * 2 * 3
    assert grid[:4] == [
        EpisodeSpec('libero_object', 3, 0, 'off', 5),
        EpisodeSpec('libero_object', 3, 0, 'safe', 5),
        EpisodeSpec('libero_object', 3, 0, 'off@7', 5),
        EpisodeSpec('libero_object', 3, 1, 'off', 5),
    ]
    assert len(episode_grid(EvaluateConfig(tasks='libero_object', cache='off'))) == 10 * 50
    states = episode_grid(EvaluateConfig(tasks='libero_10/2', cache='off', init_states='3,7-8'))
    assert [spec.init_state for spec in states] == [3, 7, 8]


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'tasks': 'libero_objects'}, "unknown task 'libero_objects'"),
        ({'tasks': 'libero_object/10'}, r'unknown task of libero_object 10; valid: 0\.\.9'),
        ({'cache': 'off,sage'}, "unknown arm 'sage'"),
        ({'conditions': 'earthquake'}, "unknown condition 'earthquake'; valid: none, "),
        ({'conditions': ','}, 'no condition'),
        ({'episodes': 51}, r'--episodes is 51; valid: 1\.\.50'),
        ({'episodes': 0}, '--episodes is 0'),
        ({'init_states': '0-3'}, 'give it or --init-states'),
        ({'stack': 'ancient'}, "unknown stack 'ancient'; valid: current, published"),
        ({'step_timeout_s': -1.0}, 'step_timeout_s is -1.0'),
    ],
)
def test_bad_input_is_refused_before_anything_runs(tmp_path, options, message):
    with pytest.raises(ConfigError, match=message):
        run(config(tmp_path, **options))
    assert not (tmp_path / 'out').exists()


def test_a_run_is_stored_reported_and_never_run_twice(tmp_path, capsys):
    assert run(config(tmp_path, json=True)) == 0
    out, err = capsys.readouterr()
    result = json.loads(out)
    assert result == json.loads((tmp_path / 'out' / RESULT).read_text())
    assert result['episodes'] == 8
    assert [arm['success']['successes'] for arm in result['arms']] == [2, 2]
    assert result['paired'][0]['pairs'] == 4
    assert result['settings']['divergence'] is True
    assert err == ''
    assert 'safe' in Path(result['report']).read_text()

    assert run(config(tmp_path), fault='broken') == 0  # nothing is left to run
    out, err = capsys.readouterr()
    assert '2/4 = 50.0 %' in ' '.join(out.split())
    assert '8 of 8 episodes are done already' in err


def test_simulator_errors_that_remain_are_in_the_exit_code_and_not_in_the_rates(tmp_path, capsys):
    assert run(config(tmp_path, json=True), fault='raises') == 1
    result = json.loads(capsys.readouterr().out)
    assert result['simulator_errors'] == 2
    assert result['failed_attempts'] == 4
    assert [arm['success']['trials'] for arm in result['arms']] == [3, 3]
    assert run(config(tmp_path, json=True)) == 0
    assert json.loads(capsys.readouterr().out)['simulator_errors'] == 0


def test_a_broken_simulator_stops_with_what_is_finished(tmp_path, capsys):
    assert run(config(tmp_path, json=True, init_states='', episodes=2)) == 0
    capsys.readouterr()
    assert run(config(tmp_path, json=True), fault='broken') == 1
    out, err = capsys.readouterr()
    result = json.loads(out)
    assert result['episodes'] == 4
    assert 'never works' in result['stopped']
    assert 'never works' in err


def test_other_settings_are_refused_and_more_of_the_same_extends(tmp_path):
    run(config(tmp_path, episodes=1))
    with pytest.raises(ConfigError, match='divergence: True there, False now'):
        run(config(tmp_path, episodes=1, divergence=False))
    assert run(config(tmp_path, episodes=2, cache='off,paper')) == 0
    assert Counter(spec.arm for spec in finished(tmp_path / 'out')) == {
        'off': 2,
        'safe': 1,
        'paper': 2,
    }


def test_the_worst_divergence_is_recorded_where_videos_are_asked_for(tmp_path, monkeypatch):
    calls = []

    def record(folder, rows, job, count):
        calls.append((folder, len(rows), count))

    monkeypatch.setattr('vla_cache_ros.cli.report.evaluation_videos.record_worst', record)
    run(config(tmp_path, episodes=1, videos=2))
    run(config(tmp_path, episodes=1, videos=0))
    assert calls == [(tmp_path / 'out', 2, 2)]


def test_a_dry_run_says_what_is_done_and_runs_nothing(tmp_path, capsys):
    dry = config(tmp_path, dry_run=True, json=True)
    assert run(dry, fault='broken') == 0
    assert [line['done'] for line in json.loads(capsys.readouterr().out)['plan']] == [0, 0]
    assert not (tmp_path / 'out').exists()
    run(config(tmp_path, episodes=1))
    capsys.readouterr()
    assert run(dry, fault='broken') == 0
    plan = json.loads(capsys.readouterr().out)['plan']
    assert [(line['arm'], line['episodes'], line['done']) for line in plan] == [
        ('off', 4, 1),
        ('safe', 4, 1),
    ]
    with pytest.raises(ConfigError, match='divergence'):
        run(replace(dry, divergence=False))


def test_workers_are_as_many_as_asked_for(tmp_path):
    crew = choose_crew(config(tmp_path, workers=3, step_timeout_s=7.0))
    assert isinstance(crew, LocalCrew)
    assert (crew._workers, crew._step_timeout_s) == (3, 7.0)


def test_the_brought_weights_and_settings_are_named(tmp_path):
    from vla_cache_ros.cli.evaluate import _load_policies

    policies, settings = _load_policies(config(tmp_path), ['off', 'safe'])
    assert not policies.auto_off  # type: ignore[attr-defined]
    assert settings['weights.off'] != settings['weights.safe']
    assert (settings['dtype'], settings['backend']) == ('float32', 'torch')
    with pytest.raises(ConfigError, match='give one of the two'):
        _load_policies(config(tmp_path, policy='elsewhere', checkpoint=tmp_path), ['off'])


def test_the_command_line_reports_bad_input_with_its_exit_code(tmp_path, capsys):
    assert main(['eval', 'libero_object/99', '--out', str(tmp_path / 'out')]) == USAGE_ERROR
    assert 'unknown task of libero_object' in capsys.readouterr().err


def test_unknown_suites_are_answered_with_the_valid_ones():
    with pytest.raises(UnknownNameError, match=r"unknown suite 'libro'; valid: libero_spatial"):
        episode_grid(EvaluateConfig(tasks='libro/*'))


@pytest.mark.slow
def test_kill_9_in_mid_run_loses_nothing_and_doubles_nothing(tmp_path):
    seen: list[EpisodeSpec] = []
    for more in (3, 8, 13):
        process = start(tmp_path, step_s=0.02)
        wait_for_episodes(tmp_path, more, process)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        now = finished(tmp_path)
        assert now[: len(seen)] == seen
        seen = now
    process = start(tmp_path, step_s=0.0)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert 'of 60 episodes are done already' in err
    rows = finished(tmp_path)
    assert rows[: len(seen)] == seen
    grid = episode_grid(EvaluateConfig(tasks='libero_object', episodes=3))
    assert Counter(rows) == Counter(grid)


@pytest.mark.slow
@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_cleanly(tmp_path, number):
    process = start(tmp_path, step_s=0.05)
    wait_for_episodes(tmp_path, 2, process)
    workers = _descendants(process.pid)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == INTERRUPTED, err
    assert f'{len(finished(tmp_path))} of 60 episodes are in {tmp_path}' in err
    assert 'Traceback' not in err
    wait_until_gone(workers)


@pytest.mark.slow
def test_workers_leave_with_a_killed_parent(tmp_path):
    process = start(tmp_path, step_s=1.0)
    deadline = time.monotonic() + 60
    while len(workers := _descendants(process.pid)) < 2 and time.monotonic() < deadline:
        time.sleep(0.1)
    process.kill()
    process.communicate(timeout=60)  # ends when the last of them has closed stderr
    assert len(workers) >= 2
    wait_until_gone(workers)


def _descendants(pid: int) -> list[int]:
    with contextlib.suppress(FileNotFoundError):
        return [int(word) for word in Path(f'/proc/{pid}/task/{pid}/children').read_text().split()]
    return []


def _is_alive(pid: int) -> bool:
    """Whether the process runs; one that only waits to be reaped does not."""
    with contextlib.suppress(FileNotFoundError):
        return Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[0] != 'Z'
    return False


@pytest.mark.simpler
def test_missing_files_of_a_simulator_are_said_before_anything_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv('MS_ASSET_DIR', str(tmp_path))
    out = tmp_path / 'out'
    assert main(['eval', 'simpler_bridge/0', '--episodes', '1', '--out', str(out)]) == USAGE_ERROR
    assert 'download_asset bridge_v2_real2sim -y' in capsys.readouterr().err
    assert not out.exists()
