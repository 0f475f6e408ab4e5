"""The policy under the cache against the plain forward."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.models.conftest import INSTRUCTION, make_checkpoint, make_observation, tiny_config
from vla_cache_models.policy import VlaPolicy, load_policy
from vla_cache_models.small.vla import SmallVla
from vla_cache_ros.core.errors import (
    ConfigError,
    InstructionError,
    ObservationError,
    UnknownNameError,
)
from vla_cache_ros.core.layout import ATTENTION_RULES
from vla_cache_ros.core.plan import PatchStatus
from vla_cache_ros.core.types import Observation, Proprioception

ALWAYS_ON = {'auto_off': False, 'keyframe_period_steps': None, 'age_limit_steps': None}


def make_policy(attention: str = 'camera_isolated', **changes: object) -> VlaPolicy:
    """The tiny VLA under 'safe', changed."""
    model = SmallVla(make_checkpoint(tiny_config(attention)))
    return VlaPolicy(model, replace(model.preset('safe'), **changes))


def plain_actions(policy: VlaPolicy, observation: Observation) -> np.ndarray:
    """The model's own dense forward on the same inputs."""
    model = policy._model
    images = torch.from_numpy(np.stack([observation.images[n] for n in policy.camera_names]))
    with torch.inference_mode():
        inputs = model.prepare(observation)
        network = copy.deepcopy(model._network)
        actions, _ = network(images[None], inputs.proprioception, inputs.prompt.tokens)
    return actions[0].clamp(-1, 1).numpy()


@pytest.mark.parametrize('attention', ATTENTION_RULES)
def test_policy_without_cache_is_the_plain_forward_bit_for_bit(
    attention: str, rng: np.random.Generator
) -> None:
    policy = make_policy(attention, enabled=False)
    observation = make_observation(rng)
    chunk = policy.act(observation)
    assert np.array_equal(chunk.actions, plain_actions(policy, observation))
    assert chunk.report is not None
    assert chunk.report.mode == 'dense'
    assert chunk.stamp_ns == observation.stamp_ns


@pytest.mark.parametrize('attention', ATTENTION_RULES)
def test_a_step_in_which_everything_changed_is_dense_bit_for_bit(
    attention: str, rng: np.random.Generator
) -> None:
    policy = make_policy(attention, **ALWAYS_ON)
    policy.act(make_observation(rng))
    observation = make_observation(rng)
    chunk = policy.act(observation)
    assert chunk.report is not None
    assert chunk.report.plan.is_dense
    assert np.array_equal(chunk.actions, plain_actions(policy, observation))


@settings(max_examples=10, deadline=None)
@given(attention=st.sampled_from(ATTENTION_RULES), seed=st.integers(0, 1000))
def test_reuse_where_nothing_changed_is_dense(attention: str, seed: int) -> None:
    policy = make_policy(attention, **ALWAYS_ON)
    observation = make_observation(np.random.default_rng(seed))
    policy.act(observation)
    chunk = policy.act(observation)
    assert chunk.report is not None
    assert chunk.report.plan.recompute_ratio < 1
    np.testing.assert_allclose(chunk.actions, plain_actions(policy, observation), atol=1e-5)


def test_only_the_changed_patch_runs_again(rng: np.random.Generator) -> None:
    policy = make_policy(**ALWAYS_ON, protected_fraction=0.0)
    first = make_observation(rng)
    policy.act(first)
    images = {name: image.copy() for name, image in first.images.items()}
    images['wrist'][8:16, 16:24] = 255 - images['wrist'][8:16, 16:24]
    chunk = policy.act(replace(first, images=images))
    assert chunk.report is not None
    plan = chunk.report.plan
    changed = policy.layout.cameras[1].start + 1 * 4 + 2
    vision = plan.recompute[0][plan.recompute[0] < policy.layout.num_vision]
    assert vision.tolist() == [changed]
    assert plan.status[changed] == PatchStatus.CHANGED


def test_the_cache_is_flushed_by_instruction_reset_and_fault(rng: np.random.Generator) -> None:
    policy = make_policy(**ALWAYS_ON)
    observation = make_observation(rng)

    def flush_reason(instruction: str = INSTRUCTION) -> str:
        report = policy.act(replace(observation, instruction=instruction)).report
        assert report is not None
        return report.flush_reason

    flush_reason()
    assert flush_reason() == ''
    assert flush_reason('place the milk') == 'instruction change'
    policy.reset('operator asked')
    assert flush_reason('place the milk') == 'operator asked'
    policy._controller.plan(observation.images, 'place the milk')  # the model dies behind this
    assert flush_reason('place the milk') == 'fault'


def test_paper_preset_runs_the_whole_tower(rng: np.random.Generator) -> None:
    model = SmallVla(make_checkpoint(tiny_config()))
    policy = VlaPolicy(model, model.preset('paper'))
    observation = make_observation(rng)
    for _ in range(3):
        chunk = policy.act(observation)
    assert chunk.report is not None
    counts = [len(slots) for slots in chunk.report.plan.recompute]
    assert counts[0] == policy.layout.num_tokens
    assert counts[-1] < counts[0]


