import importlib
import json
import subprocess
import sys
from dataclasses import dataclass, is_dataclass
from pathlib import Path

import pytest

import vla_cache_ros
from vla_cache_ros.cli import main as cli
from vla_cache_ros.cli.main import COMMANDS, Command, main
from vla_cache_ros.core.errors import ConfigError


@dataclass(frozen=True)
class FakeConfig:
    steps: int = 3
    json: bool = False


@pytest.fixture
def fake(monkeypatch):
    """Mount this module's `run` as the command `fake`; return what it was called with."""
    calls = []
    module = sys.modules[__name__]
    command = Command('fake', 'fake_command', 'FakeConfig', 'run', 'a command for the test')
    monkeypatch.setattr(cli, 'COMMANDS', (command,))
    monkeypatch.setitem(sys.modules, 'fake_command', module)
    monkeypatch.setattr(module, 'run', lambda config: calls.append(config) or 0, raising=False)
    return calls


def run_raises(monkeypatch, error):
    def run(config):
        raise error

    monkeypatch.setattr(sys.modules[__name__], 'run', run, raising=False)


def test_options_become_the_config(fake):
    assert main(['fake', '--steps', '5', '--json']) == 0
    assert fake == [FakeConfig(steps=5, json=True)]


def test_exit_code_of_the_command_is_passed_on(fake, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], 'run', lambda config: 1, raising=False)
    assert main(['fake']) == 1


def test_project_error_is_one_line_on_stderr_and_exit_code_2(fake, monkeypatch, capsys):
    run_raises(monkeypatch, ConfigError('steps must be positive'))
    assert main(['fake']) == 2
    assert capsys.readouterr() == ('', 'vla-cache: error: steps must be positive\n')


def test_debug_shows_the_traceback(fake, monkeypatch, capsys):
    run_raises(monkeypatch, ConfigError('steps must be positive'))
    assert main(['fake', '--debug']) == 2
    assert 'Traceback' in capsys.readouterr().err


def test_missing_optional_package_names_the_command_that_gets_it(fake, monkeypatch, capsys):
    run_raises(
        monkeypatch, ModuleNotFoundError("No module named 'pyarrow'", name='pyarrow.parquet')
    )
    assert main(['fake']) == 2
    message = capsys.readouterr().err
    assert 'pyarrow' in message
    assert message.strip().endswith('train.txt')


def test_missing_module_of_our_own_is_a_bug_and_raises(fake, monkeypatch):
    error = ModuleNotFoundError("No module named 'vla_cache_ros.x'", name='vla_cache_ros.x')
    run_raises(monkeypatch, error)
    with pytest.raises(ModuleNotFoundError):
        main(['fake'])


def test_interrupt_is_130_without_a_traceback(fake, monkeypatch, capsys):
    run_raises(monkeypatch, KeyboardInterrupt())
    assert main(['fake']) == 130
    assert 'Traceback' not in capsys.readouterr().err


def test_bad_option_exits_2(fake):
    with pytest.raises(SystemExit) as stop:
        main(['fake', '--steps', 'many'])
    assert stop.value.code == 2
    assert fake == []


def test_unknown_command_lists_the_valid_ones_and_the_closest(capsys):
    assert main(['docter']) == 2
    message = capsys.readouterr().err
    assert 'valid: doctor, check, demo' in message
    assert 'Did you mean doctor?' in message


def test_version(capsys):
    assert main(['--version']) == 0
    assert capsys.readouterr().out == f'vla-cache {vla_cache_ros.__version__}\n'


@pytest.mark.parametrize(('words', 'code'), [(['--help'], 0), ([], 2)])
def test_help_lists_every_command(words, code, capsys):
    assert main(words) == code
    listed = capsys.readouterr().out
    assert all(command.summary in listed for command in COMMANDS)


@pytest.mark.parametrize('command', COMMANDS, ids=lambda command: command.name)
def test_every_command_is_there_and_its_options_are_documented(command, capsys):
    module = importlib.import_module(command.module)
    config = getattr(module, command.config)
    assert is_dataclass(config)
    assert config.__dataclass_params__.frozen
    assert callable(getattr(module, command.run))
    with pytest.raises(SystemExit) as stop:
        main([command.name, '--help'])
    assert stop.value.code == 0
    assert f'usage: vla-cache {command.name}' in capsys.readouterr().out


def test_environment_is_set_where_the_user_has_not(fake, monkeypatch):
    command = Command(
        'fake', 'fake_command', 'FakeConfig', 'run', 'x', {'VLA_A': '1', 'VLA_B': '1'}
    )
    monkeypatch.setattr(cli, 'COMMANDS', (command,))
    environment = {'VLA_B': '2', 'MUJOCO_GL': 'osmesa'}
    monkeypatch.setattr(cli.os, 'environ', environment)
    main(['fake'])
    assert environment['VLA_A'] == '1'
    assert environment['VLA_B'] == '2'
    assert environment['MUJOCO_GL'] == 'osmesa'


def test_the_installed_script_answers():
    script = Path(sys.executable).parent / 'vla-cache'
    process = subprocess.run(
        [script, 'doctor', '--json'], capture_output=True, text=True, check=False
    )
    document = json.loads(process.stdout)
    assert process.returncode == (0 if document['demo_can_run'] else 1)
