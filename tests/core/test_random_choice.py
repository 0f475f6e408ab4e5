from dataclasses import replace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from vla_cache_ros.core.config import ReuseConfig, preset
from vla_cache_ros.core.controller import ReuseController
from vla_cache_ros.core.layout import CameraSpan, TokenLayout
from vla_cache_ros.core.patches import PatchChange, PatchFrame
from vla_cache_ros.core.plan import PatchStatus, ReusePlan
from vla_cache_ros.core.planner import PlanInputs, make_plan
from vla_cache_ros.core.random_choice import RandomChoice, draw_plan
from vla_cache_ros.core.schedule import reuse_ratios

SIDE, PATCH, LAYERS = 6, 2, 12
TOKENS = SIDE * SIDE
LAYOUT = TokenLayout(
    (CameraSpan('front', 1, SIDE, SIDE), CameraSpan('wrist', 1 + TOKENS, SIDE, SIDE)),
    (75, 78),
    (78, 79),
    80,
)
SAFE = replace(preset('safe', LAYERS), auto_off=False)
GROUPED = replace(SAFE, prune_layers=(0, 2, 5), schedule='code', fixed_ratios=())
RANDOM = replace(SAFE, choice='random')

seeds = st.integers(0, 2**31)
configs = st.builds(
    replace,
    st.just(GROUPED),
    prune_layers=st.sampled_from([(0,), (3,), (0, 2, 5), (2, 6, 9, 11)]),
    protected_fraction=st.sampled_from([0.0, 0.3]),
    age_limit_steps=st.sampled_from([None, 12]),
    static_fraction=st.sampled_from([0.5, 1.0]),
)


def rule_plan(config: ReuseConfig, seed: int) -> ReusePlan:
    rng = np.random.default_rng(seed)
    size = LAYOUT.num_vision
    inputs = PlanInputs(
        PatchChange(
            rng.uniform(0.99, 1, size).astype(np.float32),
            rng.uniform(0, 0.03, size).astype(np.float32),
        ),
        rng.integers(0, 16, size).astype(np.int32),
        rng.random(size).astype(np.float32),
        reuse_ratios(4 * rng.random(LAYERS), 'code'),
    )
    return make_plan(inputs, config, LAYOUT, LAYERS)


@given(configs, seeds, seeds)
def test_as_many_tokens_run_in_every_group_and_the_groups_stay_nested(config, seed, key):
    rule = rule_plan(config, seed)
    age = np.arange(LAYOUT.num_vision, dtype=np.int32)
    drawn = draw_plan(rule, LAYOUT, age, (key,))
    assert drawn.groups == rule.groups
    assert list(map(len, drawn.recompute)) == list(map(len, rule.recompute))
    assert drawn.vision_recompute_ratio == rule.vision_recompute_ratio
    before = np.arange(LAYOUT.num_tokens)
    for slots in drawn.recompute:
        assert (np.diff(slots) > 0).all()
        assert np.isin(slots, before).all()
        assert np.isin(LAYOUT.always_recomputed, slots).all()
        before = slots
    reused = np.setdiff1d(np.arange(LAYOUT.num_tokens), before) - LAYOUT.vision[0]
    expected = np.full(LAYOUT.num_vision, PatchStatus.REFRESHED)
    expected[reused] = PatchStatus.REUSED
    assert np.array_equal(drawn.status, expected)
    assert np.array_equal(drawn.age, age)


@given(seeds, seeds)
def test_a_draw_depends_on_its_key_alone_and_another_key_gives_another(seed, key):
    rule = rule_plan(replace(SAFE, difference_threshold=0.015), seed)
    age = np.zeros(LAYOUT.num_vision, dtype=np.int32)

    def drawn(*key: int) -> list[int]:
        return draw_plan(rule, LAYOUT, age, key).recompute[-1].tolist()

    first = drawn(key, 1)
    others = [drawn(key, 2), drawn(key + 1, 1)]
    assert drawn(key, 1) == first
    assert first not in others
    assert others[0] != others[1]