def test_the_random_baseline_runs_the_drawn_patches_and_as_many_as_safe(
    rng: np.random.Generator,
) -> None:
    first = make_observation(rng)
    images = {name: image.copy() for name, image in first.images.items()}
    images['wrist'][:16] = 255 - images['wrist'][:16]
    plans = {}
    for choice in ('static', 'random'):
        policy = make_policy(**ALWAYS_ON, choice=choice)
        policy.act(first)
        chunk = policy.act(replace(first, images=images))
        assert chunk.report is not None
        plans[choice] = chunk.report.plan
    counts = {choice: [len(s) for s in plan.recompute] for choice, plan in plans.items()}
    assert counts['static'] == counts['random']
    changed = plans['static'].status == PatchStatus.CHANGED
    assert (plans['random'].status[changed] == PatchStatus.REUSED).any()


def test_images_of_another_size_are_resized(rng: np.random.Generator) -> None:
    policy = make_policy()
    assert policy.act(make_observation(rng, size=64)).actions.shape == (4, 7)


@pytest.mark.parametrize(
    ('images', 'message'),
    [
        ({}, "no camera 'agentview'; given: none"),
        ({'agentview': np.zeros((0, 32, 3), np.uint8)}, 'empty'),
        ({'agentview': np.zeros((32, 32), np.uint8)}, r'valid: uint8 \[H, W, 3\]'),
        ({'agentview': np.full((32, 32, 3), np.nan)}, 'image is float64'),
    ],
)
def test_unusable_images_are_refused_by_name(images: dict, message: str) -> None:
    policy = make_policy()
    good = make_observation(np.random.default_rng(0))
    with pytest.raises(ObservationError, match=message):
        policy.act(replace(good, images=images))
    assert policy.act(good).actions.shape == (4, 7)


@pytest.mark.parametrize(
    ('instruction', 'message'),
    [('', 'holds no word'), ('milk ' * 13, '13 words'), ('fly to mars', 'known words')],
)
def test_unusable_instructions_are_refused(instruction: str, message: str) -> None:
    policy = make_policy()
    with pytest.raises(InstructionError, match=message):
        policy.act(make_observation(np.random.default_rng(0), instruction))


def test_nan_proprioception_is_refused() -> None:
    with pytest.raises(ObservationError, match='NaN'):
        Proprioception(np.full(3, np.nan), np.array([0, 0, 0, 1.0]), np.zeros(2))


def test_a_gpu_that_is_not_there_is_refused_before_anything_is_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    with pytest.raises(ConfigError, match='sees no NVIDIA GPU'):
        load_policy('anywhere', device='cuda')


def test_unknown_device_is_refused() -> None:
    with pytest.raises(UnknownNameError, match='valid: cpu, cuda'):
        load_policy('anywhere', device='gpu')


def test_unknown_dtype_is_refused() -> None:
    with pytest.raises(UnknownNameError, match='bfloat16'):
        load_policy('anywhere', dtype='int3')


# Pressure, switching off, the dense twin


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 1000), steps=st.integers(1, 4))
def test_what_shadow_mode_switched_off_equals_the_dense_twin_bit_for_bit(
    seed: int, steps: int
) -> None:
    policy = make_policy(**ALWAYS_ON)
    twin = policy.dense_twin()
    rng = np.random.default_rng(seed)
    observations = [make_observation(rng) for _ in range(steps)]
    for observation in observations:
        policy.act(observation)
        policy.act(observation)
    policy.switch_off('too far from dense')
    for observation in observations:
        twin.follow(policy)
        chunk = policy.act(observation)
        assert chunk.report is not None
        assert (chunk.report.mode, chunk.report.off_reason) == ('dense', 'too far from dense')
        assert np.array_equal(chunk.actions, twin.act(observation).actions)
        assert np.array_equal(chunk.actions, plain_actions(policy, observation))


def test_the_dense_twin_does_not_disturb_what_it_watches(rng: np.random.Generator) -> None:
    watched, alone = make_policy(**ALWAYS_ON), make_policy(**ALWAYS_ON)
    twin = watched.dense_twin()
    for observation in [make_observation(rng)] * 3 + [make_observation(rng)] * 2:
        twin.follow(watched)
        chunk = watched.act(observation)
        twin.act(observation)
        assert np.array_equal(chunk.actions, alone.act(observation).actions)


def test_pressure_is_reported_and_does_nothing_under_the_published_rules(
    rng: np.random.Generator,
) -> None:
    model = SmallVla(make_checkpoint(tiny_config()))
    assert model.preset('safe').difference_threshold_limit == 0.03
    plain, pressed = (VlaPolicy(model.share(), model.preset('paper')) for _ in range(2))
    pressed.set_pressure(1.0)
    for observation in [make_observation(rng)] * 3:
        chunk = pressed.act(observation)
        assert chunk.report is not None
        assert chunk.report.reuse_pressure == 1.0
        assert np.array_equal(chunk.actions, plain.act(observation).actions)
