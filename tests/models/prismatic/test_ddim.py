"""DDIM against an independent recursion and against what it must do by construction."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from vla_cache_models.prismatic.ddim import DdimSchedule, NoiseSource, squared_cosine_alpha_bars
from vla_cache_ros.core.errors import ConfigError

VALID_COUNTS = sorted({math.ceil(100 / stride) for stride in range(1, 100)})


def alpha_bar(timestep: int, steps: int) -> float:
    """The cosine curve itself: the product of the betas telescopes below the cap."""

    def f(u: float) -> float:
        return math.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2

    if timestep == steps - 1:  # the one capped beta
        return f((steps - 1) / steps) / f(0) * (1 - 0.999)
    return f((timestep + 1) / steps) / f(0)


def recursion(
    timesteps: list[int],
    steps: int,
    noise_of: Callable[[NDArray, int], NDArray],
    start: NDArray,
) -> NDArray[np.float64]:
    """DDIM in two moves per step: predict x0, then noise it again for the next step."""
    x = start
    for t, following in zip(timesteps, [*timesteps[1:], None], strict=True):
        noise, a = noise_of(x, t), alpha_bar(t, steps)
        clean = (x - math.sqrt(1 - a) * noise) / math.sqrt(a)
        a_next = 1.0 if following is None else alpha_bar(following, steps)
        x = math.sqrt(a_next) * clean + math.sqrt(1 - a_next) * noise
    return x


def test_published_steps_and_curve() -> None:
    schedule = DdimSchedule()
    assert schedule.timesteps == (90, 80, 70, 60, 50, 40, 30, 20, 10, 0)
    curve = squared_cosine_alpha_bars(100)
    np.testing.assert_allclose(curve, [alpha_bar(t, 100) for t in range(100)], rtol=1e-10)
    assert (np.diff(curve) < 0).all()


@pytest.mark.parametrize('sampling_steps', [2, 4, 10, 34, 100])
def test_sampling_equals_the_recursion(sampling_steps: int) -> None:
    def noise_of(x: NDArray, t: int) -> NDArray:
        return np.tanh(0.3 * x + 0.01 * t) - 0.2

    start = np.random.default_rng(0).normal(size=(2, 16, 7))
    schedule = DdimSchedule(100, sampling_steps)
    expected = recursion(list(schedule.timesteps), 100, noise_of, start)

    def noise_fn(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        assert t.shape == (2,)
        assert t.dtype == torch.int64
        return torch.from_numpy(noise_of(x.numpy(), int(t[0])))

    actual = schedule.sample(noise_fn, torch.from_numpy(start))
    np.testing.assert_allclose(actual.numpy(), expected, atol=1e-10)
    single = schedule.sample(noise_fn, torch.from_numpy(start).float())
    # From step 99, where a is 2e-7, this predictor leads to thousands: relative to the largest.
    error = np.abs(single.numpy() - expected).max()
    assert error <= 1e-5 * np.abs(expected).max()
    assert single.dtype == torch.float32


@settings(max_examples=60, deadline=None)
@given(
    sampling_steps=st.sampled_from(VALID_COUNTS),
    scale=st.floats(0.01, 5),
    seed=st.integers(0, 10_000),
)
def test_perfect_predictor_recovers_the_clean_actions(
    sampling_steps: int, scale: float, seed: int
) -> None:
    rng = torch.Generator().manual_seed(seed)
    clean = scale * torch.randn(1, 16, 7, generator=rng, dtype=torch.float64)
    start = torch.randn(1, 16, 7, generator=rng, dtype=torch.float64)

    def perfect(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        a = alpha_bar(int(t), 100)
        return (x - math.sqrt(a) * clean) / math.sqrt(1 - a)

    recovered = DdimSchedule(100, sampling_steps).sample(perfect, start)
    torch.testing.assert_close(recovered, clean, atol=1e-9, rtol=0)


@given(diffusion_steps=st.integers(2, 300), stride=st.integers(1, 299))
def test_steps_are_strided_and_end_at_0(diffusion_steps: int, stride: int) -> None:
    if stride >= diffusion_steps:
        stride = 1
    count = math.ceil(diffusion_steps / stride)
    timesteps = DdimSchedule(diffusion_steps, count).timesteps
    assert len(timesteps) == count
    assert timesteps[-1] == 0
    assert timesteps[0] < diffusion_steps
    assert len(set(np.diff(timesteps).tolist())) <= 1


def test_large_actions_are_not_clipped() -> None:
    start = torch.full((1, 1, 1), 3.0, dtype=torch.float64)
    result = DdimSchedule(100, 10).sample(lambda x, t: torch.zeros_like(x), start)
    assert result.item() == pytest.approx(3 / math.sqrt(alpha_bar(90, 100)))
    assert result.item() > 1


def test_state_keeps_its_type_under_a_network_of_another() -> None:
    result = DdimSchedule().sample(lambda x, t: x.bfloat16(), torch.randn(1, 16, 7))
    assert result.dtype == torch.float32


@pytest.mark.parametrize('sampling_steps', [0, 1, 30, 101, -5])
def test_sampling_steps_without_a_stride_are_refused(sampling_steps: int) -> None:
    with pytest.raises(ConfigError, match='valid: 2, 3, 4') as raised:
        DdimSchedule(100, sampling_steps)
    listed = str(raised.value).split('valid: ')[1].rstrip('.')
    assert [int(count) for count in listed.split(', ')] == VALID_COUNTS


def test_process_of_one_step_is_refused() -> None:
    with pytest.raises(ConfigError, match='diffusion_steps must be >= 2'):
        DdimSchedule(1, 1)


def test_noise_repeats_from_reset_to_reset_and_not_within() -> None:
    source = NoiseSource(3)
    first, second = source.draw((1, 16, 7)), source.draw((1, 16, 7))
    assert not torch.equal(first, second)
    source.reset()
    torch.manual_seed(99)  # the global generator has no say
    assert torch.equal(source.draw((1, 16, 7)), first)
    assert torch.equal(source.draw((1, 16, 7)), second)
    assert not torch.equal(NoiseSource(4).draw((1, 16, 7)), first)
    assert first.dtype == torch.float32


def test_a_source_that_follows_draws_what_its_leader_draws():
    leader, follower = NoiseSource(3), NoiseSource(4)
    leader.draw((1, 16, 7))
    follower.follow(leader)
    assert torch.equal(follower.draw((1, 16, 7)), leader.draw((1, 16, 7)))
