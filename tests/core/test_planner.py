from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vla_cache_ros.core.config import ReuseConfig, preset
from vla_cache_ros.core.errors import ConfigError
from vla_cache_ros.core.layout import CameraSpan, TokenLayout
from vla_cache_ros.core.patches import PatchChange
from vla_cache_ros.core.plan import LayerGroup, PatchStatus
from vla_cache_ros.core.planner import PlanInputs, dense_plan, layer_groups, make_plan
from vla_cache_ros.core.schedule import reuse_ratios

LAYERS = 32


def make_layout(side: int, cameras: int = 2) -> TokenLayout:
    """A BOS token, the cameras, then five other tokens."""
    size = side * side
    spans = tuple(CameraSpan(f'cam{i}', 1 + i * size, side, side) for i in range(cameras))
    stop = spans[-1].stop
    return TokenLayout(spans, (stop + 1, stop + 4), (stop + 4, stop + 5), stop + 5)


def random_inputs(layout: TokenLayout, seed: int, relevance: bool = True) -> PlanInputs:
    """Inputs with many ties, as simulation gives them."""
    rng = np.random.default_rng(seed)
    size = layout.num_vision
    similarity = rng.choice([1.0, 1.0, 0.999, 0.9965, 0.9], size).astype(np.float32)
    noisy = rng.random(size) < 0.3
    similarity[noisy] = 0.99 + 0.01 * rng.random(np.count_nonzero(noisy))
    return PlanInputs(
        PatchChange(similarity, (0.04 * rng.random(size)).astype(np.float32)),
        rng.integers(0, 12, size).astype(np.int32),
        rng.integers(0, 40, size).astype(np.float32) / 40 if relevance else None,
        reuse_ratios(rng.random(LAYERS) * 4, 'code'),
    )


configs = st.builds(
    ReuseConfig,
    prune_layers=st.sampled_from([(0,), (2,), (2, 6, 9, 11), (0, 5, 31)]),
    schedule=st.sampled_from(['code', 'paper']),
    difference_threshold=st.sampled_from([0.02, 1.0]),
    static_fraction=st.sampled_from([0.0, 0.3, 1.0]),
    protected_fraction=st.sampled_from([0.0, 0.25, 1.0]),
    age_limit_steps=st.sampled_from([None, 3, 6]),
    age_stagger_steps=st.sampled_from([0, 2]),
    camera_motion_fraction=st.sampled_from([0.3, 0.6, 1.0]),
)
seeds = st.integers(0, 2**31)


@given(configs, seeds, st.integers(1, 5), st.integers(1, 3), st.booleans())
def test_plans_are_nested_and_sound(config, seed, side, cameras, relevance):
    layout = make_layout(side, cameras)
    inputs = random_inputs(layout, seed, relevance)
    plan = make_plan(inputs, config, layout, LAYERS)

    assert [group.start for group in plan.groups] == sorted({0, *config.prune_layers})
    assert plan.groups[-1].stop == LAYERS
    every = set(range(layout.num_tokens))
    before = every
    for slots in plan.recompute:
        assert slots.dtype == np.int64
        assert (np.diff(slots) > 0).all()
        now = set(slots.tolist())
        assert now <= before
        assert now >= set(layout.always_recomputed.tolist())
        before = now

    reused = sorted(every - before)
    vision = np.array(reused, dtype=int) - layout.vision[0]
    assert (plan.status[vision] == PatchStatus.REUSED).all()
    assert np.count_nonzero(plan.status == PatchStatus.REUSED) == len(reused)
    assert (inputs.change.similarity[vision] >= config.similarity_threshold).all()
    assert (inputs.change.difference[vision] <= config.difference_threshold).all()
    if config.age_limit_steps is not None:
        assert (inputs.age[vision] < config.age_limit_steps).all()
    if config.protected_fraction and not relevance:
        assert plan.is_dense
    assert (plan.age == inputs.age).all()


@given(configs, seeds)
def test_a_plan_is_a_pure_function_of_its_inputs(config, seed):
    layout = make_layout(4)
    inputs, untouched = random_inputs(layout, seed), random_inputs(layout, seed)
    first = make_plan(inputs, config, layout, LAYERS)
    make_plan(random_inputs(layout, seed + 1), config, layout, LAYERS)
    second = make_plan(inputs, config, layout, LAYERS)
    for one, other in zip(first.recompute, second.recompute, strict=True):
        assert np.array_equal(one, other)
    assert np.array_equal(first.status, second.status)
    assert first.status is not second.status
    assert np.array_equal(inputs.change.similarity, untouched.change.similarity)
    assert np.array_equal(inputs.age, untouched.age)
    assert not np.shares_memory(first.age, inputs.age)


