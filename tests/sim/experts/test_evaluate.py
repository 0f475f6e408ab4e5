import json

import pytest

from vla_cache_ros.core.errors import ConfigError
from vla_cache_sim.experts.evaluate import main, parse_tasks


def test_task_lists_are_parsed():
    assert parse_tasks('0-3,7', 10) == [0, 1, 2, 3, 7]
    assert parse_tasks('5', 10) == [5]


@pytest.mark.parametrize('text', ['', 'a', '3-1', '0-10', '1,', '-2'])
def test_other_lists_are_refused(text: str):
    with pytest.raises(ConfigError, match=r'0\.\.9'):
        parse_tasks(text, 10)


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['--suite', 'libero_all'], 'libero_all'),
        (['--tasks', '12'], '12'),
        (['--init-states', '0'], 'at least 1'),
        (['--suite', 'simpler_bridge', '--perturb', '0.5'], 'simpler_bridge'),
        (['--suite', 'maniskill', '--tasks', '2'], '0..1'),
    ],
)
def test_bad_arguments_end_with_a_message(
    capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
):
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith('error: ')
    assert message in captured.err


@pytest.mark.sim
def test_reports_what_happened_as_json(capsys: pytest.CaptureFixture[str]):
    arguments = ['--tasks', '8', '--init-states', '1', '--random-starts', '--perturb', '0.3']
    assert main([*arguments, '--json']) == 0
    (result,) = json.loads(capsys.readouterr().out)
    assert result['episodes'] == 1
    assert result['successes'] == 1 - len(result['failed'])
    assert result['mean_steps'] > 40
