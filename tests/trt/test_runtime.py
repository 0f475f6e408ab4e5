"""A model on engines against the same model on PyTorch; the engines run torch's modules."""

import gc
import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.trt.tiny_engines import (
    MODELS,
    PRUNE_LAYERS,
    RELEVANCE_LAYER,
    compare_policies,
    engine_policy,
    engines_of,
    frames_of,
    tiny_model,
    tiny_reuse,
    torch_policy,
)
from vla_cache_models.attendance import one_row, resolve_attendance
from vla_cache_models.batching import act_together
from vla_cache_models.policy import make_policy
from vla_cache_models.probe import AttentionProbe
from vla_cache_models.vla import Vla
from vla_cache_ros.core.errors import ConfigError, EngineError
from vla_cache_ros.core.kv_cache import KVCache
from vla_cache_ros.core.types import ActionChunk
from vla_cache_trt.backends.common import BoundBuffers
from vla_cache_trt.backends.torch_eager import TorchEngine
from vla_cache_trt.graphs import model_graphs
from vla_cache_trt.runtime import EngineNetwork, EngineSet, attach

pytestmark = pytest.mark.slow

TOLERANCE = 1e-5
ENTROPY = {'schedule': 'code', 'fixed_ratios': ()}


@pytest.fixture(scope='module', params=MODELS)
def model(request: pytest.FixtureRequest) -> Vla:
    return tiny_model(request.param)


@pytest.fixture(scope='module')
def oft() -> Vla:
    return tiny_model('openvla_oft')


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Every run of an engine: first output's name and bucket."""
    seen: list[tuple[str, int]] = []
    run = BoundBuffers.run

    def counted(self: BoundBuffers, bucket: int):
        outputs = run(self, bucket)
        seen.append((next(iter(outputs)), bucket))
        return outputs

    monkeypatch.setattr(BoundBuffers, 'run', counted)
    return seen


def test_dense_steps_equal_torch(model: Vla) -> None:
    reuse = tiny_reuse(model, enabled=False)
    worst, modes = compare_policies(
        torch_policy(model, reuse),
        engine_policy(model, reuse, engines_of(model)),
        frames_of(model, 2),
    )
    assert modes == {'dense'}
    assert worst <= TOLERANCE


def test_cached_steps_equal_torch_at_every_size(model: Vla) -> None:
    worst, modes = compare_policies(
        torch_policy(model, tiny_reuse(model)),
        engine_policy(model, tiny_reuse(model), engines_of(model)),
        frames_of(model, 5),
    )
    assert modes == {'keyframe', 'cached'}
    assert worst <= TOLERANCE


def test_a_step_without_anything_to_reuse_is_the_dense_step_bit_for_bit(model: Vla) -> None:
    engines = engines_of(model)
    cached = engine_policy(model, tiny_reuse(model), engines)
    dense = engine_policy(model, tiny_reuse(model, enabled=False), engines)
    for seed in range(3):  # every frame is another scene
        (frame,) = frames_of(model, 1, seed)
        found, wanted = cached.act(frame), dense.act(frame)
        assert found.report is not None
        assert found.report.plan.is_dense
        assert np.array_equal(found.actions, wanted.actions)


def test_steps_that_want_entropies_run_in_torch_on_the_same_cache(
    oft: Vla, runs: list[tuple[str, int]]
) -> None:
    reuse = tiny_reuse(oft, **ENTROPY, entropy_refresh='keyframe')
    policy = engine_policy(oft, reuse, engines_of(oft))
    frames = frames_of(oft, 4)
    worst, modes = compare_policies(torch_policy(oft, reuse), policy, frames[:1])
    assert [name for name, _ in runs if name == 'hidden_out'] == []
    rest, modes = compare_policies_after(oft, reuse, policy, frames)
    assert [name for name, _ in runs if name == 'hidden_out'] != []
    assert modes == {'cached'}
    assert max(worst, rest) <= TOLERANCE


def compare_policies_after(model, reuse, policy, frames) -> tuple[float, set[str]]:
    """Compare from the second frame on; the policy has seen the first one."""
    on_torch = torch_policy(model, reuse)
    on_torch.act(frames[0])
    return compare_policies(on_torch, policy, frames[1:])


def test_an_instruction_of_another_length_flushes_and_stays_right(model: Vla) -> None:
    frames = frames_of(model, 4)
    words = 'place the milk' if model.name == 'small' else 'put the bowl on top of the cabinet'
    frames[2:] = [replace(frame, instruction=words) for frame in frames[2:]]
    worst, _ = compare_policies(
        torch_policy(model, tiny_reuse(model)),
        engine_policy(model, tiny_reuse(model), engines_of(model)),
        [*frames, frames[1]],
    )
    assert worst <= TOLERANCE


def test_openvla_generates_at_bucket_one(runs: list[tuple[str, int]]) -> None:
    model = tiny_model('openvla')
    policy = engine_policy(model, tiny_reuse(model), engines_of(model))
    policy.act(frames_of(model, 1)[0])
    decoder = [bucket for name, bucket in runs if name == 'hidden_out']
    groups = 2
    assert decoder.count(1) == groups * 6
    assert len(decoder) == groups * 7