def published_selection(layout, inputs, static_count, protected_count):
    """The published selection in plain Python, its defects excepted: drops per prune layer.

    Excepted: ranks decide which candidates are dropped first, not the index; an empty candidate
    set drops nothing.
    """
    similarity, relevance = inputs.change.similarity, inputs.relevance
    candidates = []
    for camera in layout:
        own = range(camera.start - layout.vision[0], camera.stop - layout.vision[0])
        static = sorted(
            (token for token in own if similarity[token] >= 0.996),
            key=lambda token: similarity[token],
            reverse=True,
        )[:static_count]
        relevant = sorted(own, key=lambda token: relevance[token], reverse=True)
        candidates += set(static) - set(relevant[:protected_count])
    ranked = sorted(candidates, key=lambda token: (-similarity[token], relevance[token], token))
    dropped, drops = set(), []
    for layer in (2, 6, 9, 11):
        if ranked:
            dropped |= set(ranked[: max(1, int(inputs.ratios[layer] * len(ranked)))])
        drops.append(sorted(dropped))
    return drops


@pytest.mark.parametrize(
    ('name', 'static', 'protected'),
    [
        ('paper', 150, 100),
        ('paper_openvla', 130, 120),
    ],
)
@given(seed=seeds)
def test_paper_presets_make_the_published_selection(name, static, protected, seed):
    layout = make_layout(16, cameras=2 if name == 'paper' else 1)
    inputs = random_inputs(layout, seed)
    plan = make_plan(inputs, preset(name), layout, LAYERS)
    bounds = [(0, 2), (2, 6), (6, 9), (9, 11), (11, 32)]
    assert plan.groups == tuple(LayerGroup(*bound) for bound in bounds)
    every = np.arange(layout.num_tokens)
    assert np.array_equal(plan.recompute[0], every)
    drops = published_selection(layout, inputs, static, protected)
    for slots, dropped in zip(plan.recompute[1:], drops, strict=True):
        assert np.array_equal(slots, np.setdiff1d(every, np.array(dropped, int) + 1))


def make_inputs(similarity, difference=0.0, age=0, relevance=None, ratios=None) -> PlanInputs:
    similarity = np.asarray(similarity, np.float32)
    size = len(similarity)
    return PlanInputs(
        PatchChange(similarity, np.broadcast_to(np.float32(difference), size)),
        np.broadcast_to(np.int32(age), size),
        None if relevance is None else np.asarray(relevance, np.float32),
        ratios,
    )


def reused_tokens(plan, layout) -> list[int]:
    kept = np.setdiff1d(np.arange(layout.num_tokens), plan.recompute[-1])
    return (kept - layout.vision[0]).tolist()


PLAIN = replace(ReuseConfig(), protected_fraction=0.0, camera_motion_fraction=1.0)


def test_no_candidate_gives_the_dense_plan():
    layout = make_layout(2, 1)
    plan = make_plan(make_inputs([0.5] * 4), preset('paper'), layout, LAYERS)
    assert plan.is_dense
    assert plan.recompute_ratio == 1
    assert (plan.status == PatchStatus.CHANGED).all()


def test_the_most_similar_candidates_are_dropped_first_whatever_their_index():
    layout = make_layout(2, 1)
    config = replace(PLAIN, fixed_ratios=(0.5,))
    plan = make_plan(make_inputs([0.997, 0.998, 0.999, 1.0]), config, layout, LAYERS)
    assert reused_tokens(plan, layout) == [2, 3]
    assert plan.status.tolist() == [PatchStatus.REFRESHED] * 2 + [PatchStatus.REUSED] * 2


def test_ties_are_broken_by_relevance_then_by_index():
    layout = make_layout(2, 1)
    config = replace(PLAIN, fixed_ratios=(0.5,))
    inputs = make_inputs([1.0] * 4, relevance=[0.4, 0.1, 0.3, 0.1])
    assert reused_tokens(make_plan(inputs, config, layout, LAYERS), layout) == [1, 3]
    assert reused_tokens(make_plan(make_inputs([1.0] * 4), config, layout, LAYERS), layout) == [
        0,
        1,
    ]


