"""PyTorch under CUDA graphs: what is captured, with a stand-in for the capture itself."""

from pathlib import Path

import pytest
import torch

from tests.trt.fake_tensorrt import (
    BUCKETS,
    SLOTS,
    FakeRecorder,
    fake_gpu,
    fill,
    small_cache,
    small_graph,
)
from tests.trt.gpu_parity import STEPS, assert_same_as_torch
from vla_cache_ros.core.errors import EngineError
from vla_cache_trt.backends import capture, cuda_graph, torch_eager
from vla_cache_trt.engine import Graph


@pytest.fixture
def graph() -> Graph:
    return small_graph()


@pytest.fixture
def engine(monkeypatch, graph) -> cuda_graph.CudaGraphEngine:
    fake_gpu(monkeypatch)
    monkeypatch.setattr(cuda_graph, 'check_cuda', lambda device, name: torch.device('cpu'))
    return cuda_graph.load_engine(graph, None, Path(), 'fp32', BUCKETS)


def test_every_bucket_is_captured_once_the_largest_first(monkeypatch, engine, graph):
    sizes = []
    graph.module.register_forward_pre_hook(lambda module, given: sizes.append(len(given[1])))
    bound = engine.bind(*small_cache(graph))
    assert FakeRecorder.recorded == len(BUCKETS)
    assert list(dict.fromkeys(sizes)) == sorted(BUCKETS, reverse=True)
    assert bound.inputs(9)['slots'].shape == (9,)


def test_binding_touches_the_dummy_slot_alone_and_leaves_it_finite(engine, graph):
    k, v = small_cache(graph)
    before = k.clone(), v.clone()
    engine.bind(k, v)
    for now, then in zip((k, v), before, strict=True):
        assert torch.equal(now[:, :, :, : SLOTS - 1], then[:, :, :, : SLOTS - 1])
        assert now.isfinite().all()


def test_runs_equal_pytorch_bit_by_bit_in_any_order(engine, graph):
    k, v = small_cache(graph)
    own_k, own_v = k.clone(), v.clone()
    bound = engine.bind(k, v)
    reference = torch_eager.load_engine(graph, None, Path(), 'fp32', BUCKETS).bind(own_k, own_v)
    for step, (bucket, rows) in enumerate(STEPS):
        for each in (bound, reference):
            fill(dict(each.inputs(bucket)), rows, seed=step)
        found, wanted = bound.run(bucket), reference.run(bucket)
        assert torch.equal(found['hidden_out'][:, :rows], wanted['hidden_out'][:, :rows])
        assert torch.equal(found['relevance'], wanted['relevance'])
        for ours, theirs in ((k, own_k), (v, own_v)):
            assert torch.equal(ours[:, :, :, :-1], theirs[:, :, :, :-1])


def test_outputs_of_a_bucket_outlive_runs_of_another(engine, graph):
    bound = engine.bind(*small_cache(graph))
    fill(dict(bound.inputs(4)), 4, seed=0)
    kept = bound.run(4)['hidden_out']
    before = kept.clone()
    fill(dict(bound.inputs(23)), 20, seed=1)
    bound.run(23)
    assert torch.equal(kept, before)


def test_a_run_that_cannot_be_captured_is_explained(monkeypatch, engine, graph):
    def refuse(self, work):
        raise RuntimeError('operation not permitted when stream is capturing')

    monkeypatch.setattr(FakeRecorder, 'record', refuse)
    with pytest.raises(EngineError, match=r'bucket 23: operation not permitted.*backend torch'):
        engine.bind(*small_cache(graph))


def test_a_module_on_the_cpu_is_refused(monkeypatch, graph):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    with pytest.raises(EngineError, match='decoder_0_2 is on cpu, wanted on cuda'):
        cuda_graph.load_engine(graph, None, Path(), 'fp32', BUCKETS, 'cuda')


def test_the_cpu_is_no_device_for_it():
    with pytest.raises(EngineError, match='runs on an NVIDIA GPU, not on cpu'):
        capture.check_cuda('cpu', 'torch_cuda_graph')


@pytest.mark.parametrize(('build', 'words'), [(None, 'has no CUDA'), ('13.0', 'nvidia-smi')])
def test_what_a_gpu_lacks_is_named(monkeypatch, build, words):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    monkeypatch.setattr(torch.version, 'cuda', build)
    with pytest.raises(EngineError, match=words):
        capture.check_cuda('cuda', 'torch_cuda_graph')


def test_compiling_writes_nothing(graph, tmp_path):
    steps = []
    cuda_graph.compile_graph(
        graph, None, tmp_path, 'fp32', BUCKETS, lambda done, total: steps.append((done, total))
    )
    assert steps == [(1, 1)]
    assert not list(tmp_path.iterdir())


@pytest.mark.gpu
@pytest.mark.parametrize('dtype', ['float32', 'float16', 'bfloat16'])
def test_replays_equal_eager_bit_by_bit_on_the_gpu(dtype, tmp_path):
    assert_same_as_torch(cuda_graph, dtype, tmp_path, exact=True)


@pytest.mark.gpu
def test_a_replay_allocates_nothing_on_the_gpu():
    graph = small_graph(torch.float16, 'cuda')
    bound = cuda_graph.load_engine(graph, None, Path(), 'fp16', BUCKETS).bind(*small_cache(graph))
    fill(dict(bound.inputs(9)), 9, seed=0)
    torch.cuda.synchronize()
    before = torch.cuda.memory_stats()['allocation.all.allocated']
    bound.run(9)
    torch.cuda.synchronize()
    assert torch.cuda.memory_stats()['allocation.all.allocated'] == before
