import json
from pathlib import Path

import pytest
from cli_fakes import FakeEnvs, FakePolicies

from vla_cache_ros.cli.checkpoints import CheckpointPolicies
from vla_cache_ros.cli.demo import DemoConfig, run_demo
from vla_cache_ros.core.errors import CheckpointError, UnknownNameError


@pytest.mark.ros
def test_demo_plays_every_state_twice_over_the_graph(tmp_path, capfd):
    config = DemoConfig(init_states='1-2', out=tmp_path / 'report')
    assert run_demo(config, FakePolicies(), FakeEnvs()) == 0
    metrics = json.loads((tmp_path / 'report' / 'metrics.json').read_text())
    played = [(row['init_state'], row['arm']) for row in metrics['episodes']]
    assert played == [(1, 'off'), (1, 'safe'), (2, 'off'), (2, 'safe')]
    for row in metrics['episodes']:
        assert row['outcome'] == 'success'
        assert (row['steps'], row['policy_steps']) == (10, 3)
        assert row['graph_counts']['null_commands'] == 0
        assert row['command_hz'] > row['refresh_hz'] > 0
    arms = metrics['arms']
    assert arms['cached']['latency_ms']['count'] == 6
    assert arms['cached']['not_inference_ms']['p50'] > 0
    assert (tmp_path / 'report' / 'index.html').is_file()
    assert 'report:' in capfd.readouterr().out


@pytest.mark.ros
def test_a_broken_simulator_is_reported_as_such(tmp_path, capfd):
    config = DemoConfig(init_states='0', out=tmp_path)
    assert run_demo(config, FakePolicies(), FakeEnvs('broken')) == 1
    metrics = json.loads((tmp_path / 'metrics.json').read_text())
    assert metrics['success']['simulator_errors'] == 2
    assert 'never works' in metrics['episodes'][0]['note']


def test_unknown_names_are_refused_before_anything_starts():
    with pytest.raises(UnknownNameError, match='libero_spatial'):
        run_demo(DemoConfig(task='libero_objekt/0'))
    with pytest.raises(UnknownNameError, match='paper'):
        run_demo(DemoConfig(cache='fast'))


def test_missing_weights_name_the_command(tmp_path: Path):
    with pytest.raises(CheckpointError, match='vla-cache train'):
        CheckpointPolicies(tmp_path)('off')
