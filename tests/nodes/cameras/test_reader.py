"""A camera's thread: hangs are noticed, lost sources come back, nothing is left open."""

import threading
import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vla_cache_ros.core.errors import CameraError, ConfigError, PictureError
from vla_cache_ros.nodes.cameras.reader import (
    MAX_BAD_PICTURES,
    MAX_STUCK,
    CameraReader,
    ReaderSettings,
)
from vla_cache_ros.nodes.cameras.settings import CameraSettings, Frame, Opened

PICTURE = np.zeros((4, 6, 3), np.uint8)
QUICK = ReaderSettings(
    stall_timeout_s=0.1, give_up_s=0.2, first_backoff_s=0.01, last_backoff_s=0.02
)


class Camera:
    """All sources of one camera: what happens at each open and read is a script's choice."""

    def __init__(self) -> None:
        self.opens = 0
        self.closes = 0
        self.reads = 0
        self.plugged = True
        self.damaged = False
        self.opened = Opened()
        self.picture = PICTURE
        self.surprise: Exception | None = None
        self.pictures_left: int | None = None
        self.blocked = threading.Event()
        self.blocked.set()  # set: nothing blocks

    def __call__(self, clock: Callable[[], int], pause: Callable[[float], object]) -> 'Source':
        return Source(self, clock, pause)


class Source:
    def __init__(self, camera: Camera, clock, pause) -> None:
        self.camera, self.clock, self.pause = camera, clock, pause
        self.is_open = False

    def open(self) -> Opened:
        self.camera.blocked.wait(20)
        if not self.camera.plugged:
            raise CameraError('there is no device; plug the camera in')
        self.is_open = True
        self.camera.opens += 1
        return self.camera.opened

    def read(self) -> Frame | None:
        assert self.is_open
        self.pause(0.002)
        self.camera.blocked.wait(20)
        self.camera.reads += 1
        if self.camera.surprise is not None:
            raise self.camera.surprise
        if not self.camera.plugged:
            raise CameraError('unplugged')
        if self.camera.damaged:
            raise PictureError('damaged')
        if self.camera.pictures_left is not None:
            self.camera.pictures_left -= 1
            if self.camera.pictures_left < 0:
                return None
        return Frame(self.camera.picture, self.clock())

    def close(self) -> None:
        if self.is_open:
            self.is_open = False
            self.camera.closes += 1


@pytest.fixture
def camera() -> Iterator[Camera]:
    camera = Camera()
    yield camera
    camera.blocked.set()


class Watched:
    """A reader with the frames that it handed over, and its owner's regular `watch`."""

    def __init__(self, camera: Camera, asked: CameraSettings, settings: ReaderSettings) -> None:
        self.frames: list[Frame] = []
        self.reader = CameraReader('front', camera, self.frames.append, asked, settings)

    def until(self, condition: Callable[[], bool], timeout_s: float = 10.0) -> None:
        end_s = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < end_s, self.reader.status()
            self.reader.watch()
            time.sleep(0.005)

    def until_state(self, state: str) -> None:
        self.until(lambda: self.reader.status().state == state)

    def until_more(self, count: int = 3) -> None:
        wanted = len(self.frames) + count
        self.until(lambda: len(self.frames) >= wanted)


@pytest.fixture
def begin(camera) -> Iterator[Callable[..., Watched]]:
    started: list[Watched] = []

    def make(settings: ReaderSettings = QUICK, **asked) -> Watched:
        watched = Watched(camera, CameraSettings(**asked), settings)
        watched.reader.start()
        started.append(watched)
        return watched

    yield make
    camera.blocked.set()
    assert all(watched.reader.stop() for watched in started)


def test_pictures_come_with_growing_stamps(begin):
    watched = begin()
    watched.until_more(5)
    stamps_ns = [frame.captured_ns for frame in list(watched.frames)]
    assert stamps_ns == sorted(set(stamps_ns))
    status = watched.reader.status()
    assert (status.state, status.detail, status.failures) == ('streaming', '', 0)
    assert status.size_px == (6, 4)
    assert status.rate_hz > 0


def test_unplugged_camera_is_reported_and_comes_back(begin, camera):
    watched = begin()
    watched.until_more()
    camera.plugged = False
    watched.until_state('waiting')
    assert watched.reader.status().detail
    before, lost = len(watched.frames), watched.frames[-1].captured_ns
    watched.until(lambda: watched.reader.status().failures >= 3)
    assert len(watched.frames) == before
    camera.plugged = True
    watched.until_more()
    status = watched.reader.status()
    assert (status.state, status.reconnects) == ('streaming', 1)
    assert watched.frames[before].captured_ns > lost


def test_camera_that_is_not_there_at_first_is_no_reconnect(begin, camera):
    camera.plugged = False
    watched = begin()
    watched.until(lambda: watched.reader.status().failures >= 2)
    camera.plugged = True
    watched.until_more()
    assert watched.reader.status().reconnects == 0


def test_surprise_of_a_driver_is_a_failure_like_any_other(begin, camera):
    watched = begin()
    watched.until_more()
    camera.surprise = RuntimeError('select() timeout')
    watched.until(lambda: 'RuntimeError: select() timeout' in watched.reader.status().detail)
    camera.surprise = None
    watched.until_more()
    assert camera.opens == watched.reader.status().reconnects + 1


def test_every_source_that_was_opened_is_closed(begin, camera):
    watched = begin()
    for _ in range(3):
        watched.until_more()
        camera.plugged = False
        watched.until_state('waiting')
        camera.plugged = True
    watched.until_more()
    assert watched.reader.stop()
    assert camera.opens == camera.closes == 4


