"""Images and states are paired by stamp within the tolerance; every drop has its reason."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vla_cache_ros.nodes.pairing import Pairing

pytestmark = pytest.mark.ros

PIXELS = np.zeros((2, 2, 3), np.uint8)
TOLERANCE_NS = 10


def pairing() -> Pairing:
    return Pairing(('left', 'right'), tolerance_ns=TOLERANCE_NS, silence_ns=1000)


def add_state(paired: Pairing, stamp_ns: int) -> None:
    paired.add_joints(f'joints {stamp_ns}', stamp_ns)
    paired.add_pose(f'pose {stamp_ns}', stamp_ns)


def test_nothing_before_everything_is_there():
    paired = pairing()
    paired.add_image('left', PIXELS, 100)
    assert paired.take() is None
    paired.add_image('right', PIXELS, 100)
    assert paired.take() is None
    paired.add_joints('joints', 100)
    assert paired.take() is None
    paired.add_pose('pose', 100)
    assert paired.take() is not None


def test_images_are_taken_once():
    paired = pairing()
    add_state(paired, 100)
    paired.add_image('left', PIXELS, 100)
    paired.add_image('right', PIXELS, 100)
    assert paired.take() is not None
    assert paired.take() is None


def test_state_nearest_to_the_oldest_image_is_chosen():
    paired = pairing()
    for stamp_ns in (92, 101, 108):
        add_state(paired, stamp_ns)
    paired.add_image('left', PIXELS, 100)
    paired.add_image('right', PIXELS, 106)
    taken = paired.take()
    assert taken.stamp_ns == 100
    assert (taken.joints, taken.pose) == ('joints 101', 'pose 101')


@given(st.integers(1000, 1100), st.integers(1000, 1100), st.integers(1000, 1100))
def test_paired_exactly_within_the_tolerance(left_ns, right_ns, state_ns):
    paired = pairing()
    add_state(paired, state_ns)
    paired.add_image('left', PIXELS, left_ns)
    paired.add_image('right', PIXELS, right_ns)
    oldest_ns = min(left_ns, right_ns)
    within = abs(left_ns - right_ns) <= TOLERANCE_NS and abs(state_ns - oldest_ns) <= TOLERANCE_NS
    assert (paired.take() is not None) == within


def test_replaced_image_is_a_drop_that_names_what_lacked():
    paired = pairing()
    assert paired.add_image('left', PIXELS, 100) is None
    drop = paired.add_image('left', PIXELS, 200)
    assert drop.reason == 'unpaired_image'
    assert drop.stamp_ns == 100
    assert 'right' in drop.detail
    assert 'joint states' in drop.detail


def test_camera_silent_for_too_long_is_missing():
    paired = pairing()
    reasons = [paired.add_image('left', PIXELS, stamp_ns) for stamp_ns in (100, 600, 1101)]
    assert [drop and drop.reason for drop in reasons] == [None, 'unpaired_image', 'missing_camera']
    assert 'right' in reasons[2].detail


def test_camera_that_falls_silent_is_missing():
    paired = pairing()
    paired.add_image('right', PIXELS, 100)
    paired.add_image('left', PIXELS, 1000)
    assert paired.add_image('left', PIXELS, 1101).reason == 'missing_camera'


def test_repeated_stamp_is_dropped_and_the_image_kept():
    paired = pairing()
    add_state(paired, 100)
    first = np.ones((2, 2, 3), np.uint8)
    paired.add_image('left', first, 100)
    assert paired.add_image('left', PIXELS, 100).reason == 'repeated_stamp'
    paired.add_image('right', PIXELS, 100)
    assert paired.take().images['left'] is first


def test_clock_backwards_forgets_everything_and_then_goes_on():
    paired = pairing()
    add_state(paired, 1000)
    paired.add_image('left', PIXELS, 1000)
    assert paired.add_image('left', PIXELS, 50).reason == 'clock_backwards'
    add_state(paired, 60)
    assert paired.add_image('left', PIXELS, 60) is None
    assert paired.add_image('right', PIXELS, 60) is None
    assert paired.take().stamp_ns == 60
