"""`vla-cache check`: each mistake is named with its line."""

import json

import pytest

from vla_cache_ros.cli.main import main

pytestmark = pytest.mark.ros

GOOD = """\
/**/command_guard:
  ros__parameters:
    control_frequency_hz: 20.0
    qos_overrides./vla/action.publisher.depth: 2
robot:
  monitor:
    ros__parameters: {window: 100}
/**:
  ros__parameters: {use_sim_time: true, autostart: true}
"""


def check(tmp_path, text: str, capsys) -> tuple[int, list[str]]:
    path = tmp_path / 'robot.yaml'
    path.write_text(text, encoding='utf-8')
    status = main(['check', str(path)])
    lines = capsys.readouterr().out.splitlines()
    return status, [line.removeprefix(f'{path}:') for line in lines]


def test_sound_file_passes(tmp_path, capsys):
    status, lines = check(tmp_path, GOOD, capsys)
    assert status == 0
    assert lines == ['1 files: every parameter is declared and in range.']


@pytest.mark.parametrize(
    ('old', 'new', 'line', 'message'),
    [
        ('control_frequency_hz', 'control_frequency', 3, 'Did you mean control_frequency_hz?'),
        ('20.0', '20', 3, 'Write a decimal point'),
        ('20.0', 'fast', 3, 'of type float'),
        ('20.0', '1.0e9', 3, 'valid: 0.1 to 1000'),
        ('20.0', '.nan', 3, 'valid: 0.1 to 1000'),
        ('command_guard', 'comand_guard', 1, 'Did you mean command_guard?'),
        ('ros__parameters: {window', 'parameters: {window', 7, 'ros__parameters'),
        ('autostart: true', 'autostrat: true', 9, 'Did you mean autostart?'),
        ('autostart: true', "autostart: 'true'", 9, 'of type bool'),
        ('{window: 100}', '{window: 100, window: 200}', 7, 'given twice'),
        ('{window: 100}', '{window: [100', 8, 'is not YAML'),
    ],
)
def test_mistake_is_named_with_its_line(tmp_path, capsys, old, new, line, message):
    assert old in GOOD
    status, lines = check(tmp_path, GOOD.replace(old, new), capsys)
    assert status == 1
    assert any(found.startswith(f'{line}:') and message in found for found in lines), lines


def test_json_says_the_same(tmp_path, capsys):
    path = tmp_path / 'robot.yaml'
    path.write_text(GOOD.replace('window', 'windows'), encoding='utf-8')
    assert main(['check', str(path), '--json']) == 1
    (problem,) = json.loads(capsys.readouterr().out)['problems']
    assert problem['line'] == 7
    assert problem['path'] == str(path)


def test_missing_file_is_a_problem(tmp_path, capsys):
    assert main(['check', str(tmp_path / 'none.yaml')]) == 1
    assert 'cannot be read' in capsys.readouterr().out
