"""The three models under the cache: what must be exact, and what must be recomputed."""

from dataclasses import replace

import numpy as np
import pytest

from tests.models.prismatic.conftest import MODELS, make_observation, moved, tiny_vla
from vla_cache_models.policy import VlaPolicy
from vla_cache_ros.core.config import ReuseConfig
from vla_cache_ros.core.plan import PatchStatus
from vla_cache_ros.core.types import StepReport

GREEDY_REUSE = {
    'auto_off': False,
    'keyframe_period_steps': None,
    'age_limit_steps': None,
    'age_stagger_steps': 0,
    'static_fraction': 1.0,
    'protected_fraction': 0.1,
}


def make_policy(name: str, preset: str = 'safe', **changes) -> VlaPolicy:
    vla = tiny_vla(name)
    return VlaPolicy(vla, replace(vla.preset(preset), **changes))


def act(policy: VlaPolicy, observation) -> tuple[np.ndarray, StepReport]:
    chunk = policy.act(observation)
    assert chunk.report is not None
    return chunk.actions, chunk.report


@pytest.mark.parametrize('name', MODELS)
@pytest.mark.parametrize('preset', ['safe', 'paper'])
def test_nothing_reusable_is_dense_bit_for_bit(
    name: str, preset: str, rng: np.random.Generator
) -> None:
    cached = make_policy(name, preset, auto_off=False)
    dense = make_policy(name, preset, enabled=False)
    for _ in range(3):
        observation = make_observation(rng)  # every patch is new
        actions, report = act(cached, observation)
        assert report.plan.is_dense
        assert np.array_equal(actions, act(dense, observation)[0])


@pytest.mark.parametrize('name', MODELS)
def test_an_unchanged_scene_gives_the_dense_action(name: str, rng: np.random.Generator) -> None:
    cached, dense = make_policy(name, **GREEDY_REUSE), make_policy(name, enabled=False)
    observation = make_observation(rng)
    for step in range(4):
        actions, report = act(cached, observation)
        assert report.mode == ('keyframe' if step == 0 else 'cached')
        assert step == 0 or report.plan.recompute_ratio < 0.95
        np.testing.assert_allclose(actions, act(dense, observation)[0], atol=1e-5)


@pytest.mark.parametrize('name', MODELS)
def test_changed_patches_run_in_every_layer(name: str, rng: np.random.Generator) -> None:
    policy = make_policy(name, **GREEDY_REUSE)
    observation = make_observation(rng)
    act(policy, observation)
    reused = 0
    for _ in range(4):
        before = observation
        observation = moved(observation, rng)
        frames = [policy._model.prepare(o).frames for o in (before, observation)]
        _, report = act(policy, observation)
        last = set(report.plan.recompute[-1])
        for camera in policy.layout:
            cells = np.arange(camera.size).reshape(camera.rows, camera.cols)
            for row, col in np.argwhere(_cells_differ(*(f[camera.name] for f in frames))):
                assert camera.start + cells[row, col] in last
        reused += np.count_nonzero(report.plan.status == PatchStatus.REUSED)
    assert reused > 0


def _cells_differ(a: np.ndarray, b: np.ndarray, patch: int = 14) -> np.ndarray:
    """Cells whose pixels moved by 5 % of full scale or more, bool [rows, cols]."""
    side = a.shape[0] // patch
    gap = (a.astype(float) - b).reshape(side, patch, side, patch, 3)
    return np.sqrt((gap**2).mean(axis=(1, 3, 4))) / 255 > 0.05


