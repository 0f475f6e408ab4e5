"""Plans of equal shape: nothing left out, nothing added without need."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vla_cache_ros.core.common_plan import common_plans
from vla_cache_ros.core.errors import ConfigError
from vla_cache_ros.core.layout import CameraSpan, TokenLayout
from vla_cache_ros.core.plan import LayerGroup, PatchStatus, ReusePlan

LAYOUT = TokenLayout(
    (CameraSpan('left', 1, 2, 3), CameraSpan('right', 7, 3, 3)), (17, 20), (20, 23), 23
)
GROUPS = (LayerGroup(0, 2), LayerGroup(2, 3), LayerGroup(3, 8))


def random_plan(seed: int) -> ReusePlan:
    """A nested plan; each group drops some of the vision tokens that the one before ran."""
    rng = np.random.default_rng(seed)
    runs = np.ones(LAYOUT.num_tokens, dtype=bool)
    status = np.full(LAYOUT.num_vision, PatchStatus.CHANGED, dtype=np.uint8)
    recompute = []
    for _ in GROUPS:
        dropped = np.flatnonzero(rng.random(LAYOUT.num_vision) < rng.random() * 0.6)
        runs[LAYOUT.vision[0] + dropped] = False
        status[dropped] = PatchStatus.REUSED
        recompute.append(np.flatnonzero(runs))
    age = rng.integers(0, 9, LAYOUT.num_vision).astype(np.int32)
    return ReusePlan(LAYOUT.num_tokens, GROUPS, tuple(recompute), status, age)


@given(st.lists(st.integers(0, 10_000), min_size=1, max_size=5))
def test_counts_agree_and_each_plan_is_nested_and_holds_the_given_one(seeds: list[int]) -> None:
    plans = [random_plan(seed) for seed in seeds]
    wider = common_plans(plans, LAYOUT)
    for group in range(len(GROUPS)):
        for camera in LAYOUT:
            counts, given_counts = (
                {
                    np.count_nonzero((slots >= camera.start) & (slots < camera.stop))
                    for slots in (plan.recompute[group] for plan in some)
                }
                for some in (wider, plans)
            )
            assert counts == {max(given_counts)}
    for plan, given_plan in zip(wider, plans, strict=True):
        for slots, own in zip(plan.recompute, given_plan.recompute, strict=True):
            assert set(own) <= set(slots)
            assert (np.diff(slots) > 0).all()
        for outer, inner in zip(plan.recompute, plan.recompute[1:], strict=False):
            assert set(inner) <= set(outer)


@given(st.lists(st.integers(0, 10_000), min_size=1, max_size=5))
def test_reused_are_exactly_those_that_some_group_leaves_out(seeds: list[int]) -> None:
    start, stop = LAYOUT.vision
    for plan in common_plans([random_plan(seed) for seed in seeds], LAYOUT):
        last = np.zeros(LAYOUT.num_tokens, dtype=bool)
        last[plan.recompute[-1]] = True
        assert np.array_equal(plan.status == PatchStatus.REUSED, ~last[start:stop])


@given(st.integers(0, 10_000))
def test_equal_plans_come_back_as_they_are(seed: int) -> None:
    plan = random_plan(seed)
    assert all(own is plan for own in common_plans([plan, plan, plan], LAYOUT))


def test_the_oldest_of_the_reused_tokens_is_recomputed_first() -> None:
    every = np.arange(LAYOUT.num_tokens)
    status = np.full(LAYOUT.num_vision, PatchStatus.REFRESHED, dtype=np.uint8)
    age = np.zeros(LAYOUT.num_vision, dtype=np.int32)
    group = (LayerGroup(0, 8),)
    one = ReusePlan(23, group, (np.setdiff1d(every, [1, 2]),), status, age)
    aged = age.copy()
    aged[4 - 1] = 5  # slot 4
    other = ReusePlan(23, group, (np.setdiff1d(every, [2, 3, 4]),), status, aged)
    first, second = common_plans([one, other], LAYOUT)
    assert first is one
    assert second.recompute[0].tolist() == np.setdiff1d(every, [2, 3]).tolist()


def test_other_layer_groups_are_refused() -> None:
    plan = random_plan(0)
    other = ReusePlan(23, (LayerGroup(0, 8),), plan.recompute[:1], plan.status, plan.age)
    with pytest.raises(ConfigError, match='same layer groups'):
        common_plans([plan, other], LAYOUT)
