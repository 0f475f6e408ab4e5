"""A picture that repeats, shows nothing, or changes its size is noticed; a good one never is."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vla_cache_ros.core.frame_watch import FrameLimits, FrameWatch

LIMITS = FrameLimits(frozen_after_ns=100, least_contrast=2.0)


def picture(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (8, 8, 3)).astype(np.uint8)


@given(st.lists(st.tuples(st.integers(1, 60), st.booleans()), max_size=30))
def test_frozen_exactly_when_the_pixels_stood_still_for_too_long(frames):
    watch = FrameWatch(LIMITS)
    now_ns = since_ns = shown = 0
    for index, (gap_ns, changes) in enumerate(frames):
        now_ns += gap_ns
        if changes or index == 0:
            shown, since_ns = index, now_ns
        reason, detail = watch.look(picture(shown), now_ns)
        assert (reason == 'frozen_image') == (now_ns - since_ns > 100)
        assert bool(detail) == bool(reason)


@pytest.mark.parametrize('level', [0, 4, 128, 255])
def test_a_picture_of_one_level_is_black(level):
    noise = np.random.default_rng(0).integers(-1, 2, (8, 8, 3))
    pixels = np.clip(level + noise, 0, 255).astype(np.uint8)
    assert FrameWatch(LIMITS).look(pixels, 0)[0] == 'black_image'
    assert FrameWatch(LIMITS).look(picture(0), 0)[0] == ''


def test_without_limits_nothing_is_wrong():
    watch = FrameWatch(FrameLimits())
    black = np.zeros((8, 8, 3), np.uint8)
    assert [watch.look(black, stamp)[0] for stamp in (0, 10**9, 10**10)] == ['', '', '']


def test_a_clock_that_goes_back_starts_the_count_anew():
    watch = FrameWatch(LIMITS)
    watch.look(picture(1), 1000)
    assert watch.look(picture(1), 10)[0] == ''
    assert watch.look(picture(1), 120)[0] == 'frozen_image'


def test_another_size_is_noticed_once():
    watch = FrameWatch(LIMITS)
    assert not watch.is_resized(picture(0))
    watch.look(picture(0), 0)
    larger = np.zeros((16, 16, 3), np.uint8)
    assert watch.is_resized(larger)
    watch.look(larger, 1)
    assert not watch.is_resized(larger)
