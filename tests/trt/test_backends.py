import sys
import types

import pytest
import torch

from vla_cache_ros.core.errors import UnknownNameError
from vla_cache_trt import backends
from vla_cache_trt.backends import backend_names, probe, probe_all

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


def test_only_torch_runs_the_policy():
    assert [status.name for status in probe_all() if status.runs_policy] == ['torch']


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
    assert status.lacks == (backends.NOT_EXECUTED,)


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
