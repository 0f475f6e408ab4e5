import importlib.util
import json
from pathlib import Path

import pytest

PATH = Path(__file__).parents[2] / 'benchmarks' / 'make_tables.py'


@pytest.fixture
def make_tables():
    spec = importlib.util.spec_from_file_location('make_tables', PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_documents_are_what_the_results_say(make_tables):
    results = make_tables.load_results()
    assert make_tables.DOCUMENT.read_text(encoding='utf-8') == make_tables.render_document(results)
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