def test_a_brightness_change_alone_is_a_change():
    layout = make_layout(2, 1)
    plan = make_plan(make_inputs([1.0] * 4, difference=0.1), PLAIN, layout, LAYERS)
    assert (plan.status == PatchStatus.CHANGED).all()
    assert plan.is_dense


def test_a_token_at_the_age_limit_is_recomputed():
    layout = make_layout(2, 1)
    config = replace(PLAIN, age_limit_steps=3)
    plan = make_plan(make_inputs([1.0] * 4, age=[0, 2, 3, 4]), config, layout, LAYERS)
    assert reused_tokens(plan, layout) == [0, 1]
    assert plan.status.tolist() == [PatchStatus.REUSED] * 2 + [PatchStatus.EXPIRED] * 2


def test_staggered_limits_expire_one_after_another():
    layout = make_layout(2, 1)
    config = replace(PLAIN, age_limit_steps=5, age_stagger_steps=2)
    reused = [
        reused_tokens(
            make_plan(make_inputs([1.0] * 4, age=[age] * 4), config, layout, LAYERS), layout
        )
        for age in (2, 3, 4, 5)
    ]
    assert reused == [[0, 1, 2, 3], [0, 1, 3], [0, 3], []]


def test_a_moving_camera_is_recomputed_whole_and_the_other_is_not():
    layout = make_layout(2, 2)
    config = replace(PLAIN, camera_motion_fraction=0.5)
    moving, still = [0.9, 0.9, 0.9, 1.0], [0.9, 0.9, 1.0, 1.0]
    plan = make_plan(make_inputs(moving + still), config, layout, LAYERS)
    assert reused_tokens(plan, layout) == [6, 7]
    assert plan.status[3] == PatchStatus.REFRESHED


def test_the_most_relevant_share_of_each_camera_is_protected():
    layout = make_layout(2, 2)
    config = replace(PLAIN, protected_fraction=0.25)
    relevance = [0.1, 0.9, 0.2, 0.3, 0.01, 0.02, 0.03, 0.0]
    plan = make_plan(make_inputs([1.0] * 8, relevance=relevance), config, layout, LAYERS)
    assert reused_tokens(plan, layout) == [0, 2, 3, 4, 5, 7]
    assert plan.status[[1, 6]].tolist() == [PatchStatus.PROTECTED] * 2


def test_a_dropped_token_never_comes_back_where_a_later_ratio_is_smaller():
    layout = make_layout(2, 1)
    config = replace(PLAIN, prune_layers=(1, 3), schedule='code')
    ratios = np.array([0, 0.75, 0, 0.25])
    plan = make_plan(make_inputs([1.0] * 4, ratios=ratios), config, layout, 4)
    assert [len(slots) for slots in plan.recompute] == [10, 7, 7]


def test_a_ratio_of_zero_still_reuses_one_candidate_as_published():
    layout = make_layout(2, 1)
    config = replace(PLAIN, schedule='code')
    plan = make_plan(make_inputs([1.0] * 4, ratios=np.zeros(LAYERS)), config, layout, LAYERS)
    assert reused_tokens(plan, layout) == [0]


def test_an_entropy_schedule_without_entropies_is_dense():
    layout = make_layout(2, 1)
    config = replace(PLAIN, schedule='code')
    assert make_plan(make_inputs([1.0] * 4), config, layout, LAYERS).is_dense


def test_nothing_is_reused_when_reuse_is_not_enabled():
    layout = make_layout(2, 1)
    plan = make_plan(make_inputs([1.0] * 4), preset('off'), layout, LAYERS)
    assert plan.is_dense
    assert plan.groups == (LayerGroup(0, LAYERS),)


def test_a_prune_layer_beyond_the_decoder_is_refused():
    with pytest.raises(ConfigError, match='prune layer 11 does not exist.*0..5'):
        layer_groups(preset('paper'), 6)


def test_the_dense_plan_runs_every_token_in_every_group():
    plan = dense_plan(preset('paper'), make_layout(3), LAYERS)
    assert plan.is_dense
    assert len(plan.recompute) == 5
    assert (plan.age == 0).all()
