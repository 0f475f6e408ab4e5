"""Sessions that share a forward against the same sessions alone."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.models.conftest import INSTRUCTION, make_checkpoint, make_observation, tiny_config
from vla_cache_models import batching
from vla_cache_models.batching import act_together
from vla_cache_models.policy import VlaPolicy, make_policy, run_steps
from vla_cache_models.small.vla import SmallVla
from vla_cache_ros.core.config import preset
from vla_cache_ros.core.errors import ConfigError, ObservationError
from vla_cache_ros.core.layout import ATTENTION_RULES
from vla_cache_ros.core.types import ActionChunk, Observation

PRESETS = ('off', 'safe', 'paper')
TOLERANCE = 2e-5
"""Float32 sums in another order; chunks lie in [-1, 1]."""


def tiny_model(attention: str = 'camera_isolated') -> SmallVla:
    return SmallVla(make_checkpoint(tiny_config(attention)))


def policy_on(model: SmallVla, name: str) -> VlaPolicy:
    """A policy that never switches its reuse off."""
    return make_policy(model, model.preset(name), auto_off=False)


def disturbed(observation: Observation, rng: np.random.Generator, patches: int) -> Observation:
    """The observation with some 8 px patches of each camera redrawn."""
    images = {name: image.copy() for name, image in observation.images.items()}
    for image in images.values():
        for cell in rng.choice(16, size=patches, replace=False):
            top, left = 8 * (cell // 4), 8 * (cell % 4)
            image[top : top + 8, left : left + 8] = rng.integers(0, 256, (8, 8, 3))
    return replace(observation, images=images)


def chunks(results: list[ActionChunk | Exception]) -> list[ActionChunk]:
    for result in results:
        assert isinstance(result, ActionChunk), result
    return results  # type: ignore[return-value]


def replay(policy: VlaPolicy, twin: VlaPolicy, observation: Observation, plan) -> ActionChunk:
    """What a session alone computes under the plan that its twin ran in a batch."""
    step = twin.begin(observation)
    twin.widen(step, plan)
    with torch.inference_mode():
        (actions,) = run_steps((step,))
        return twin.finish(step, actions)


@settings(max_examples=15, deadline=None)
@given(
    attention=st.sampled_from(ATTENTION_RULES),
    names=st.lists(st.sampled_from(PRESETS), min_size=1, max_size=4),
    seed=st.integers(0, 1000),
    spread=st.sampled_from([1.0, 1.5, 100.0]),
)
def test_a_batch_computes_what_each_session_computes_alone_under_its_plan(
    attention: str, names: list[str], seed: int, spread: float
) -> None:
    rng = np.random.default_rng(seed)
    model = tiny_model(attention)
    together = [policy_on(model, name) for name in names]
    alone = [policy_on(model, name) for name in names]
    seen = [make_observation(rng) for _ in names]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batching, 'WORK_SPREAD', spread)
        for _ in range(4):
            taking_part = [i for i in range(len(names)) if rng.random() < 0.8]
            for i in taking_part:
                seen[i] = disturbed(seen[i], rng, int(rng.integers(0, 6)))
            got = chunks(
                act_together([together[i] for i in taking_part], [seen[i] for i in taking_part])
            )
            for i, chunk in zip(taking_part, got, strict=True):
                expected = replay(together[i], alone[i], seen[i], chunk.report.plan)
                np.testing.assert_allclose(chunk.actions, expected.actions, atol=TOLERANCE)
                assert chunk.report.mode == expected.report.mode
                assert chunk.report.plan.recompute_ratio == expected.report.plan.recompute_ratio
                assert chunk.stamp_ns == expected.stamp_ns


def test_sessions_of_like_work_share_a_forward_and_others_do_not() -> None:
    rng = np.random.default_rng(0)
    model = tiny_model()
    policies = [policy_on(model, 'safe') for _ in range(3)]
    seen = [make_observation(rng) for _ in policies]
    sizes: list[int] = []
    act_together(policies, seen, sizes.append)
    assert sizes == [3]  # keyframes
    sizes.clear()
    act_together(policies, [seen[0], seen[1], make_observation(rng)], sizes.append)
    assert sorted(sizes) == [1, 2]  # two saw nothing new, one saw all new


def test_a_batch_of_one_is_the_step_alone_bit_for_bit() -> None:
    rng = np.random.default_rng(0)
    model = tiny_model()
    one, other = policy_on(model, 'safe'), policy_on(model, 'safe')
    observation = make_observation(rng)
    for _ in range(3):
        observation = disturbed(observation, rng, 3)
        (chunk,) = chunks(act_together([one], [observation]))
        assert np.array_equal(chunk.actions, other.act(observation).actions)


def test_a_session_that_starts_anew_leaves_the_others_cached() -> None:
    rng = np.random.default_rng(0)
    model = tiny_model()
    policies = [policy_on(model, 'safe') for _ in range(3)]
    seen = [make_observation(rng) for _ in policies]
    act_together(policies, seen)
    policies[1].reset('operator asked')
    got = chunks(act_together(policies, seen))
    assert [chunk.report.mode for chunk in got] == ['cached', 'keyframe', 'cached']
    assert [chunk.report.flush_reason for chunk in got] == ['', 'operator asked', '']


def test_a_cache_that_is_overwritten_changes_its_own_session_alone() -> None:
    rng = np.random.default_rng(0)
    seen = [make_observation(rng) for _ in range(3)]
    results = []
    for damage in (False, True):
        model = tiny_model('all')
        policies = [policy_on(model, 'safe') for _ in seen]
        act_together(policies, seen)
        if damage:
            policies[1]._cache.k.fill_(3.0)
        results.append([chunk.actions for chunk in chunks(act_together(policies, seen))])
    for row, (sound, damaged) in enumerate(zip(*results, strict=True)):
        assert np.array_equal(sound, damaged) == (row != 1)


def test_an_observation_that_cannot_be_used_fails_its_own_session_alone() -> None:
    rng = np.random.default_rng(0)
    model = tiny_model()
    policies = [policy_on(model, 'safe') for _ in range(3)]
    seen = [make_observation(rng) for _ in policies]
    act_together(policies, seen)
    blind = replace(seen[1], images={'wrist': seen[1].images['wrist']})
    first, second, third = act_together(policies, [seen[0], blind, seen[2]])
    assert isinstance(second, ObservationError)
    assert isinstance(first, ActionChunk)
    assert isinstance(third, ActionChunk)
    assert first.report.mode == third.report.mode == 'cached'
    (again,) = chunks(act_together([policies[1]], [seen[1]]))
    assert again.report.mode == 'cached'  # its state had not changed


def test_a_forward_that_raises_is_reported_to_its_sessions_and_starts_them_anew(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rng = np.random.default_rng(0)
    model = tiny_model()
    policies = [policy_on(model, 'safe') for _ in range(2)]
    seen = [make_observation(rng) for _ in policies]
    act_together(policies, seen)

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError('out of memory')

    with monkeypatch.context() as patch:
        patch.setattr(batching, 'run_steps', fail)
        assert all(isinstance(r, RuntimeError) for r in act_together(policies, seen))
    again = chunks(act_together(policies, seen))
    assert [chunk.report.flush_reason for chunk in again] == ['fault', 'fault']


def test_instructions_of_different_lengths_share_a_forward() -> None:
    rng = np.random.default_rng(0)
    model = tiny_model()
    together = [policy_on(model, 'safe') for _ in range(2)]
    alone = [policy_on(model, 'safe') for _ in range(2)]
    seen = [make_observation(rng, instruction) for instruction in (INSTRUCTION, 'place the milk')]
    sizes: list[int] = []
    act_together(together, seen, sizes.append)
    assert sizes == [2]
    for policy, single, observation in zip(together, alone, seen, strict=True):
        single.act(observation)
        np.testing.assert_allclose(
            policy._controller._relevance, single._controller._relevance, atol=1e-6
        )


def test_the_same_policy_twice_is_refused() -> None:
    policy = policy_on(tiny_model(), 'off')
    observation = make_observation(np.random.default_rng(0))
    with pytest.raises(ConfigError, match='each policy once'):
        act_together([policy, policy], [observation, observation])


def test_policies_on_other_weights_run_apart() -> None:
    rng = np.random.default_rng(0)
    policies = [policy_on(tiny_model(), 'off') for _ in range(2)]
    sizes: list[int] = []
    act_together(policies, [make_observation(rng) for _ in policies], sizes.append)
    assert sizes == [1, 1]


def test_presets_share_a_forward_only_where_their_layer_groups_agree() -> None:
    assert preset('safe', 4).prune_layers != preset('paper', 4).prune_layers
    rng = np.random.default_rng(0)
    model = tiny_model()
    policies = [policy_on(model, name) for name in ('off', 'safe', 'paper', 'paper')]
    sizes: list[int] = []
    act_together(policies, [make_observation(rng) for _ in policies], sizes.append)
    assert sorted(sizes) == [2, 2]
