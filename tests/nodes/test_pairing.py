"""Images and states are paired by stamp within the tolerance; every drop has its reason."""

import itertools
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vla_cache_ros.nodes.pairing import IMAGE_HISTORY, Drop, Pairing

pytestmark = pytest.mark.ros

TOLERANCE_NS = 10
CAMERAS = ('left', 'right')
ARRIVALS = st.lists(st.tuples(st.sampled_from(range(3)), st.integers(0, 12)), max_size=60)


class Paired(Pairing):
    """A pairing that remembers its drops."""

    def __init__(self, cameras=CAMERAS, joints=('finger',), silence_ns=1000) -> None:
        self.drops: list[Drop] = []
        super().__init__(
            cameras,
            joints,
            tolerance_ns=TOLERANCE_NS,
            silence_ns=silence_ns,
            on_drop=self.drops.append,
        )

    @property
    def reasons(self) -> Counter[str]:
        return Counter(drop.reason for drop in self.drops)


def add_state(paired: Pairing, stamp_ns: int) -> None:
    paired.add_joints(['elbow', 'finger'], [0.0, float(stamp_ns)], stamp_ns)
    paired.add_pose(f'pose {stamp_ns}', stamp_ns)


def test_nothing_before_everything_is_there():
    paired = Paired()
    paired.add_image('left', 'L', 100)
    assert paired.take() is None
    paired.add_image('right', 'R', 100)
    assert paired.take() is None
    assert paired.waits_for_state
    paired.add_joints(['finger'], [0.5], 100)
    assert paired.take() is None
    paired.add_pose('pose', 100)
    taken = paired.take()
    assert taken.images == {'left': 'L', 'right': 'R'}
    assert (taken.joints, taken.pose, taken.stamp_ns) == ({'finger': 0.5}, 'pose', 100)
    assert not paired.waits_for_state


def test_state_nearest_to_the_oldest_image_is_chosen():
    paired = Paired()
    for stamp_ns in (92, 101, 108):
        add_state(paired, stamp_ns)
    paired.add_image('left', 'L', 100)
    paired.add_image('right', 'R', 106)
    taken = paired.take()
    assert taken.stamp_ns == 100
    assert (taken.joints, taken.pose) == ({'finger': 101.0}, 'pose 101')


def test_joints_of_several_messages_are_merged_by_name():
    paired = Paired(cameras=('left',), joints=('finger', 'thumb'))
    paired.add_pose('pose', 100)
    paired.add_joints(['elbow', 'finger'], [1.0, 2.0], 96)
    paired.add_image('left', 'L', 100)
    assert paired.take() is None
    paired.add_joints(['thumb'], [3.0], 104)
    assert paired.take().joints == {'finger': 2.0, 'thumb': 3.0}


def test_messages_without_positions_are_no_state():
    paired = Paired(cameras=('left',))
    paired.add_pose('pose', 100)
    paired.add_joints(['elbow', 'finger'], [], 100)
    paired.add_image('left', 'L', 100)
    assert paired.take() is None


@given(st.integers(1000, 1100), st.integers(1000, 1100), st.integers(1000, 1100))
def test_paired_exactly_within_the_tolerance(left_ns, right_ns, state_ns):
    paired = Paired()
    add_state(paired, state_ns)
    paired.add_image('left', 'L', left_ns)
    paired.add_image('right', 'R', right_ns)
    oldest_ns = min(left_ns, right_ns)
    within = abs(left_ns - right_ns) <= TOLERANCE_NS and abs(state_ns - oldest_ns) <= TOLERANCE_NS
    assert (paired.take() is not None) == within