@pytest.mark.parametrize('name', MODELS)
def test_a_longer_instruction_leaves_nothing_of_the_old_one(
    name: str, rng: np.random.Generator
) -> None:
    longer = 'pick up the black bowl from the table center and place it on the plate'
    used, fresh = make_policy(name, **GREEDY_REUSE), make_policy(name, **GREEDY_REUSE)
    first, second = make_observation(rng), make_observation(rng, longer)
    for _ in range(3):
        act(used, first)
    actions, report = act(used, second)
    assert report.flush_reason == 'instruction change'
    assert used.layout.num_tokens > first_length(first, fresh)
    fresh.reset()
    used.reset()
    assert np.array_equal(act(used, second)[0], act(fresh, second)[0])
    if name != 'cogact':  # its noise goes on with the episode
        assert np.array_equal(actions, act(make_policy(name, **GREEDY_REUSE), second)[0])


def first_length(observation, policy: VlaPolicy) -> int:
    policy.act(observation)
    return policy.layout.num_tokens


@pytest.mark.parametrize('name', MODELS)
def test_paper_preset_prunes_at_several_layers(name: str, rng: np.random.Generator) -> None:
    policy = make_policy(name, 'paper', protected_fraction=0.1)
    observation = make_observation(rng)
    for _ in range(3):
        _, report = act(policy, observation)
    counts = [len(slots) for slots in report.plan.recompute]
    assert len(counts) > 2
    assert counts[0] == policy.layout.num_tokens
    assert counts == sorted(counts, reverse=True)
    assert counts[-1] < counts[0]


@pytest.mark.parametrize(
    ('name', 'static', 'protected'),
    [('openvla', 130, 120), ('openvla_oft', 150, 100), ('cogact', 130, 120)],
)
def test_presets_carry_the_published_counts(name: str, static: int, protected: int) -> None:
    vla = tiny_vla(name)
    for preset in ('paper', 'safe'):
        reuse = vla.preset(preset)
        assert reuse.static_fraction == static / 256
        assert reuse.protected_fraction == protected / 256
        assert reuse.similarity_threshold == 0.996
        assert reuse.growth == 0.55
    assert vla.preset('paper').age_limit_steps is None
    assert vla.preset('safe').age_limit_steps is not None
    assert not vla.preset('off').enabled


@pytest.mark.parametrize('name', MODELS)
def test_baselines_are_made_from_the_models_own_safe(name: str, rng: np.random.Generator) -> None:
    vla = tiny_vla(name)
    safe = vla.preset('safe')
    assert vla.preset('random') == replace(safe, choice='random')
    assert vla.preset('static_only') == replace(safe, protected_fraction=0.0)
    observation = make_observation(rng)
    ratios = {}
    for preset in ('safe', 'random', 'static_only'):
        policy = make_policy(name, preset, auto_off=False, static_fraction=1.0)
        ratios[preset] = [act(policy, observation)[1].plan.recompute_ratio for _ in range(3)][-1]
    assert ratios['random'] == ratios['safe']
    assert ratios['static_only'] < ratios['safe'] < 1


def test_cogact_noise_starts_anew_with_the_episode(rng: np.random.Generator) -> None:
    policy = make_policy('cogact', enabled=False)
    observation = make_observation(rng)
    first, second = act(policy, observation)[0], act(policy, observation)[0]
    assert not np.array_equal(first, second)
    policy.reset()
    assert np.array_equal(act(policy, observation)[0], first)


def test_off_needs_no_probe(rng: np.random.Generator) -> None:
    vla = tiny_vla('openvla')
    _, report = act(VlaPolicy(vla, ReuseConfig(enabled=False)), make_observation(rng))
    assert report.mode == 'dense'
    assert report.plan.is_dense


@pytest.mark.parametrize('name', MODELS)
def test_a_dense_twin_that_follows_answers_as_its_leader(
    name: str, rng: np.random.Generator
) -> None:
    leader = make_policy(name, 'off')
    twin = leader.dense_twin()
    for is_watched in (True, False, True):  # the twin sees some of the steps alone
        observation = make_observation(rng)
        twin.follow(leader)
        actions = leader.act(observation).actions
        if is_watched:
            assert np.array_equal(twin.act(observation).actions, actions)
