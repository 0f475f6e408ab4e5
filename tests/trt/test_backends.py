import importlib
import inspect
import sys
import types

import pytest
import torch

from vla_cache_ros.core.errors import ConfigError, EngineError, UnknownNameError
from vla_cache_trt import backends
from vla_cache_trt.backends import (
    BACKENDS,
    backend_module,
    backend_names,
    graph_dtype,
    probe,
    probe_all,
    settle_precision,
)

KNOWN = ('torch', 'torch_cuda_graph', 'ort', 'openvino', 'tensorrt', 'tensorrt_rtx')


@pytest.fixture
def install(monkeypatch, tmp_path):
    """Return a function that makes a module of that source importable."""
    monkeypatch.syspath_prepend(tmp_path)

    def make(name, source):
        monkeypatch.delitem(sys.modules, name, raising=False)
        (tmp_path / f'{name}.py').write_text(source)

    yield make
    for path in tmp_path.glob('*.py'):
        sys.modules.pop(path.stem, None)


@pytest.fixture
def absent(monkeypatch):
    """Return a function that hides a module."""
    find_spec = backends.importlib.util.find_spec

    def hide(name):
        monkeypatch.setattr(
            backends.importlib.util,
            'find_spec',
            lambda wanted, *rest: None if wanted == name else find_spec(wanted, *rest),
        )

    return hide


def test_names_and_order():
    assert backend_names() == KNOWN
    assert tuple(status.name for status in probe_all()) == KNOWN


def test_torch_runs_the_policy_here():
    status = probe('torch')
    assert status.runs_policy
    assert status.lacks == ()
    assert status.version == torch.__version__
    assert status.device


def test_what_a_cpu_runs_here(monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    running = [status.name for status in probe_all() if status.runs_policy]
    assert running == ['torch', 'ort', 'openvino']


@pytest.mark.parametrize('name', KNOWN)
def test_every_backend_has_a_module_with_the_two_functions(name):
    backend = backends.find_backend(name)
    module = importlib.import_module(f'vla_cache_trt.backends.{backend.runner}')
    assert name == module.NAME
    given = ['graph', 'onnx', 'folder', 'precision', 'buckets']
    assert list(inspect.signature(module.compile_graph).parameters)[:6] == [*given, 'on_progress']
    assert list(inspect.signature(module.load_engine).parameters)[:6] == [*given, 'device']


def test_module_of_a_backend_that_runs_here():
    assert backend_module('torch').NAME == 'torch'


def test_backend_that_is_not_installed_names_its_command_and_the_others(absent):
    absent('openvino')
    with pytest.raises(EngineError) as caught:
        backend_module('openvino')
    message = str(caught.value)
    assert 'the Python module openvino' in message
    assert 'pip install openvino' in message
    assert 'torch' in message.partition('Backends that run here')[2]


def test_an_engine_for_another_gpu_may_be_built_without_one(monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    with pytest.raises(EngineError, match='compute-capability'):
        backend_module('tensorrt_rtx')
    assert backend_module('tensorrt_rtx', to_run=False).NAME == 'tensorrt_rtx'


@pytest.mark.parametrize('backend', BACKENDS, ids=KNOWN)
def test_every_precision_needs_a_known_dtype(backend):
    assert {graph_dtype(backend.name, name) for name in backend.precisions} <= set(
        backends.SAME.values()
    )


def test_unknown_precision_lists_the_backends_own():
    with pytest.raises(UnknownNameError, match='valid: fp32, bf16'):
        graph_dtype('openvino', 'fp4')


@pytest.mark.parametrize(
    ('given', 'settled'),
    [
        (('torch', '', 'float32'), ('fp32', 'float32')),
        (('torch', '', 'bfloat16'), ('bf16', 'bfloat16')),
        (('torch', 'bf16', 'float32'), ('bf16', 'bfloat16')),
        (('openvino', 'bf16', 'float32'), ('bf16', 'float32')),
        (('ort', '', 'float16'), ('fp16', 'float16')),
    ],
)
def test_precision_and_dtype_settle_each_other(given, settled):
    assert settle_precision(*given, 'float32') == settled


def test_precision_and_dtype_that_contradict_each_other_are_refused():
    with pytest.raises(ConfigError, match='takes a float16 model'):
        settle_precision('ort', 'fp16', 'bfloat16', 'float32')
    with pytest.raises(ConfigError, match='does not compute in bfloat16'):
        settle_precision('ort', '', 'bfloat16', 'float32')


def test_whatever_does_not_run_the_policy_says_why():
    assert all(status.lacks for status in probe_all() if not status.runs_policy)


@pytest.mark.parametrize('name', KNOWN)
def test_missing_module_is_named_with_its_command(name, absent):
    module = next(backend.module for backend in backends.BACKENDS if backend.name == name)
    absent(module)
    status = probe(name)
    assert not status.installed
    assert status.version == status.device == ''
    assert f'the Python module {module}' in status.lacks
    assert status.get_command.startswith('pip install ')


def test_installed_module_reports_its_devices(install):
    install('onnxruntime', "def get_available_providers(): return ['CPUExecutionProvider']")
    status = probe('ort')
    assert status.installed
    assert status.device == 'CPUExecutionProvider'
    assert status.get_command == ''
    assert status.runs_policy
    assert status.lacks == ()


def test_broken_module_is_reported_not_raised(install):
    install('onnxruntime', "raise OSError('libonnx.so: cannot open')")
    status = probe('ort')
    assert any('OSError: libonnx.so: cannot open' in reason for reason in status.lacks)


def test_tensorrt_without_a_gpu_lacks_the_gpu(install, monkeypatch):
    install('tensorrt', '')
    cuda = types.SimpleNamespace(is_available=lambda: False)
    monkeypatch.setattr(torch, 'cuda', cuda)
    status = probe('tensorrt')
    assert status.installed
    assert backends.GPU_NEEDED in status.lacks


def test_unknown_backend_lists_the_known_ones():
    with pytest.raises(UnknownNameError, match='valid: ' + ', '.join(KNOWN)):
        probe('cuda')
