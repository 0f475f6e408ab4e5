import importlib.util
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.models.prismatic.conftest import make_observation, tiny_prismatic_config, tiny_vla
from vla_cache_ros.core.errors import EngineError

BENCHMARKS = Path(__file__).parents[2] / 'benchmarks'


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    spec = importlib.util.spec_from_file_location('gpu_engines', BENCHMARKS / 'gpu_engines.py')
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, 'gpu_engines', module)
    spec.loader.exec_module(module)
    return module


def test_every_backend_sees_the_same_steps(bench, monkeypatch, tmp_path):
    rng = np.random.default_rng(0)
    frames = [make_observation(rng) for _ in range(5)]
    monkeypatch.setattr(bench, 'load_or_record', lambda recordings: [(frames, 'made up')])
    monkeypatch.setattr(bench, 'random_vla', lambda name, config, **options: tiny_vla(name))
    options = bench.Options(('ort',), 'fp32', device='cpu', root=tmp_path, frames=5)
    summary = bench.measure(options, SimpleNamespace(config=tiny_prismatic_config()))
    assert list(summary['backends']) == ['torch', 'ort']
    assert summary['layers'] == 6
    assert summary['floor_ms'] is None
    for figures in summary['backends'].values():
        assert figures['step_ms']['dense']['p50'] > 0
    work = summary['tera_multiply_adds']
    assert work['cached'] <= work['dense']


def test_it_is_refused_without_a_gpu(bench, monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    with pytest.raises(EngineError, match='torch sees no GPU'):
        bench.chosen_backends(bench.Options())


def test_a_backend_that_does_not_run_is_refused(bench):
    options = bench.Options(('tensorrt',), 'fp32', device='cpu')
    with pytest.raises(EngineError, match='tensorrt cannot run fp32 on cpu; valid here: openvino'):
        bench.chosen_backends(options)