@given(ARRIVALS, st.integers(1, 3))
def test_a_set_is_found_where_one_exists_and_no_image_is_used_twice(arrivals, count):
    """Cameras that run as they please; each image ends as used, as a drop, or as waiting."""
    cameras = ('left', 'right', 'wrist')[:count]
    paired = Paired(cameras, silence_ns=100_000)
    waiting: dict[str, set[int]] = {name: set() for name in cameras}
    newest = dict.fromkeys(cameras, 0)
    used: list[tuple[str, int]] = []
    given_images = 0
    for camera_index, gap_ns in arrivals:
        camera = cameras[camera_index % count]
        stamp_ns = max(newest.values()) - 6 + gap_ns
        if stamp_ns <= newest[camera]:
            stamp_ns = newest[camera] + 1
        newest[camera] = stamp_ns
        add_state(paired, stamp_ns)
        assert paired.add_image(camera, (camera, stamp_ns), stamp_ns) is None
        given_images += 1
        waiting[camera].add(stamp_ns)
        exists = any(
            max(chosen) - min(chosen) <= TOLERANCE_NS
            for chosen in itertools.product(*waiting.values())
        )
        taken = paired.take()
        assert (taken is not None) == exists
        if taken is not None:
            stamps = {name: stamp for name, stamp in taken.images.values()}
            assert max(stamps.values()) - min(stamps.values()) <= TOLERANCE_NS
            assert taken.stamp_ns == min(stamps.values())
            used += taken.images.values()
            for name, stamp in stamps.items():
                waiting[name] = {kept for kept in waiting[name] if kept > stamp}
        assert paired.waiting == sum(map(len, waiting.values()))
    assert len(used) == len(set(used))
    assert given_images == len(used) + len(paired.drops) + paired.waiting
    paired.clear()
    assert given_images == len(used) + len(paired.drops)


@pytest.mark.parametrize('phase_ms', range(0, 34, 3))
def test_unsynchronised_cameras_at_30_hz_lose_no_pair(phase_ms):
    """Half a period is the most that two nearest frames can be apart."""
    paired = Pairing(
        CAMERAS,
        (),
        tolerance_ns=17_000_000,
        silence_ns=500_000_000,
        on_drop=lambda drop: None,
    )
    frames = [(k * 33_333_333, 'left') for k in range(60)]
    frames += [(k * 33_333_333 + phase_ms * 1_000_000, 'right') for k in range(60)]
    taken = 0
    for stamp_ns, camera in sorted(frames):
        paired.add_pose('pose', stamp_ns)
        paired.add_image(camera, camera, stamp_ns)
        taken += paired.take() is not None
    assert taken >= 59


def test_an_image_that_waited_too_long_names_what_lacked():
    paired = Paired(cameras=('left',), silence_ns=150)
    paired.add_image('left', 'L', 100)
    paired.add_image('left', 'L', 200)
    assert paired.drops == []
    paired.add_image('left', 'L', 300)
    (drop,) = paired.drops
    assert (drop.reason, drop.stamp_ns) == ('unpaired_image', 100)
    assert 'finger, pose' in drop.detail


def test_no_more_images_wait_than_allowed():
    paired = Paired(cameras=('left',), silence_ns=10**9)
    for stamp_ns in range(1, IMAGE_HISTORY + 10):
        paired.add_image('left', 'L', stamp_ns)
    assert paired.waiting == IMAGE_HISTORY
    assert paired.reasons == {'unpaired_image': 9}


def test_camera_silent_for_too_long_is_missing():
    paired = Paired()
    for stamp_ns in (100, 600, 1101, 1200):
        paired.add_image('left', 'L', stamp_ns)
    assert paired.reasons == {'missing_camera': 3}
    assert [drop.stamp_ns for drop in paired.drops] == [100, 600, 1101]
    assert 'right' in paired.drops[0].detail


def test_camera_that_falls_silent_is_missing():
    paired = Paired()
    paired.add_image('right', 'R', 100)
    paired.add_image('left', 'L', 1000)
    paired.add_image('left', 'L', 1101)
    assert paired.reasons == {'missing_camera': 1}


def test_joints_that_are_never_heard_of_are_named():
    paired = Paired(cameras=('left',))
    paired.add_joints(['elbow'], [0.0], 100)
    paired.add_image('left', 'L', 100)
    paired.add_image('left', 'L', 200)
    (drop,) = paired.drops
    assert drop.reason == 'missing_joint'
    assert 'lack finger; they hold: elbow' in drop.detail


def test_repeated_stamp_is_dropped_and_the_image_kept():
    paired = Paired()
    add_state(paired, 100)
    paired.add_image('left', 'first', 100)
    assert paired.add_image('left', 'second', 100).reason == 'repeated_stamp'
    paired.add_image('right', 'R', 100)
    assert paired.take().images['left'] == 'first'


def test_clock_backwards_forgets_everything_and_then_goes_on():
    paired = Paired()
    add_state(paired, 10_000)
    paired.add_image('left', 'L', 10_000)
    assert paired.add_image('left', 'L', 50).reason == 'clock_backwards'
    assert paired.reasons == {'voided_image': 1}
    add_state(paired, 60)
    assert paired.add_image('left', 'L', 60) is None
    assert paired.add_image('right', 'R', 60) is None
    assert paired.take().stamp_ns == 60
