import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vla_cache_ros.core.errors import UnknownNameError
from vla_cache_ros.core.frame_faults import (
    FAULTS,
    IMAGE_FAULTS,
    TORN_FRAMES,
    FrameFaults,
    stamp_offset_s,
)


def frame(value, height=8, width=6):
    image = np.full((height, width, 3), value, np.uint8)
    image[0, 0] = 255 - value  # so that a rotation shows
    return image


def seen_before(count=10):
    frames = FrameFaults()
    for value in range(count):
        frames.apply(frame(value), 'none')
    return frames


@pytest.mark.parametrize('fault', sorted(set(FAULTS) - set(IMAGE_FAULTS)))
def test_faults_that_do_not_concern_pixels_let_them_pass(fault):
    image = frame(10)
    assert FrameFaults().apply(image, fault) is image


def test_an_unplugged_camera_is_silent_and_comes_back():
    frames = seen_before()
    assert frames.apply(frame(10), 'unplugged') is None
    assert frames.apply(frame(11), 'none')[1, 1, 0] == 11


def test_a_frozen_camera_repeats_what_it_saw_before_the_fault():
    frames = seen_before(10)
    for value in (10, 11, 12):
        np.testing.assert_array_equal(frames.apply(frame(value), 'frozen'), frame(9))


def test_a_torn_image_holds_an_older_half():
    torn = seen_before(10).apply(frame(10), 'torn')
    np.testing.assert_array_equal(torn[:4], frame(10)[:4])
    np.testing.assert_array_equal(torn[4:], frame(10 - TORN_FRAMES)[4:])


def test_black_rotated_and_resized_images():
    assert not FrameFaults().apply(frame(10), 'black').any()
    assert FrameFaults().apply(frame(10), 'rotated')[-1, -1, 0] == 245
    assert FrameFaults().apply(frame(10), 'resized').shape == (4, 3, 3)


@given(
    faults=st.lists(st.sampled_from(FAULTS), max_size=20),
    sizes=st.lists(st.sampled_from([(8, 6), (4, 4), (1, 1)]), min_size=20, max_size=20),
)
def test_no_order_of_faults_and_sizes_breaks_the_injector_or_what_it_was_given(faults, sizes):
    frames = FrameFaults()
    for fault, (height, width) in zip(faults, sizes, strict=False):
        image = frame(7, height, width)
        result = frames.apply(image, fault)
        np.testing.assert_array_equal(image, frame(7, height, width))
        assert (result is None) == (fault == 'unplugged')


def test_an_unknown_fault_is_refused_by_name():
    with pytest.raises(UnknownNameError, match='unplugged'):
        FrameFaults().apply(frame(0), 'eaten')


def test_clocks_jump_both_ways():
    assert stamp_offset_s('clock_forward', 2.0) == 2.0
    assert stamp_offset_s('clock_backward', 2.0) == -2.0
    assert stamp_offset_s('black', 2.0) == 0.0