def test_every_vision_token_is_drawn_about_as_often():
    rule = rule_plan(replace(SAFE, difference_threshold=0.015), 0)
    age = np.zeros(LAYOUT.num_vision, dtype=np.int32)
    reused = np.stack(
        [draw_plan(rule, LAYOUT, age, (k,)).status == PatchStatus.REUSED for k in range(2000)]
    )
    share = reused.mean()
    assert np.abs(reused.mean(axis=0) - share).max() < 5 * np.sqrt(share * (1 - share) / 2000)


# In the loop: as many as the rule, whatever chance left behind


def frames(seed: int, steps: int) -> list[dict[str, np.ndarray]]:
    """Two cameras of which about a tenth of the patches changes in each step."""
    rng = np.random.default_rng(seed)
    images = {camera.name: patches(rng) for camera in LAYOUT}
    film = []
    for _ in range(steps):
        images = {
            name: np.where(large(rng.random((SIDE, SIDE)) < 0.1), patches(rng), image)
            for name, image in images.items()
        }
        film.append(images)
    return film


def patches(rng: np.random.Generator) -> np.ndarray:
    return large(rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8))


def large(cells: np.ndarray) -> np.ndarray:
    cells = cells if cells.ndim == 3 else cells[..., None]
    return cells.repeat(PATCH, axis=0).repeat(PATCH, axis=1)


def run(config: ReuseConfig, seed: int = 0, steps: int = 30) -> list[ReusePlan]:
    controller = ReuseController(LAYOUT, LAYERS, config)
    controller.flush('episode start')
    relevance = np.random.default_rng(seed).random(LAYOUT.num_vision).astype(np.float32)
    entropy = 4 * np.random.default_rng(seed).random(LAYERS)
    plans = []
    for images in frames(seed, steps):
        step = controller.plan(images, 'pick up the milk')
        controller.commit(
            step,
            relevance if step.wants_relevance else None,
            entropy if step.wants_entropy else None,
        )
        plans.append(step.plan)
    return plans


@given(st.sampled_from([SAFE, GROUPED]), seeds)
def test_over_an_episode_random_reuses_what_safe_reuses_in_every_step(config, seed):
    config = replace(config, keyframe_period_steps=12)
    rule = run(config, seed, steps=16)
    drawn = run(replace(config, choice='random'), seed, steps=16)
    counts = [[len(slots) for slots in plan.recompute] for plan in rule]
    assert [[len(slots) for slots in plan.recompute] for plan in drawn] == counts
    assert min(counts[1]) < LAYOUT.num_tokens


def test_the_same_episode_gives_the_same_draws_and_another_one_others():
    def chosen(config: ReuseConfig, seed: int) -> list[list[int]]:
        return [plan.status.tolist() for plan in run(config, seed, steps=5)]

    first = chosen(RANDOM, 0)
    assert chosen(RANDOM, 0) == first
    other_seed = chosen(replace(RANDOM, choice_seed=1), 0)
    assert other_seed[0] == first[0]  # the keyframe
    assert all(one != other for one, other in zip(first[1:], other_seed[1:], strict=True))
    statuses = first[1:]
    assert all(one != other for one, other in zip(statuses, statuses[1:], strict=False))
    assert chosen(RANDOM, 1)[1] != first[1]


def test_ages_count_from_the_step_that_really_computed_the_token():
    age = np.zeros(LAYOUT.num_vision, dtype=np.int32)
    for plan in run(replace(RANDOM, keyframe_period_steps=12)):
        assert np.array_equal(plan.age, age)
        computed = np.isin(np.arange(*LAYOUT.vision), plan.recompute[-1])
        # An age is that before the step, in steps since: it grows once the step has run.
        age = np.where(computed, 0, age + 1)
    assert age.max() > 0


def test_draws_are_named_by_the_keyframe():
    rule = rule_plan(SAFE, 1)
    choice = RandomChoice(0, LAYOUT)

    def after(value: float) -> list[int]:
        choice.restart(PatchFrame((), np.full(LAYOUT.num_vision, value)))
        return choice.draw(rule, LAYOUT).status.tolist()

    first = after(1.0)
    assert after(2.0) != first
    assert after(1.0) == first
