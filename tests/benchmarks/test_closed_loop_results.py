"""Benchmarks in closed loop, on episodes out of thin air."""

import importlib
import json
from dataclasses import replace
from pathlib import Path

import pytest

from tests.evaluation.synthetic_rows import make_row, make_rows
from vla_cache_ros.core.errors import ConfigError
from vla_cache_ros.evaluation.episode import EpisodeSpec
from vla_cache_ros.evaluation.summary import summarise

BENCHMARKS = Path(__file__).parents[2] / 'benchmarks'
MACHINE = {'cores': 2}


@pytest.fixture
def benchmark_module(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module


def plain(summary):
    return json.loads(json.dumps(summary.as_dict(), allow_nan=False))


def faster(row, factor):
    """The row with all policy steps so much faster."""
    return replace(
        row, trace=tuple(replace(step, step_ms=step.step_ms / factor) for step in row.trace)
    )


def test_fewer_refreshes_cost_as_much_as_the_cache(benchmark_module):
    choose = benchmark_module('baselines').choose_open_loop
    dense = make_rows(arms=('off',), tasks=1, init_states=5)
    rows = [
        *dense,
        *(replace(faster(row, 1.5), spec=replace(row.spec, arm='safe')) for row in dense),
    ]
    found = choose(summarise(rows), rows, 'safe', chunk_size=8)
    assert found.executed == 4
    assert found.share == pytest.approx(1 / 1.5)
    assert found.equal == pytest.approx(6.0)
    assert found.steps == 6
    assert choose(summarise(rows), rows, 'safe', chunk_size=5).steps == 5
    assert choose(summarise(rows), rows, 'safe', chunk_size=8, steps=7).steps == 7
    with pytest.raises(ConfigError, match='must hold off and paper'):
        choose(summarise(rows), rows, 'paper', chunk_size=8)


@pytest.mark.parametrize(('chunk_size', 'note'), [(8, '= 6.0)'), (5, 'a chunk has only 5)')])
def test_baselines_say_how_fewer_refreshes_were_chosen(benchmark_module, chunk_size, note):
    rows = make_rows(arms=('off', 'safe', 'random', 'off@6'), tasks=2)
    result = {
        **{'image': 'baselines.png', 'equal_to': 'safe', 'workers': 1, 'backend': 'torch'},
        'divergence': False,
        **{'machine': MACHINE, 'summary': plain(summarise(rows))},
        'open_loop': {
            **{'executed': 4, 'share': 2 / 3, 'equal': 6.0},
            **{'steps': min(6, chunk_size), 'chunk_size': chunk_size},
        },
    }
    text = '\n'.join(benchmark_module('evaluation_tables').baselines(result))
    assert note in text
    assert 'is 67% of the dense one (4 / 0.67' in text
    assert '1 worker on 2 cores' in text
    assert text.count('| `off@6` |') == 2


def test_robustness_has_a_row_per_condition_and_cached_arm(benchmark_module):
    rows = make_rows(arms=('off', 'safe'), tasks=1, conditions=('none', 'camera_shake'))
    summary = plain(summarise(rows))
    result = {
        'image': 'robustness.png',
        'conditions': {'none': 'nothing', 'camera_shake': 'agentview wanders'},
        'summary': summary,
    }
    text = '\n'.join(benchmark_module('evaluation_tables').robustness(result))
    assert '| `safe` under | dense |' in text
    for pair in summary['paired']:
        found = pair['comparison']
        (line,) = (
            part for part in text.splitlines() if part.startswith(f'| {pair["condition"]} |')
        )
        assert f'| {found["only_first"]} / {found["only_second"]} |' in line
    assert '`camera_shake`: agentview wanders.' in text


def test_throughput_counts_the_start_up_apart(benchmark_module):
    module = benchmark_module('harness_throughput')
    rows = [
        replace(make_row(EpisodeSpec('s', 0, state), policy_steps=10), wall_s=8.0, overhead_ms=2.0)
        for state in range(5)
    ]
    finished = [30.0, 32.0, 40.0, 42.0, 50.0]  # two workers; the first two waited for imports
    run = module.summarise_run(rows, finished, wall_s=50.0, workers=2)
    assert run['episodes_per_hour'] == pytest.approx(360.0)
    assert run['steady_episodes_per_hour'] == pytest.approx(3600 * 3 / 18.0)
    assert run['control_steps_per_s'] == pytest.approx(200 / 50)
    assert run['harness_share'] == pytest.approx(0.002 * 40 / 8.0)
    text = '\n'.join(
        benchmark_module('evaluation_tables').harness_throughput({'runs': {'2': run}})
    )
    assert '| 2 | 5 | 360 | 600 | 4.0 | 2.000 / 2.000 | 1.00 % |' in text


def test_times_of_finished_episodes_are_read_from_the_store(benchmark_module, tmp_path):
    store = importlib.import_module('vla_cache_ros.evaluation.store')
    with store.EpisodeStore.open(tmp_path) as episodes:
        for row in make_rows(tasks=1, init_states=2):
            episodes.add(row)
    stamps = benchmark_module('harness_throughput').finished_s(tmp_path / store.FILE)
    assert len(stamps) == 4
    assert stamps == sorted(stamps)
    assert stamps[-1] - stamps[0] < 60


def test_a_run_shows_its_divergence_or_its_times_never_both(benchmark_module):
    tables = benchmark_module('evaluation_tables')
    summary = plain(summarise(make_rows(arms=('off', 'safe'))))
    heads = {
        divergence: tables.work_table({'divergence': divergence, 'summary': summary})[0]
        for divergence in (True, False)
    }
    assert 'gripper flips' in heads[True]
    assert 'ms' not in heads[True]
    assert 'policy per control step, ms' in heads[False]
    assert 'flips' not in heads[False]
