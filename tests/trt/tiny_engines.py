"""Tiny models, their engines on any backend, and random plans to hold them against PyTorch."""

from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tests.models import conftest as small
from tests.models.prismatic import conftest as prismatic
from vla_cache_models.attendance import resolve_attendance
from vla_cache_models.decoder import Decoder
from vla_cache_models.policy import VlaPolicy
from vla_cache_models.probe import AttentionProbe
from vla_cache_models.small.vla import SmallVla
from vla_cache_models.vla import Vla
from vla_cache_ros.core.config import ReuseConfig
from vla_cache_ros.core.kv_cache import KVCache
from vla_cache_ros.core.layout import CameraSpan, TokenLayout
from vla_cache_ros.core.types import Observation
from vla_cache_trt.backends import torch_eager
from vla_cache_trt.engine import Graph
from vla_cache_trt.graphs import model_graphs
from vla_cache_trt.runtime import EngineSet, attach

MODELS = ('small', *prismatic.MODELS)
INSTRUCTION = prismatic.INSTRUCTION
LAYERS = 3
PRUNE_LAYERS = (1,)
RELEVANCE_LAYER = 1


def tiny_model(name: str) -> Vla:
    """One of MODELS with seeded weights."""
    if name == 'small':
        config = small.tiny_config()
        config = replace(config, decoder=replace(config.decoder, layers=LAYERS))
        return SmallVla(small.make_checkpoint(config))
    model: Any = prismatic.tiny_vla(name, kv_heads=2, layers=LAYERS)
    return model


def tiny_reuse(model: Vla, **changes: Any) -> ReuseConfig:
    """Two layer groups, the relevance layer in the second one, half of what is static reused."""
    always = {'auto_off': False, 'keyframe_period_steps': None, 'age_limit_steps': None}
    tiny = {
        'prune_layers': PRUNE_LAYERS,
        'relevance_layer': RELEVANCE_LAYER,
        'protected_fraction': 0.1,
        'static_fraction': 0.8,
        'schedule': 'fixed',
        'fixed_ratios': (0.7,),
    }
    return replace(model.preset('safe'), **(always | tiny | changes))


def frames_of(model: Vla, count: int, seed: int = 0) -> list[Observation]:
    """An episode in which a few spots change from frame to frame."""
    rng = np.random.default_rng(seed)
    make = small.make_observation if model.name == 'small' else prismatic.make_observation
    frames = [make(rng)]
    while len(frames) < count:
        frames.append(prismatic.moved(frames[-1], rng))
    return frames


def buckets_for(graph: Graph) -> tuple[int, ...]:
    """1, two thirds, and the longest sequence."""
    if graph.spec.cache is None:
        return ()
    longest = int(graph.spec.cache.shape[3]) - 1
    return (1, 2 * longest // 3, longest)


def engines_of(
    model: Vla,
    module: ModuleType = torch_eager,
    onnx_folder: Path | None = None,
    folder: Path | None = None,
    precision: str = 'fp32',
) -> EngineSet:
    """All engines of a tiny model."""
    engines = {}
    for graph in model_graphs(model, PRUNE_LAYERS, RELEVANCE_LAYER):
        name = graph.spec.name
        onnx = None if onnx_folder is None else onnx_folder / f'{name}.onnx'
        own = (folder or Path()) / name
        if folder is not None:
            own.mkdir(parents=True, exist_ok=True)
        engines[name] = module.load_engine(graph, onnx, own, precision, buckets_for(graph), 'cpu')
    return EngineSet(engines, RELEVANCE_LAYER)


def engine_policy(model: Vla, reuse: ReuseConfig, engines: EngineSet) -> VlaPolicy:
    """A policy on engines."""
    return VlaPolicy(attach(model, engines), reuse)


def torch_policy(model: Vla, reuse: ReuseConfig) -> VlaPolicy:
    """The same on PyTorch."""
    return VlaPolicy(model.share(), reuse)


def compare_policies(
    on_torch: VlaPolicy, on_engines: VlaPolicy, frames: list[Observation]
) -> tuple[float, set[str]]:
    """Largest difference of the actions, and the modes of the steps; the plans must agree."""
    worst, modes = 0.0, set()
    for frame in frames:
        wanted, found = on_torch.act(frame), on_engines.act(frame)
        assert wanted.report is not None
        assert found.report is not None
        assert found.report.mode == wanted.report.mode
        pairs = zip(wanted.report.plan.recompute, found.report.plan.recompute, strict=True)
        assert all(np.array_equal(a, b) for a, b in pairs)
        worst = max(worst, float(np.abs(wanted.actions - found.actions).max()))
        modes.add(found.report.mode)
    return worst, modes


def random_layout(
    rng: np.random.Generator, longest: int, num_vision: int, max_text: int
) -> TokenLayout:
    """Any attention rule, causal or not, any length of the text and of what is behind it."""
    half = num_vision // 2
    cameras = (CameraSpan('a', 0, 1, half), CameraSpan('b', half, 1, num_vision - half))
    behind = int(rng.integers(1, longest - num_vision + 1))
    text = (num_vision, num_vision + int(rng.integers(1, min(max_text, behind) + 1)))
    return TokenLayout(
        cameras,
        text,
        (text[1], text[1]),
        num_vision + behind,
        attention=str(rng.choice(['all', 'vision_isolated', 'camera_isolated'])),
        causal=bool(rng.integers(2)),
    )


def random_caches(decoder: Decoder, slots: int, seed: int) -> tuple[KVCache, KVCache]:
    """Two caches with the same rows of an earlier step."""
    config = decoder.config
    caches = [KVCache(config.layers, config.kv_heads, slots, config.head_dim) for _ in range(2)]
    generator = torch.Generator().manual_seed(seed)
    for name in 'kv':
        rows = torch.randn(caches[0].k.shape, generator=generator)
        for cache in caches:
            getattr(cache, name).copy_(rows)
    return caches[0], caches[1]


def run_plan(
    decoder: Any,
    cache: KVCache | None,
    layout: TokenLayout,
    recompute: tuple[np.ndarray, ...],
    x: Tensor,
) -> tuple[Tensor, Tensor]:
    """Run the layer groups on nested rows; returns hidden and relevance."""
    visible = torch.from_numpy(layout.visible())
    probe = AttentionProbe(layout, RELEVANCE_LAYER, visible=visible)
    running, ends = recompute[0], (*PRUNE_LAYERS, decoder.config.layers)
    start = 0
    for slots, stop in zip(recompute, ends, strict=True):
        x = x[:, torch.from_numpy(np.searchsorted(running, slots))]
        running = slots
        attendance = resolve_attendance(layout, slots)
        x = decoder(x, torch.from_numpy(slots), attendance, cache, start, stop, probe)
        start = stop
    assert probe.relevance is not None
    return x.clone(), probe.relevance
