"""TensorRT: what is built, bound and run, against a stand-in for the package."""

import sys
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.trt.fake_tensorrt import (
    BUCKETS,
    PLAN,
    SLOTS,
    FakeRecorder,
    FakeTensorRt,
    fill,
    install,
    small_cache,
    small_graph,
)
from tests.trt.gpu_parity import assert_same_as_torch
from vla_cache_ros.core.errors import EngineError
from vla_cache_trt.backends import nvidia, tensorrt, torch_eager
from vla_cache_trt.engine import Graph


@pytest.fixture
def graph() -> Graph:
    return small_graph()


@pytest.fixture
def trt(monkeypatch, graph) -> FakeTensorRt:
    package = install(monkeypatch, FakeTensorRt('tensorrt', graph))
    monkeypatch.setattr(tensorrt, 'check_cuda', lambda device, name: torch.device('cpu'))
    return package


@pytest.fixture
def onnx(tmp_path) -> Path:
    path = tmp_path / 'graph.onnx'
    path.write_bytes(b'onnx')
    return path


def build(graph: Graph, onnx: Path, folder: Path, on_progress=lambda done, total: None) -> None:
    tensorrt.compile_graph(graph, onnx, folder, 'fp32', BUCKETS, on_progress)


def load(graph: Graph, folder: Path) -> tensorrt.TensorRtEngine:
    return tensorrt.load_engine(graph, None, folder, 'fp32', BUCKETS, 'cuda')


@pytest.fixture
def engine(trt, graph, onnx, tmp_path) -> tensorrt.TensorRtEngine:
    build(graph, onnx, tmp_path / 'plans' / 'graph')
    return load(graph, tmp_path / 'plans' / 'graph')


def test_one_profile_per_bucket_holds_that_size_alone(trt, engine):
    assert [profile['slots'] for profile in trt.profiles] == [((b,), (b,), (b,)) for b in BUCKETS]
    assert trt.profiles[1]['hidden'] == ((1, 9, 64), (1, 9, 64), (1, 9, 64))
    assert set(trt.profiles[0]) == {'hidden', 'slots', 'mask'}


def test_the_build_is_in_the_precision_of_the_graph_with_attention_decomposable(trt, engine):
    assert ('clear_flag', 'TF32') in trt.calls
    assert trt.layers[0].decomposable


def test_timings_are_shared_by_the_graphs_of_a_model(trt, graph, onnx, tmp_path):
    build(graph, onnx, tmp_path / 'plans' / 'one')
    build(graph, onnx, tmp_path / 'plans' / 'two')
    assert [call for call in trt.calls if call[0] == 'create_timing_cache'] == [
        ('create_timing_cache', b''),
        ('create_timing_cache', b'+'),
    ]
    assert (tmp_path / 'plans' / tensorrt.TIMINGS).read_bytes() == b'++'


def test_progress_grows_to_the_end(trt, graph, onnx, tmp_path):
    steps = []
    build(graph, onnx, tmp_path / 'graph', lambda done, total: steps.append(done / total))
    assert steps == sorted(set(steps))
    assert steps[0] == 0.25
    assert steps[-1] == 1


def test_an_interrupted_build_stops_and_leaves_no_plan(trt, graph, onnx, tmp_path):
    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(graph, onnx, tmp_path / 'graph', interrupt)
    assert not list(tmp_path.rglob('plan*'))


def test_every_bucket_has_a_context_with_its_profile_shapes_and_addresses(trt, engine, graph):
    k, v = small_cache(graph)
    bound = engine.bind(k, v)
    assert [context.profile for context in trt.contexts] == [0, 1, 2]
    assert {context.strategy for context in trt.contexts} == {'user'}
    assert len({context.scratch for context in trt.contexts}) == 1
    for bucket, context in zip(BUCKETS, trt.contexts, strict=True):
        assert context.shapes['hidden'] == (1, bucket, 64)
        assert context.addresses['k'] == k.data_ptr()
        assert context.addresses['v'] == v.data_ptr()
        assert context.addresses['hidden'] == bound.inputs(bucket)['hidden'].data_ptr()
    assert len({context.addresses['hidden'] for context in trt.contexts}) == len(BUCKETS)


