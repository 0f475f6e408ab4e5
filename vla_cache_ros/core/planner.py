r"""From what changed to what is recomputed: the reuse plan as a pure function of its inputs.

    static      = similarity >= threshold and difference <= threshold, the top k of each camera
    candidates  = static, young enough, camera not moving, not among the top k by relevance
    dropped_g   = the first max(1, int(r_l |candidates|)) candidates by rank, at prune layer l
    recompute_g = all tokens - (dropped_0 + .. + dropped_g)

Candidates are ranked by similarity (the published code takes them in index order, so it favours
the image's top rows); equally similar ones, frequent in simulation, by lower relevance,
then index.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vla_cache_ros.core.config import ReuseConfig
from vla_cache_ros.core.errors import ConfigError
from vla_cache_ros.core.layout import CameraSpan, TokenLayout
from vla_cache_ros.core.patches import PatchChange
from vla_cache_ros.core.plan import LayerGroup, PatchStatus, ReusePlan


@dataclass(frozen=True)
class PlanInputs:
    """All that a plan depends on besides the configuration and the layout.

    Attributes:
        change: How each vision token differs from its reference pixels.
        age: Steps since each vision token's K/V was computed in every group, int32 [V].
        relevance: Text-to-vision attention of an earlier step, float32 [V]; None before there is
            one, and then nothing is reused if the configuration protects relevant tokens.
        ratios: Share of the candidates that each layer may reuse, float64 [L]; None before there
            is one, and then nothing is reused under an entropy schedule.
    """

    change: PatchChange
    age: NDArray[np.int32]
    relevance: NDArray[np.float32] | None = None
    ratios: NDArray[np.float64] | None = None


def layer_groups(config: ReuseConfig, num_layers: int) -> tuple[LayerGroup, ...]:
    """The layer groups that the prune layers bound; a single one where reuse is not enabled.

    Raises:
        ConfigError: The decoder has no such layer.
    """
    if not config.enabled:
        return (LayerGroup(0, num_layers),)
    if config.prune_layers[-1] >= num_layers:
        raise ConfigError(
            f'prune layer {config.prune_layers[-1]} does not exist; the decoder has layers '
            f'0..{num_layers - 1}. preset(name, num_layers) scales the published layers.'
        )
    bounds = sorted({0, *config.prune_layers, num_layers})
    return tuple(LayerGroup(a, b) for a, b in zip(bounds, bounds[1:], strict=False))


def dense_plan(
    config: ReuseConfig,
    layout: TokenLayout,
    num_layers: int,
    age: NDArray[np.int32] | None = None,
    status: NDArray[np.uint8] | None = None,
) -> ReusePlan:
    """The plan that recomputes every token in every group."""
    groups = layer_groups(config, num_layers)
    if age is None:
        age = np.zeros(layout.num_vision, dtype=np.int32)
    if status is None:
        status = np.full(layout.num_vision, PatchStatus.REFRESHED, dtype=np.uint8)
    every = np.arange(layout.num_tokens, dtype=np.int64)
    return ReusePlan(layout.num_tokens, groups, (every,) * len(groups), status, age)


def make_plan(
    inputs: PlanInputs, config: ReuseConfig, layout: TokenLayout, num_layers: int
) -> ReusePlan:
    """Decide which tokens run in which layers.

    Args:
        inputs: What changed, how old it is, what matters, how much may be reused.
        config: The reuse configuration.
        layout: The token layout.
        num_layers: L.

    Returns:
        A nested plan; the dense one where there is no candidate.

    Raises:
        ConfigError: A prune layer does not exist in the decoder.
    """
    candidates, status = _candidates(inputs, config, layout)
    age = inputs.age.copy()
    ratios = _group_ratios(inputs, config)
    if not config.enabled or ratios is None or not candidates.any():
        return dense_plan(config, layout, num_layers, age, status)

    ranked = _ranked(inputs, candidates)
    runs = np.ones(layout.num_tokens, dtype=np.bool_)
    groups = layer_groups(config, num_layers)
    recompute: list[NDArray[np.int64]] = []
    for group in groups:
        if group.start in ratios:
            dropped = ranked[: max(1, int(ratios[group.start] * len(ranked)))]
            runs[layout.vision[0] + dropped] = False
            status[dropped] = PatchStatus.REUSED
        recompute.append(np.flatnonzero(runs))
    return ReusePlan(layout.num_tokens, groups, tuple(recompute), status, age)


def _candidates(
    inputs: PlanInputs, config: ReuseConfig, layout: TokenLayout
) -> tuple[NDArray[np.bool_], NDArray[np.uint8]]:
    """Which vision tokens may be reused, bool [V], and why the others may not, uint8 [V]."""
    similarity = inputs.change.similarity
    static = similarity >= config.similarity_threshold
    static &= inputs.change.difference <= config.difference_threshold
    status = np.where(static, PatchStatus.REFRESHED, PatchStatus.CHANGED).astype(np.uint8)

    candidates = static.copy()
    if config.age_limit_steps is not None:
        spread = np.arange(layout.num_vision) % (config.age_stagger_steps + 1)
        expired = static & (inputs.age >= config.age_limit_steps - spread)
        status[expired] = PatchStatus.EXPIRED
        candidates &= ~expired
    for camera in layout:
        own = _vision_slice(camera, layout)
        changed_share = 1 - np.count_nonzero(static[own]) / camera.size
        if changed_share > config.camera_motion_fraction:
            candidates[own] = False
        elif config.static_fraction < 1:
            limit = round(config.static_fraction * camera.size)
            candidates[own] &= _top(np.where(candidates[own], similarity[own], -1), limit)
    if config.uses_relevance:
        if inputs.relevance is None:
            return np.zeros_like(candidates), status
        for camera in layout:
            own = _vision_slice(camera, layout)
            limit = round(config.protected_fraction * camera.size)
            protected = candidates[own] & _top(inputs.relevance[own], limit)
            status[own][protected] = PatchStatus.PROTECTED
            candidates[own] &= ~protected
    return candidates, status


def _group_ratios(inputs: PlanInputs, config: ReuseConfig) -> dict[int, float] | None:
    """Prune layer -> share of the candidates reused from it on."""
    if config.schedule == 'fixed':
        return dict(zip(config.prune_layers, config.fixed_ratios, strict=True))
    if inputs.ratios is None:
        return None
    return {layer: float(inputs.ratios[layer]) for layer in config.prune_layers}


def _ranked(inputs: PlanInputs, candidates: NDArray[np.bool_]) -> NDArray[np.int64]:
    """The candidates' vision indices, the safest to reuse first."""
    tokens = np.flatnonzero(candidates)
    keys = [-inputs.change.similarity[tokens]]
    if inputs.relevance is not None:
        keys.insert(0, inputs.relevance[tokens])
    return tokens[np.lexsort(keys)]


def _top(score: NDArray[np.float32], count: int) -> NDArray[np.bool_]:
    """Mask of the `count` highest scores; ties go to the lower index."""
    mask = np.zeros(len(score), dtype=np.bool_)
    mask[np.argsort(-score, kind='stable')[:count]] = True
    return mask


def _vision_slice(camera: CameraSpan, layout: TokenLayout) -> slice:
    """The camera's entries in arrays over the vision tokens."""
    first = layout.vision[0]
    return slice(camera.start - first, camera.stop - first)
