"""Chunks that begin with the actions which run while they are computed."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.spatial.transform import Rotation

from tests.models.prismatic.conftest import make_observation, tiny_vla
from vla_cache_models.policy import VlaPolicy
from vla_cache_models.prismatic.ddim import DdimSchedule
from vla_cache_models.prismatic.embodiment import (
    EMBODIMENTS,
    axis_angle_to_euler,
    euler_to_axis_angle,
)
from vla_cache_ros.core.config import preset
from vla_cache_ros.core.errors import ObservationError

OFF = preset('off')
TURNS = arrays(np.float64, (4, 3), elements=st.floats(-1.5, 1.5))


def policy() -> VlaPolicy:
    return VlaPolicy(tiny_vla('cogact'), OFF)


@given(TURNS)
def test_axis_angle_and_euler_are_the_same_rotation(vectors: np.ndarray) -> None:
    ours = Rotation.from_euler('xyz', axis_angle_to_euler(vectors)).as_matrix()
    np.testing.assert_allclose(ours, Rotation.from_rotvec(vectors).as_matrix(), atol=1e-9)


@given(TURNS)
def test_euler_there_and_back(angles: np.ndarray) -> None:
    back = axis_angle_to_euler(euler_to_axis_angle(angles))
    np.testing.assert_allclose(back, angles, atol=1e-6)  # near +-pi/2 the pitch is ill-posed


@pytest.mark.parametrize('name', ['libero', 'bridge', 'finetuned', 'generic'])
def test_actions_there_and_back(name: str, rng: np.random.Generator) -> None:
    embodiment = EMBODIMENTS[name].fresh()
    chunk = np.column_stack((rng.uniform(-0.9, 0.9, (8, 6)), [0.0, 1.0] * 4))
    back = embodiment.from_actions(embodiment.to_actions(chunk))
    np.testing.assert_allclose(back, chunk, atol=1e-5)


def test_a_relative_gripper_is_not_determined(rng: np.random.Generator) -> None:
    actions = rng.uniform(-1, 1, (3, 7))
    assert np.isnan(EMBODIMENTS['google_robot'].fresh().from_actions(actions)[:, 6]).all()


def test_known_entries_come_out_and_the_rest_follows_them() -> None:
    schedule = DdimSchedule()
    noise = torch.randn((1, 6, 2), generator=torch.Generator().manual_seed(0))
    known = torch.full((1, 6, 2), torch.nan)
    known[:, :2] = 0.5

    def pull_to_the_mean(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return x - x.mean(dim=1, keepdim=True)

    free = schedule.sample(pull_to_the_mean, noise)
    pinned = schedule.sample(pull_to_the_mean, noise, known)
    assert (pinned[:, :2] == 0.5).all()
    assert not torch.equal(pinned[:, 2:], free[:, 2:])
    nothing = schedule.sample(pull_to_the_mean, noise, torch.full_like(noise, torch.nan))
    assert torch.equal(nothing, free)


def test_the_chunk_begins_with_what_is_committed(rng: np.random.Generator) -> None:
    observation = make_observation(rng)
    free = policy().act(observation)
    committed = free.actions[4:7]  # reachable: within the head's range
    chunk = policy().act(replace(observation, committed=committed))
    assert (free.prefix_steps, chunk.prefix_steps) == (0, 3)
    np.testing.assert_allclose(chunk.actions[:3], committed, atol=1e-5)
    assert not np.allclose(chunk.actions[3:], free.actions[3:], atol=1e-5)


def test_more_than_a_chunk_is_cut(rng: np.random.Generator) -> None:
    observation = make_observation(rng)
    committed = np.tile(policy().act(observation).actions[:1], (40, 1))
    chunk = policy().act(replace(observation, committed=committed))
    assert chunk.prefix_steps == len(chunk.actions)


@pytest.mark.parametrize('name', ['openvla', 'openvla_oft'])
def test_other_heads_ignore_it_and_say_so(name: str, rng: np.random.Generator) -> None:
    observation = make_observation(rng)
    plain = VlaPolicy(tiny_vla(name), OFF).act(observation)
    committed = np.zeros((2, 7), np.float32)
    chunk = VlaPolicy(tiny_vla(name), OFF).act(replace(observation, committed=committed))
    assert chunk.prefix_steps == 0
    assert np.array_equal(chunk.actions, plain.actions)


@pytest.mark.parametrize(
    'committed', [np.zeros((2, 6), np.float32), np.full((2, 7), np.nan, np.float32)]
)
def test_what_is_no_action_is_refused(committed, rng: np.random.Generator) -> None:
    with pytest.raises(ObservationError, match=r'valid: \[d, 7\]'):
        policy().act(replace(make_observation(rng), committed=committed))


def test_the_chunk_names_its_instruction(rng: np.random.Generator) -> None:
    observation = make_observation(rng)
    assert policy().act(observation).instruction == observation.instruction
