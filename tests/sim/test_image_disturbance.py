import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vla_cache_sim.conditions import CONDITIONS, IMAGE_CONDITIONS, Dropped, Noise
from vla_cache_sim.image_disturbance import ImageDisturbance, LossChain, add_noise, compress

KEY = (0, 1, 2)


def make_images(step: int = 0, size: int = 24) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(step)
    return {
        camera: rng.integers(0, 256, (size, size, 3), dtype=np.uint8)
        for camera in ('agentview', 'wrist')
    }


def film(name: str, steps, key=KEY) -> dict[int, dict[str, np.ndarray]]:
    disturbance = ImageDisturbance(CONDITIONS[name], key)
    return {step: disturbance.apply(make_images(step), step) for step in steps}


def same(first: dict[str, np.ndarray], second: dict[str, np.ndarray]) -> bool:
    return all(np.array_equal(first[camera], second[camera]) for camera in first)


@pytest.mark.parametrize('name', IMAGE_CONDITIONS)
def test_images_keep_their_type_and_the_originals_are_left_alone(name: str):
    images, untouched = make_images(), make_images()
    seen = ImageDisturbance(CONDITIONS[name], KEY).apply(images, 0)
    assert list(seen) == list(images)
    for camera, image in seen.items():
        assert image.dtype == np.uint8
        assert image.shape == images[camera].shape
    assert same(images, untouched)
    assert same(seen, images) == (name in ('none', 'dropped'))


@pytest.mark.parametrize('name', IMAGE_CONDITIONS)
def test_an_episode_repeats_and_a_step_answers_the_same_twice(name: str):
    steps = range(0, 60, 4)
    first, second = film(name, steps), film(name, [0, 0, *steps])
    assert all(same(first[step], second[step]) for step in steps)


def test_noise_differs_by_step_by_camera_and_by_episode():
    grey = {camera: np.full((24, 24, 3), 128, np.uint8) for camera in ('agentview', 'wrist')}

    def seen(step: int, key=KEY) -> dict[str, np.ndarray]:
        return ImageDisturbance(CONDITIONS['noise'], key).apply(grey, step)

    assert not same(seen(0), seen(1))
    assert not same(seen(0), seen(0, (0, 1, 3)))
    assert not np.array_equal(seen(0)['agentview'], seen(0)['wrist'])


@pytest.mark.parametrize('level', [60, 128, 200])
def test_noise_has_the_documented_sigma(level: int):
    image = np.full((200, 200, 3), level, np.uint8)
    noisy = add_noise(image, Noise(2.0, 0.02), np.random.default_rng(0)).astype(float)
    expected = np.sqrt(2.0**2 + 0.02 * level + 1 / 12)  # and rounding
    assert noisy.std() == pytest.approx(expected, rel=0.02)
    assert noisy.mean() == pytest.approx(level, abs=0.05)


def test_noise_clips_instead_of_wrapping():
    for level in (0, 255):
        image = np.full((50, 50, 3), level, np.uint8)
        noisy = add_noise(image, Noise(3.0, 0.0), np.random.default_rng(0)).astype(int)
        assert np.abs(noisy - level).max() < 20


def test_jpeg_changes_a_picture_by_a_few_levels_and_keeps_its_colours():
    image = np.zeros((32, 32, 3), np.uint8)
    image[:, :, 0] = np.linspace(50, 200, 32, dtype=np.uint8)  # red alone
    seen = compress(image, 80).astype(int)
    assert 0 < np.abs(seen - image).mean() < 6
    assert seen[..., 0].mean() > 100
    assert seen[..., 2].mean() < 20


@given(st.floats(0.05, 0.5), st.floats(1.0, 6.0), st.integers(0, 2**31))
def test_losses_are_a_function_of_the_step_and_begin_with_a_frame(share, burst, seed):
    chain, other = (LossChain(Dropped(share, burst), (seed,)) for _ in range(2))
    lost = [chain.lost(step) for step in range(40)]
    assert not lost[0]
    assert [other.lost(step) for step in (39, 0, 20)] == [lost[step] for step in (39, 0, 20)]


def test_the_share_and_the_length_of_losses_are_the_documented_ones():
    chain = LossChain(Dropped(0.2, 4.0), (0,))
    lost = np.array([chain.lost(step) for step in range(40_000)])
    assert lost.mean() == pytest.approx(0.2, abs=0.01)
    runs = np.count_nonzero(lost[1:] & ~lost[:-1])
    assert lost.sum() / runs == pytest.approx(4.0, abs=0.15)


def test_a_lost_frame_is_the_last_one_that_arrived():
    steps = range(0, 200, 2)
    chain = LossChain(Dropped(0.2, 4.0), KEY)
    arrived, repeats = 0, 0
    for step, seen in film('dropped', steps).items():
        if chain.lost(step):
            repeats += 1
        else:
            arrived = step
        assert same(seen, make_images(arrived))
    assert repeats > 5