def test_every_bucket_is_captured_once_and_addresses_are_bound_once(trt, engine, graph):
    bound = engine.bind(*small_cache(graph))
    assert FakeRecorder.recorded == len(BUCKETS)
    bound_before = trt.names().count('set_tensor_address')
    for bucket in BUCKETS:
        fill(dict(bound.inputs(bucket)), bucket, seed=bucket)
        bound.run(bucket)
    assert trt.names().count('set_tensor_address') == bound_before


def test_binding_leaves_the_cache_in_use_as_it_is(engine, graph):
    k, v = small_cache(graph)
    before = k.clone(), v.clone()
    bound = engine.bind(k, v)
    real = slice(0, SLOTS - 1)
    assert torch.equal(k[:, :, :, real], before[0][:, :, :, real])
    assert torch.equal(v[:, :, :, real], before[1][:, :, :, real])
    assert k.isfinite().all()
    assert v.isfinite().all()
    assert not any(tensor.any() for tensor in bound.inputs(BUCKETS[0]).values())


def test_a_run_executes_then_writes_its_rows_and_allocates_nothing(trt, engine, graph):
    class Operators(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            trt.calls.append((function.__name__,))
            return function(*args, **(kwargs or {}))

    bound = engine.bind(*small_cache(graph))
    fill(dict(bound.inputs(9)), 7, seed=0)
    trt.computes = False  # what the stand-in computes with is not the backend's
    trt.calls.clear()
    with Operators():
        bound.run(9)
    assert trt.names() == ['execute', 'index_copy_.default', 'index_copy_.default']
    assert trt.calls[0] == ('execute', 9, 77)


def test_runs_equal_pytorch_at_every_bucket_in_any_order(engine, graph):
    k, v = small_cache(graph)
    own_k, own_v = k.clone(), v.clone()
    bound = engine.bind(k, v)
    reference = torch_eager.load_engine(graph, None, Path(), 'fp32', BUCKETS).bind(own_k, own_v)
    for step, (bucket, rows) in enumerate([(23, 23), (4, 1), (9, 9), (4, 4), (23, 10), (9, 5)]):
        for each in (bound, reference):
            fill(dict(each.inputs(bucket)), rows, seed=step)
        found, wanted = bound.run(bucket), reference.run(bucket)
        for name in wanted:
            torch.testing.assert_close(found[name], wanted[name])
        for ours, theirs in ((k, own_k), (v, own_v)):
            torch.testing.assert_close(ours[:, :, :, :-1], theirs[:, :, :, :-1])


def test_buckets_other_than_those_of_the_plan_are_refused(engine, graph, tmp_path):
    with pytest.raises(EngineError, match=r'has 3 profiles for 2 buckets \[4, 9\]'):
        tensorrt.load_engine(graph, None, tmp_path / 'plans' / 'graph', 'fp32', (4, 9), 'cuda')


def test_sizes_other_than_those_of_the_plan_are_refused(engine, graph, tmp_path):
    folder = tmp_path / 'plans' / 'graph'
    other = tensorrt.load_engine(graph, None, folder, 'fp32', (4, 9, 20), 'cuda')
    with pytest.raises(EngineError, match='built for other buckets'):
        other.bind(*small_cache(graph))


def test_an_address_that_tensorrt_cannot_take_is_refused(monkeypatch, engine, graph):
    monkeypatch.setattr(nvidia, 'ALIGNMENT_BYTES', 1 << 60)
    with pytest.raises(EngineError, match='does not divide'):
        engine.bind(*small_cache(graph))


def test_a_run_that_fails_says_so(trt, engine, graph):
    bound = engine.bind(*small_cache(graph))
    trt.loads = False
    with pytest.raises(EngineError, match='decoder_0_2 failed to run'):
        bound.run(4)


def test_a_missing_package_is_named_with_the_way_to_it(monkeypatch, graph, onnx, tmp_path):
    monkeypatch.setitem(sys.modules, 'tensorrt', None)
    with pytest.raises(EngineError, match=r'not installed.*JetPack.*pip install'):
        build(graph, onnx, tmp_path / 'graph')


def test_bindings_without_libraries_are_named_with_the_way_to_them(
    monkeypatch, graph, onnx, tmp_path
):
    (tmp_path / 'tensorrt.py').write_text(
        "raise ImportError('libnvonnxparser.so.11: cannot open shared object file')"
    )
    monkeypatch.delitem(sys.modules, 'tensorrt', raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(EngineError, match=r'without its libraries \(libnvonnxparser.so.11'):
        build(graph, onnx, tmp_path / 'graph')


def test_an_old_package_is_refused(trt, graph, onnx, tmp_path):
    trt.__version__ = '10.2.0'
    with pytest.raises(EngineError, match=r'TensorRT is 10.2.0; 10.3 or later'):
        build(graph, onnx, tmp_path / 'graph')


def test_a_machine_without_a_gpu_is_told_so(monkeypatch, graph, onnx, tmp_path):
    install(monkeypatch, FakeTensorRt('tensorrt', graph))
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    with pytest.raises(EngineError, match='needs an NVIDIA GPU and torch sees none'):
        build(graph, onnx, tmp_path / 'graph')


def test_a_file_that_does_not_parse_is_named(trt, graph, onnx, tmp_path):
    trt.parses = False
    with pytest.raises(EngineError, match=r'cannot read .*graph.onnx: no such operator'):
        build(graph, onnx, tmp_path / 'graph')


def test_an_edited_file_is_refused(trt, graph, onnx, tmp_path):
    trt.inputs[0].shape = (1, -1, 32)
    with pytest.raises(EngineError, match=r'input hidden is FLOAT \[1, -1, 32\]'):
        build(graph, onnx, tmp_path / 'graph')
    trt.inputs[0].name = 'other'
    with pytest.raises(EngineError, match='its inputs are k, mask, other'):
        build(graph, onnx, tmp_path / 'graph')


def test_a_missing_plan_is_named_with_the_command(trt, graph, tmp_path):
    with pytest.raises(EngineError, match='is missing. Build it with: vla-cache engine build'):
        load(graph, tmp_path)


@pytest.mark.parametrize('length', [0, 3])
def test_a_truncated_plan_is_refused(trt, graph, tmp_path, length):
    (tmp_path / nvidia.PLAN).write_bytes(PLAN[:length])
    with pytest.raises(EngineError, match=r'Rebuild it .*vla-cache engine build'):
        load(graph, tmp_path)


@pytest.mark.parametrize(
    ('diagnostics', 'words'),
    [
        (0, 'the plan is no good'),
        (1, 'another version'),
        (2, 'another GPU'),
        (4, 'driver is too old'),
        (33, 'another version; the file is damaged'),
    ],
)
def test_a_plan_that_does_not_load_is_explained(trt, graph, tmp_path, diagnostics, words):
    (tmp_path / nvidia.PLAN).write_bytes(PLAN)
    trt.loads, trt.diagnostics = False, diagnostics
    with pytest.raises(EngineError, match=rf'TensorRT 11.4.0 refuses .*8\.9.*{words}'):
        load(graph, tmp_path)


def test_a_plan_of_another_graph_is_refused(trt, engine, graph, tmp_path):
    trt.outputs[0].name = 'tokens'
    with pytest.raises(EngineError, match='is not an engine of decoder_0_2'):
        load(graph, tmp_path / 'plans' / 'graph')


def test_the_identity_names_kind_version_and_gpu(trt):
    assert tensorrt.identity() == {
        'kind': 'tensorrt',
        'version': '11.4.0',
        'compute_capability': '8.9',
    }


@pytest.mark.gpu
@pytest.mark.parametrize('dtype', ['float32', 'float16', 'bfloat16'])
def test_engines_equal_pytorch_on_the_gpu(dtype, tmp_path):
    pytest.importorskip('tensorrt', reason='TensorRT is not installed')
    assert_same_as_torch(tensorrt, dtype, tmp_path)
