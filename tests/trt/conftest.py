"""A tiny model and a backend that compiles nothing, for tests of what surrounds the backends."""

import sys
import types
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.models.conftest import make_checkpoint, make_observation, tiny_config
from vla_cache_models.small.vla import SmallVla
from vla_cache_ros.core.types import Observation
from vla_cache_trt import backends, export
from vla_cache_trt.backends import Backend
from vla_cache_trt.backends.torch_eager import load_engine
from vla_cache_trt.build import Wanted

BUILD = 'vla-cache engine build --backend fake'


class FakeCompiler:
    """Stands in for a backend's module and for the export; engines run the torch modules.

    Attributes:
        compiled: Graphs compiled so far, in order.
        exported: Graphs exported so far, in order.
        fails_at: Graph at which compiling is interrupted.
        wrong: Whether loaded engines compute something else.
    """

    NAME = 'fake'

    def __init__(self) -> None:
        self.compiled: list[str] = []
        self.exported: list[str] = []
        self.fails_at = ''
        self.wrong = False

    def export_onnx(self, graph, path, opset=23):
        self.exported.append(graph.spec.name)
        path.write_text(f'{graph.spec.name} at opset {opset}')

    def compile_graph(self, graph, onnx, folder, precision, buckets, on_progress):
        (folder / 'begun').write_text('half a plan')
        on_progress(1, 2)
        if graph.spec.name == self.fails_at:
            raise KeyboardInterrupt
        (folder / 'begun').unlink()
        (folder / 'plan.bin').write_bytes(f'{onnx.read_text()} {buckets}'.encode() * 9)
        self.compiled.append(graph.spec.name)
        on_progress(2, 2)

    def load_engine(self, graph, onnx, folder, precision, buckets, device):
        assert (folder / 'plan.bin').is_file()
        engine = load_engine(graph, onnx, folder, precision, buckets, device)
        return WrongEngine(engine) if self.wrong else engine


class WrongEngine:
    """Adds one to every output that is a number."""

    def __init__(self, engine):
        self._engine = engine

    def __getattr__(self, name):
        return getattr(self._engine, name)

    def bind(self, k=None, v=None):
        bound = self._engine.bind(k, v)
        run = bound.run

        def run_wrong(bucket):
            outputs = run(bucket)
            for tensor in outputs.values():
                tensor += 1
            return outputs

        bound.run = run_wrong
        return bound


@pytest.fixture
def fake(monkeypatch) -> FakeCompiler:
    """Mount the fake as the backend 'fake', version 1.0."""
    compiler = FakeCompiler()
    backend = Backend(
        name='fake',
        title='a backend for tests',
        module='fake_engine',
        distributions=('fake-engine',),
        get_command='pip install fake-engine',
        runner='fake',
        precisions={'fp32': 'float32', 'int8': 'float32', 'fp16': 'float16'},
        devices=('cpu',),
        needs_onnx=True,
        quick=True,
        find_device=lambda: 'CPU',
    )
    module = types.ModuleType('fake_engine')
    module.__spec__ = types.SimpleNamespace(name='fake_engine')
    monkeypatch.setitem(sys.modules, 'fake_engine', module)
    monkeypatch.setitem(sys.modules, 'vla_cache_trt.backends.fake', compiler)
    monkeypatch.setattr(backends, 'BACKENDS', (*backends.BACKENDS, backend))
    monkeypatch.setattr(backends.importlib.metadata, 'version', _version_of_fake)
    monkeypatch.setattr(export, 'export_onnx', compiler.export_onnx)
    return compiler


_real_version = backends.importlib.metadata.version


def _version_of_fake(name: str) -> str:
    return '1.0' if name == 'fake-engine' else _real_version(name)


@pytest.fixture(scope='session')
def model() -> SmallVla:
    """The small VLA, tiny."""
    return SmallVla(make_checkpoint(tiny_config()))


@pytest.fixture
def wanted(fake, model, tmp_path) -> Wanted:
    """Engines of the tiny model on the fake backend."""
    return Wanted(
        model, model.preset('safe'), 'fake', 'fp32', root=tmp_path / 'engines', command=BUILD
    )


@pytest.fixture
def frames() -> list[Observation]:
    """Five frames in which a few patches change."""
    rng = np.random.default_rng(0)
    frames = [make_observation(rng)]
    for step in range(4):
        images = {name: image.copy() for name, image in frames[-1].images.items()}
        for image in images.values():
            image[8 * step : 8 * step + 8, :8] = rng.integers(0, 256, 3)
        frames.append(replace(frames[-1], images=images))
    return frames


def files_of(folder: Path) -> list[str]:
    """Every file below a folder, relative."""
    return sorted(
        path.relative_to(folder).as_posix() for path in folder.rglob('*') if path.is_file()
    )
