"""The rules of tests/conftest.py: only `gpu` tests may skip, and missing needs are failures."""

import sys
from pathlib import Path

import pytest

pytest_plugins = 'pytester'


@pytest.fixture
def suite(pytester):
    """An empty suite under the project's conftest and markers."""
    pytester.makeconftest((Path(__file__).parent / 'conftest.py').read_text(encoding='utf-8'))
    pytester.makeini('[pytest]\nmarkers =\n    gpu:\n    ros:\n    sim:\n    slow:\n')
    return pytester


def test_a_skip_is_a_failure(suite):
    suite.makepyfile('import pytest\ndef test_it(): pytest.skip("not today")')
    result = suite.runpytest_inprocess()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(['*only*gpu*tests may skip*not today*'])


def test_a_skipped_module_is_an_error(suite):
    suite.makepyfile('import pytest\npytest.importorskip("no_such_module")\ndef test_it(): pass')
    suite.runpytest_inprocess().assert_outcomes(errors=1)


def test_an_expected_failure_is_no_failure(suite):
    suite.makepyfile('import pytest\n@pytest.mark.xfail\ndef test_it(): assert False')
    suite.runpytest_inprocess().assert_outcomes(xfailed=1)


def test_gpu_tests_skip_with_a_reason(suite, monkeypatch):
    monkeypatch.setattr('torch.cuda.is_available', lambda: False)
    suite.makepyfile('import pytest\n@pytest.mark.gpu\ndef test_it(): assert False')
    result = suite.runpytest_inprocess('-rs')
    result.assert_outcomes(skipped=1)
    result.stdout.fnmatch_lines(['*needs a CUDA device*'])


@pytest.mark.parametrize(('marker', 'module'), [('ros', 'rclpy'), ('sim', 'mujoco')])
def test_missing_needs_fail_unless_deselected(suite, monkeypatch, marker, module):
    find_spec = sys.modules['importlib.util'].find_spec
    monkeypatch.setattr(
        'importlib.util.find_spec',
        lambda name, *rest: None if name == module else find_spec(name, *rest),
    )
    suite.makepyfile(f'import pytest\n@pytest.mark.{marker}\ndef test_it(): pass')
    result = suite.runpytest_inprocess()
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines([f'*needs *{module}*'])
    suite.runpytest_inprocess('-m', f'not {marker}').assert_outcomes(deselected=1)