def test_stalled_camera_is_reported_and_goes_on_once_it_gives_pictures(begin, camera):
    watched = begin(
        ReaderSettings(stall_timeout_s=0.1, give_up_s=60, first_backoff_s=0.01, last_backoff_s=1)
    )
    watched.until_more()
    camera.blocked.clear()
    watched.until_state('stalled')
    assert 'no picture for' in watched.reader.status().detail
    camera.blocked.set()
    watched.until_more()
    status = watched.reader.status()
    assert (status.state, status.failures, status.reconnects) == ('streaming', 1, 1)
    assert camera.opens == 1


def test_slow_source_is_given_three_of_its_periods(begin, camera):
    camera.opened = Opened(rate_hz=1.0)
    watched = begin()
    watched.until_more()
    camera.blocked.clear()
    end_s = time.monotonic() + 0.5
    watched.until(lambda: time.monotonic() > end_s)
    assert watched.reader.status().state == 'streaming'


def test_blocked_read_is_given_up_and_gives_its_source_back_later(begin, camera):
    watched = begin()
    watched.until_more()
    camera.blocked.clear()
    watched.until_state('stalled')
    stuck, camera.blocked = camera.blocked, threading.Event()
    camera.blocked.set()  # a new connection works, the old read still hangs
    watched.until(lambda: watched.reader.status().stuck == 1)
    watched.until_more()
    assert watched.reader.status().state == 'streaming'
    assert (camera.opens, camera.closes) == (2, 0)
    stuck.set()
    watched.until(lambda: watched.reader.status().stuck == 0)
    assert camera.closes == 1


def test_no_more_than_so_many_threads_hang(begin, camera):
    watched = begin()
    watched.until_more()
    camera.blocked.clear()
    watched.until(lambda: 'restart the node' in watched.reader.status().detail)
    assert watched.reader.status().stuck == MAX_STUCK
    end_s = time.monotonic() + 0.6
    watched.until(lambda: time.monotonic() > end_s)
    hanging = [thread for thread in threading.enumerate() if thread.name == 'camera front']
    assert len(hanging) == MAX_STUCK + 1
    camera.blocked.set()
    watched.until_more()
    assert watched.reader.status().state == 'streaming'


def test_stopping_does_not_wait_for_a_read_that_hangs(begin, camera):
    watched = begin()
    watched.until_more()
    camera.blocked.clear()
    time.sleep(0.02)
    begun_s = time.monotonic()
    assert not watched.reader.stop(0.1)
    assert time.monotonic() - begun_s < 1
    before = len(watched.frames)
    camera.blocked.set()
    watched.until(lambda: camera.closes == 1)
    assert len(watched.frames) == before
    assert watched.reader.stop()
    assert watched.reader.status().state == 'stopped'


def test_reader_starts_again_with_new_figures(begin, camera):
    watched = begin()
    watched.until_more()
    assert watched.reader.stop()
    watched.frames.clear()
    watched.reader.start()
    watched.until_more()
    assert watched.reader.status().frames <= len(watched.frames)
    assert watched.reader.status().reconnects == 0


def test_damaged_pictures_are_left_out_and_counted(begin, camera):
    watched = begin()
    watched.until_more()
    camera.damaged = True
    watched.until(lambda: watched.reader.status().bad_pictures >= 5)
    camera.damaged = False
    watched.until_more()
    assert watched.reader.status().reconnects == 0
    assert camera.opens == 1


def test_source_of_nothing_but_damage_is_opened_anew(begin, camera):
    watched = begin(ReaderSettings(stall_timeout_s=60, first_backoff_s=0.01))
    watched.until_more()
    camera.damaged = True
    watched.until_state('waiting')
    assert watched.reader.status().bad_pictures == MAX_BAD_PICTURES
    assert watched.reader.status().detail == 'damaged'


def test_end_of_a_file_is_no_failure(begin, camera):
    camera.pictures_left = 4
    watched = begin()
    watched.until_state('ended')
    status = watched.reader.status()
    assert (status.frames, status.failures, len(watched.frames)) == (4, 0, 4)
    assert camera.closes == 1


def test_size_that_changes_is_reported(begin, camera):
    watched = begin(width_px=6, height_px=4)
    watched.until_more()
    assert watched.reader.status().refused == {}
    camera.picture = np.zeros((4, 12, 3), np.uint8)
    watched.until_more()
    assert watched.reader.status().refused == {'width_px': 'asked 6, got 12'}


def test_slower_pictures_than_asked_for_are_reported(begin):
    watched = begin(frame_rate_hz=1000.0)
    watched.until_more(70)
    assert 'asked 1000, measured' in watched.reader.status().refused['frame_rate_hz']


def test_what_the_device_refused_is_passed_on(begin, camera):
    camera.opened = Opened({'exposure': 'asked 200, got 10'})
    watched = begin()
    watched.until_more()
    assert watched.reader.status().refused == {'exposure': 'asked 200, got 10'}


@given(st.floats(0.001, 10), st.floats(0, 100), st.integers(0, 10_000))
def test_backoff_grows_up_to_its_limit(first_s, more_s, attempt):
    settings = ReaderSettings(first_backoff_s=first_s, last_backoff_s=first_s + more_s)
    assert settings.backoff_s(0) == first_s
    assert settings.backoff_s(attempt) <= settings.backoff_s(attempt + 1) <= first_s + more_s


@pytest.mark.parametrize(
    'settings',
    [{'stall_timeout_s': 0}, {'give_up_s': -1}, {'first_backoff_s': 2, 'last_backoff_s': 1}],
)
def test_timeouts_out_of_range_are_refused(settings):
    with pytest.raises(ConfigError, match='valid'):
        ReaderSettings(**settings)
