import importlib.util
import json
from pathlib import Path

import pytest

from tests.evaluation.synthetic_rows import make_rows
from vla_cache_ros.evaluation.summary import summarise

PATH = Path(__file__).parents[2] / 'benchmarks' / 'make_tables.py'


@pytest.fixture
def make_tables(monkeypatch):
    monkeypatch.syspath_prepend(PATH.parent)
    spec = importlib.util.spec_from_file_location('make_tables', PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_documents_are_what_the_results_say(make_tables):
    results = make_tables.load_results()
    assert make_tables.DOCUMENT.read_text(encoding='utf-8') == make_tables.render_document(results)
    reliability = make_tables.RELIABILITY.read_text(encoding='utf-8')
    assert reliability == make_tables.render_reliability(results)
    readme = make_tables.README.read_text(encoding='utf-8')
    assert readme == make_tables.render_readme(readme, results)


def test_tables_hold_every_figure_of_a_nested_result(make_tables):
    result = {
        'machine': {'threads': 1},
        'compare': {'128 px': {'fast_ms': 0.1234, 'max_error': 2e-7}, '224 px': {'fast_ms': 0.25}},
    }
    text = '\n'.join(make_tables.render_section('patch_compare', result))
    assert '| compare | fast ms | max error |' in text
    assert '| 128 px | 0.123 | 2.0e-07 |' in text
    assert '| 224 px | 0.25 |  |' in text
    assert 'Machine: threads 1.' in text
    assert 'benchmarks/patch_compare.py --json' in text


@pytest.mark.parametrize('known', [True, False])
def test_floors_stand_beside_the_times_where_the_device_is_known(make_tables, known):
    times = {'dense': {'vision': 4.0, 'decoder': 9.0}, 'cached': {'vision': 4.0, 'decoder': 6.0}}
    floor = {'dense': {'decoder': 3.5}, 'cached': {'decoder': 2.25}}
    steps = {arm: {'p50': sum(stages.values())} for arm, stages in times.items()}
    result = {
        **{'model': 'openvla', 'device': 'a card', 'image': 'x.png', 'layers': 4, 'width': 64},
        **{'tower_depth': None, 'tokens': 9, 'dtype': 'bfloat16', 'threads': 1, 'cache': 'safe'},
        **{'prune_layers': [1], 'recompute_ratio': 0.5, 'frames': 3, 'frames_from': 'a test'},
        **{'ratio': 1.3, 'ratio_low': 1.2, 'ratio_high': 1.4, 'stage_ms': times, 'step_ms': steps},
        'tera_multiply_adds': {'dense': {'decoder': 2.0}, 'cached': {'decoder': 1.0}},
        'floor_ms': floor if known else None,
    }
    text = '\n'.join(make_tables.vla_latency(result))
    assert ('| decoder | 9.00 | 6.00 | 1.50 | 3.50 | 2.25 |' in text) == known
    assert ('the peaks of this device are not listed' in text) == (not known)
    assert '| vision | 4.00 | 4.00 | 1.00 |  |  |' in text


def engine_case(dense, cached, **more):
    stages = {'dense': {'decoder': dense}, 'cached': {'decoder': cached}}
    steps = {'dense': {'p50': dense}, 'cached': {'p50': cached}}
    ratio = {'ratio': dense / cached, 'ratio_low': 1.0, 'ratio_high': 3.0}
    rest = {'version': '1', 'frames': 9, 'recompute_ratio': 0.5, 'decision_ms': 0.5}
    return {'stage_ms': stages, 'step_ms': steps, **ratio, **rest, **more}


def test_engines_are_held_against_the_ceiling_and_against_eager_pytorch(make_tables):
    losses = dict.fromkeys(('dense_over_ceiling', 'beyond', 'padding', 'row_copies'), 1.0)
    losses |= dict.fromkeys(('around_the_decoder_engine', 'decision', 'between_stages'), 2.0)
    losses |= dict.fromkeys(('preprocess', 'engine_less_efficient_on_fewer_rows'), 3.0)
    result = {
        **{'about': 'a model', 'image': 'x.png', 'parameters': 3e8, 'tokens': 605, 'threads': 2},
        **{'prune_layers': [0], 'buckets': [304, 608], 'frames_from': ['a test'], 'ceiling': 2.0},
        'giga_multiply_adds': {'dense': 200.0, 'cached': 100.0},
        'cases': {
            'torch fp32': engine_case(100.0, 60.0),
            'openvino bf16': engine_case(40.0, 25.0, losses=losses),
        },
    }
    text = '\n'.join(make_tables.engine_step(result))
    row = (
        '| openvino bf16 (1) | 40.0 | 25.0 | 1.60 [1.00, 3.00] | 80% | 2.50 | 2.40 | 0.50 = 2.0% |'
    )
    assert row in text
    assert '| openvino bf16: median, ms | dense | cached | dense / cached |' in text
    assert '| **beyond it** | 1.0 |' in text


def closed_loop_result(rows, margin=0.01):
    machine = {'cores': 2}
    about = {'tasks': 'libero_object/*', 'workers': 2, 'backend': 'torch', 'machine': machine}
    return {
        **about,
        'margin': margin,
        'divergence': False,
        'summary': summarise(rows, margin).as_dict(),
    }


def test_paired_success_states_every_arm_with_its_claim(make_tables):
    rows = make_rows(arms=('off', 'safe', 'paper'), tasks=2, init_states=30)
    result = json.loads(json.dumps(closed_loop_result(rows)))
    text = '\n'.join(make_tables.evaluation_tables.paired_success(result))
    dense, safe, paper = (arm['success'] for arm in result['summary']['arms'])
    assert f'| `off` | {dense["successes"]}/60 = ' in text
    for pair in result['summary']['paired']:
        assert f'- {pair["in_words"]}' in text
        assert (
            f'| {pair["comparison"]["only_first"]} / {pair["comparison"]["only_second"]} |' in text
        )
    assert '| libero_object/1 |' in text
    assert '| `off` | 0.0 % | 100.0 % |' in text
    assert '| `safe` | 5' in text  # vision_ratio 0.4 to 0.5, keyframes dense
    brief = '\n'.join(make_tables.evaluation_tables.paired_success_brief(result))
    assert '| libero_object/1 |' not in brief


def test_a_result_without_a_renderer_is_an_error(make_tables, tmp_path, monkeypatch):
    (tmp_path / 'surprise.json').write_text(json.dumps({}))
    monkeypatch.setattr(make_tables, 'RESULTS', tmp_path)
    with pytest.raises(SystemExit, match='surprise'):
        make_tables.load_results()


def test_readme_block_is_replaced_and_nothing_else(make_tables):
    text = 'before\n<!-- benchmarks:begin (made) -->\nold\n<!-- benchmarks:end -->\nafter\n'
    assert make_tables.render_readme(text, {}) == text.replace('old\n', '\n')
    with pytest.raises(SystemExit, match='no <!-- benchmarks'):
        make_tables.render_readme('no block', {})