def test_policies_that_take_turns_on_one_set_do_not_disturb_each_other(model: Vla) -> None:
    engines = engines_of(model)
    on_engines = attach(model, engines)
    reuse = tiny_reuse(model)
    pairs = [
        (torch_policy(model, reuse), make_policy(on_engines, reuse), frames_of(model, 4, seed))
        for seed in (1, 2)
    ]
    for step in range(4):
        for on_torch, policy, frames in pairs:
            worst, _ = compare_policies(on_torch, policy, frames[step : step + 1])
            assert worst <= TOLERANCE


def test_steps_on_engines_and_on_torch_share_one_cache(oft: Vla) -> None:
    reuse = tiny_reuse(oft)
    mixed, plain = engine_policy(oft, reuse, engines_of(oft)), torch_policy(oft, reuse)
    models = [mixed._model, oft.share()]
    for step, frame in enumerate(frames_of(oft, 5)):
        mixed._model = models[step % 2]
        worst, _ = compare_policies(plain, mixed, [frame])
        assert worst <= TOLERANCE
    slots = oft.max_tokens - 1
    for name in 'kv':
        found, wanted = getattr(mixed._cache, name), getattr(plain._cache, name)
        torch.testing.assert_close(
            found[:, :, :, :slots], wanted[:, :, :, :slots], atol=TOLERANCE, rtol=0
        )


def test_bindings_go_with_the_cache(oft: Vla) -> None:
    network = attach(oft, engines_of(oft)).network
    config = oft.decoder.config
    cache = KVCache(config.layers, config.kv_heads, oft.max_tokens, config.head_dim)
    positions = torch.tensor([3])
    network.decoder(torch.zeros(1, 1, config.width), positions, one_row(3), cache)
    memory = weakref.ref(cache.k)
    del cache
    gc.collect()
    assert memory() is None


def test_attaching_again_replaces_the_engines(oft: Vla) -> None:
    first = attach(oft, engines_of(oft))
    second = attach(first, engines_of(oft))
    assert isinstance(second.network, EngineNetwork)
    assert second.network.torch is oft.network
    assert second.decoder.config is oft.decoder.config


def test_parts_without_an_engine_run_in_torch(model: Vla, runs: list[tuple[str, int]]) -> None:
    engines = engines_of(model)
    decoder = {n: e for n, e in engines.engines.items() if n.startswith('decoder')}
    policy = engine_policy(model, tiny_reuse(model), EngineSet(decoder, RELEVANCE_LAYER))
    worst, _ = compare_policies(
        torch_policy(model, tiny_reuse(model)), policy, frames_of(model, 3)
    )
    assert worst <= TOLERANCE
    assert {name for name, _ in runs} == {'hidden_out'}


def test_engines_that_do_not_cover_the_decoder_are_refused(oft: Vla) -> None:
    engines = dict(engines_of(oft).engines)
    del engines['decoder_1_3']
    with pytest.raises(EngineError, match='do not cover the 3 layers'):
        attach(oft, EngineSet(engines))
    with pytest.raises(EngineError, match='given none'):
        attach(oft, EngineSet({}))


def test_engines_of_another_model_are_refused(oft: Vla) -> None:
    with pytest.raises(EngineError, match='belong to another model or dtype'):
        attach(oft, engines_of(tiny_model('openvla')))


def test_other_reuse_settings_than_the_engines_are_refused(oft: Vla) -> None:
    frames = frames_of(oft, 3)
    other = engine_policy(oft, tiny_reuse(oft, relevance_layer=2), engines_of(oft))
    with pytest.raises(EngineError, match='layer 2 is wanted .* layer 1'):
        other.act(frames[0])
    cut = engine_policy(oft, tiny_reuse(oft, prune_layers=(2,)), engines_of(oft))
    with pytest.raises(EngineError, match=r'0\.\.2 run as one group .* 0\.\.1, 1\.\.3'):
        cut.act(frames[0])


def test_more_rows_than_the_largest_bucket_are_refused(oft: Vla) -> None:
    engines = dict(engines_of(oft).engines)
    for graph in model_graphs(oft, PRUNE_LAYERS, RELEVANCE_LAYER):
        if graph.spec.cache is not None:
            engines[graph.spec.name] = TorchEngine(graph, (8,), 'cpu')
    policy = engine_policy(oft, tiny_reuse(oft), EngineSet(engines, RELEVANCE_LAYER))
    with pytest.raises(ConfigError, match='largest bucket holds 8'):
        policy.act(frames_of(oft, 1)[0])


def test_a_text_longer_than_the_engines_take_is_refused() -> None:
    model = tiny_model('small')
    decoder = attach(model, engines_of(model)).decoder
    n = model.layout.num_tokens
    layout = replace(model.layout, text=(1, n))
    x = torch.zeros(1, n, decoder.config.width)
    probe = AttentionProbe(layout, RELEVANCE_LAYER)
    with pytest.raises(EngineError, match=f'{n - 1} tokens and decoder_1_3 takes 1 to 12'):
        decoder(x, torch.arange(n), resolve_attendance(layout), None, probe=probe)


def test_sessions_on_engines_run_one_after_another_as_each_does_alone(oft: Vla) -> None:
    reuse, engines = tiny_reuse(oft), engines_of(oft)
    together, alone = ([engine_policy(oft, reuse, engines) for _ in range(2)] for _ in range(2))
    sizes: list[int] = []
    for frame in frames_of(oft, 3):
        results = act_together(together, [frame, frame], sizes.append)
        for result, policy in zip(results, alone, strict=True):
            assert isinstance(result, ActionChunk)
            assert np.array_equal(result.actions, policy.act(frame).actions)
    assert sizes == [1] * 6
