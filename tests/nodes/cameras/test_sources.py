"""Sources: real files and folders that OpenCV wrote, and stand-ins for devices and streams."""

import os
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vla_cache_ros.core.errors import CameraError, ConfigError, PictureError
from vla_cache_ros.nodes.cameras.devices import DeviceSource, StreamSource
from vla_cache_ros.nodes.cameras.files import FolderSource, VideoSource
from vla_cache_ros.nodes.cameras.settings import CameraSettings, without_password
from vla_cache_ros.nodes.cameras.sources import source_factory

SECOND_NS = 1_000_000_000
DEVICE = '/dev/null'  # a character device that everybody may open


class Clock:
    """A clock that moves when somebody sleeps."""

    def __init__(self) -> None:
        self.now_ns = 5 * SECOND_NS
        self.slept_s: list[float] = []

    def __call__(self) -> int:
        return self.now_ns

    def sleep(self, duration_s: float) -> None:
        self.slept_s.append(duration_s)
        self.now_ns += round(duration_s * 1e9)


class FakeCapture:
    """OpenCV's VideoCapture as far as sources use it; `limits` caps what a setting can be."""

    def __init__(self, *arguments, **limits: float) -> None:
        self.arguments = arguments
        self.values = {cv2.CAP_PROP_FRAME_WIDTH: 640.0, cv2.CAP_PROP_FRAME_HEIGHT: 480.0}
        self.values[cv2.CAP_PROP_FPS] = 30.0
        self.limits = {getattr(cv2, name): value for name, value in limits.items()}
        self.is_open = True
        self.gives = True
        self.picture: np.ndarray | None = np.full((480, 640, 3), (1, 2, 3), np.uint8)
        self.calls: list[tuple[int, float]] = []

    def __call__(self, *arguments) -> 'FakeCapture':
        self.arguments = arguments
        return self

    def isOpened(self) -> bool:  # noqa: N802  # OpenCV's name
        return self.is_open

    def set(self, number: int, value: float) -> bool:
        self.calls.append((number, value))
        self.values[number] = min(value, self.limits.get(number, value))
        return True

    def get(self, number: int) -> float:
        return self.values.get(number, 0.0)

    def grab(self) -> bool:
        return self.gives

    def retrieve(self):
        return self.picture is not None, self.picture

    def release(self) -> None:
        self.is_open = False


def device(capture: FakeCapture, clock: Clock | None = None, **settings) -> DeviceSource:
    return DeviceSource(DEVICE, CameraSettings(**settings), clock or Clock(), capture)


@pytest.fixture
def video(tmp_path) -> Path:
    """Five grey pictures of 64x48 pixels at 20 Hz: 0, 50, .., 200."""
    path = tmp_path / 'video.mp4'
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*'mp4v'), 20, (64, 48))
    for index in range(5):
        writer.write(np.full((48, 64, 3), 50 * index, np.uint8))
    writer.release()
    return path


@pytest.fixture
def folder(tmp_path) -> Path:
    """Three pictures, one per format, written in the wrong order; red is their number."""
    path = tmp_path / 'pictures'
    path.mkdir()
    for name, red in (('b.png', 20), ('c.webp', 30), ('a.jpg', 10)):
        cv2.imwrite(str(path / name), np.full((48, 64, 3), (0, 0, red), np.uint8))
    (path / 'notes.txt').write_text('not a picture')
    return path


def reds(source, count: int) -> list[int]:
    return [int(source.read().pixels[0, 0, 0]) for _ in range(count)]


# Files


def test_video_is_read_at_its_own_rate(video):
    clock = Clock()
    source = VideoSource(video, CameraSettings(loop=False), clock, clock.sleep)
    assert source.open().rate_hz == 20
    frames = [source.read() for _ in range(5)]
    stamps_ns = [frame.captured_ns for frame in frames]
    assert np.diff(stamps_ns).tolist() == [50_000_000] * 4
    np.testing.assert_allclose(
        [frame.pixels.mean() for frame in frames], range(0, 250, 50), atol=5
    )
    assert source.read() is None
    source.close()


def test_video_is_read_at_the_rate_asked_for(video):
    clock = Clock()
    source = VideoSource(video, CameraSettings(frame_rate_hz=100.0), clock, clock.sleep)
    assert source.open().rate_hz == 100
    stamps_ns = [source.read().captured_ns for _ in range(4)]
    assert np.diff(stamps_ns).tolist() == [10_000_000] * 3
    source.close()


def test_video_begins_anew_after_its_last_picture(video):
    clock = Clock()
    source = VideoSource(video, CameraSettings(loop=True), clock, clock.sleep)
    source.open()
    means = [source.read().pixels.mean() for _ in range(12)]
    np.testing.assert_allclose(means, [50 * (index % 5) for index in range(12)], atol=5)
    source.close()


def test_late_pictures_are_not_made_up_for(video):
    clock = Clock()
    source = VideoSource(video, CameraSettings(), clock, clock.sleep)
    source.open()
    source.read()
    clock.now_ns += SECOND_NS  # whoever reads was busy
    stamps_ns = [source.read().captured_ns for _ in range(3)]
    assert np.diff(stamps_ns).tolist() == [0, 50_000_000]
    source.close()


def test_folder_is_read_in_the_order_of_its_names(folder):
    clock = Clock()
    source = FolderSource(folder, CameraSettings(frame_rate_hz=10.0), clock, clock.sleep)
    assert source.open().rate_hz == 10
    np.testing.assert_allclose(reds(source, 7), [10, 20, 30, 10, 20, 30, 10], atol=2)
    np.testing.assert_allclose(clock.slept_s, [0.1] * 6)


def test_folder_ends_where_it_is_not_to_loop(folder):
    clock = Clock()
    source = FolderSource(folder, CameraSettings(loop=False), clock, clock.sleep)
    source.open()
    reds(source, 3)
    assert source.read() is None


def test_damaged_picture_is_named_and_the_next_one_is_read(folder):
    (folder / 'b.png').write_bytes((folder / 'b.png').read_bytes()[:40])
    clock = Clock()
    source = FolderSource(folder, CameraSettings(), clock, clock.sleep)
    source.open()
    reds(source, 1)
    with pytest.raises(PictureError, match=r'b\.png.*png'):
        source.read()
    np.testing.assert_allclose(reds(source, 1), [30], atol=2)


def test_folder_without_a_picture_that_can_be_read_is_refused(tmp_path):
    (tmp_path / 'a.png').write_bytes(b'no')
    source = FolderSource(tmp_path, CameraSettings(), Clock())
    with pytest.raises(CameraError, match=r'no picture that can be read.*a\.png'):
        source.open()


@pytest.mark.parametrize('kind', [VideoSource, FolderSource])
def test_size_of_a_file_that_differs_is_reported(kind, video, folder):
    path = video if kind is VideoSource else folder
    opened = kind(path, CameraSettings(width_px=320, height_px=48), Clock()).open()
    assert opened.refused == {'width_px': 'asked 320, got 64'}


def test_named_pipe_is_refused_instead_of_waited_for(tmp_path):
    os.mkfifo(tmp_path / 'pipe.mp4')
    with pytest.raises(CameraError, match='no video file'):
        VideoSource(tmp_path / 'pipe.mp4', CameraSettings(), Clock()).open()
    os.mkfifo(tmp_path / 'pipe.png')
    with pytest.raises(CameraError, match='no picture'):
        FolderSource(tmp_path, CameraSettings(), Clock()).open()


def test_file_that_is_no_video_is_refused(tmp_path):
    (tmp_path / 'noise.mp4').write_bytes(bytes(range(256)) * 40)
    source = VideoSource(tmp_path / 'noise.mp4', CameraSettings(), Clock())
    with pytest.raises(CameraError, match=r'noise\.mp4'):
        source.open()
    source.close()


@given(data=st.data())
def test_damaged_video_gives_pictures_or_a_camera_error(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp('video')
    path = folder / 'video.mp4'
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*'mp4v'), 20, (64, 48))
    for index in range(3):
        writer.write(np.full((48, 64, 3), 50 * index, np.uint8))
    writer.release()
    damaged = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 5))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(damaged[: data.draw(st.integers(0, len(damaged)))])
    source = VideoSource(path, CameraSettings(loop=False), Clock(), lambda _: None)
    reasons: list[str] = []
    try:
        source.open()
        while (frame := source.read()) is not None:
            assert frame.pixels.dtype == np.uint8
    except CameraError as error:
        reasons.append(str(error))
    finally:
        source.close()
    assert all('video.mp4' in reason for reason in reasons)


# Devices


def test_device_gives_rgb():
    source = device(FakeCapture())
    source.open()
    frame = source.read()
    assert frame.pixels[0, 0].tolist() == [3, 2, 1]


def test_settings_are_made_pixel_format_first():
    capture = FakeCapture()
    asked = {'width_px': 1280, 'height_px': 720, 'frame_rate_hz': 60.0, 'fourcc': 'MJPG'}
    assert device(capture, **asked).open().refused == {}
    assert capture.arguments == (DEVICE, cv2.CAP_V4L2)
    numbers = [number for number, _ in capture.calls]
    assert numbers.index(cv2.CAP_PROP_FOURCC) < numbers.index(cv2.CAP_PROP_FRAME_WIDTH)
    assert (cv2.CAP_PROP_AUTO_EXPOSURE, 3) in capture.calls
    assert (cv2.CAP_PROP_BUFFERSIZE, 1) in capture.calls


def test_exposure_is_made_manual_first():
    capture = FakeCapture()
    assert device(capture, exposure=157.0).open().refused == {}
    made = [call for call in capture.calls if call[0] != cv2.CAP_PROP_BUFFERSIZE]
    assert made == [(cv2.CAP_PROP_AUTO_EXPOSURE, 1), (cv2.CAP_PROP_EXPOSURE, 157.0)]


def test_what_the_device_refuses_is_reported_as_asked_and_got():
    mjpg, yuyv = (cv2.VideoWriter.fourcc(*name) for name in ('MJPG', 'YUYV'))
    assert yuyv > mjpg
    capture = FakeCapture(
        CAP_PROP_FRAME_WIDTH=1920, CAP_PROP_FPS=29.97, CAP_PROP_FOURCC=mjpg, CAP_PROP_EXPOSURE=10
    )
    opened = device(
        capture, width_px=3840, height_px=1080, frame_rate_hz=30.0, fourcc='YUYV', exposure=200.0
    ).open()
    assert opened.refused == {
        'fourcc': 'asked YUYV, got MJPG',
        'width_px': 'asked 3840, got 1920',
        'exposure': 'asked 200, got 10',
    }


@pytest.mark.parametrize(
    ('stamped_ms', 'expected_ns'),
    [(4_900.0, 4_900_000_000), (0.0, 5 * SECOND_NS), (5_001.0, 5 * SECOND_NS)],
    ids=['the kernel knows', 'it does not', 'it is in the future'],
)
def test_stamp_is_the_kernels_where_it_is_plausible(stamped_ms, expected_ns):
    capture = FakeCapture()
    source = device(capture)
    source.open()
    capture.values[cv2.CAP_PROP_POS_MSEC] = stamped_ms
    assert source.read().captured_ns == expected_ns


def test_unplugged_device_is_an_error_and_a_damaged_picture_another():
    capture = FakeCapture()
    source = device(capture)
    source.open()
    capture.picture = None
    with pytest.raises(PictureError):
        source.read()
    capture.gives = False
    with pytest.raises(CameraError, match='unplugged') as raised:
        source.read()
    assert not isinstance(raised.value, PictureError)


def test_device_that_is_not_there_is_named():
    source = DeviceSource('/dev/video77', CameraSettings())
    with pytest.raises(CameraError, match=r'/dev/video77; plug the camera in'):
        source.open()


def test_link_to_a_device_is_followed_anew_at_each_open(tmp_path):
    link = tmp_path / 'usb-camera-index0'
    source = DeviceSource(str(link), CameraSettings(), Clock(), capture := FakeCapture())
    with pytest.raises(CameraError, match='usb-camera-index0'):
        source.open()
    link.symlink_to('/dev/zero')
    source.open()
    assert capture.arguments[0] == '/dev/zero'


def test_file_in_the_place_of_a_device_is_refused(tmp_path):
    os.mkfifo(tmp_path / 'video0')
    with pytest.raises(CameraError, match='no camera device'):
        DeviceSource(str(tmp_path / 'video0'), CameraSettings()).open()


def test_real_device_that_is_no_camera_is_refused():
    source = DeviceSource(DEVICE, CameraSettings())
    with pytest.raises(CameraError, match='cannot be opened'):
        source.open()
    source.close()


def test_stream_has_limits_for_its_answers():
    capture = FakeCapture()
    source = StreamSource('rtsp://me:secret@camera/1', CameraSettings(), Clock(), capture)
    source.open()
    assert capture.arguments[1] == cv2.CAP_FFMPEG
    assert cv2.CAP_PROP_READ_TIMEOUT_MSEC in capture.arguments[2]
    capture.gives = False
    with pytest.raises(CameraError, match=r'rtsp://\*\*\*@camera/1 gives no picture'):
        source.read()


# Names


@pytest.mark.parametrize(
    ('text', 'kind'),
    [
        ('0', DeviceSource),
        ('/dev/video3', DeviceSource),
        ('usb-046d_HD_Pro_Webcam_C920_1234-video-index0', DeviceSource),
        ('rtsp://camera.local/1', StreamSource),
        ('https://camera.local/video.mjpg', StreamSource),
        ('recordings/kitchen.mp4', VideoSource),
        ('.', FolderSource),
    ],
)
def test_source_is_told_by_its_name(text, kind):
    source = source_factory(text, CameraSettings())(Clock(), lambda _: None)
    assert isinstance(source, kind)


def test_number_and_name_become_paths_of_devices():
    for text, path in (('7', '/dev/video7'), ('usb-x-index0', '/dev/v4l/by-id/usb-x-index0')):
        with pytest.raises(CameraError, match=path):
            source_factory(text, CameraSettings())(Clock(), lambda _: None).open()


@pytest.mark.parametrize(
    'text',
    [
        '',
        'v4l2src ! videoconvert ! appsink',
        'file:///etc/passwd',
        'concat://a',
        'ftp://x/y',
        'a\0',
    ],
)
def test_source_that_could_run_or_read_anything_is_refused(text):
    with pytest.raises(ConfigError, match='valid: a number'):
        source_factory(text, CameraSettings())


@given(st.text(max_size=40))
def test_any_name_gives_a_source_or_a_config_error(text):
    try:
        make = source_factory(text, CameraSettings())
    except ConfigError:
        return
    assert make(Clock(), lambda _: None) is not None


def test_password_is_not_shown():
    assert without_password('rtsp://me:secret@camera/1') == 'rtsp://***@camera/1'
    assert without_password('http://camera/1') == 'http://camera/1'


@pytest.mark.parametrize(
    'settings',
    [{'fourcc': 'MJ'}, {'exposure': -1.0}, {'frame_rate_hz': float('nan')}, {'width_px': -1}],
)
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(ConfigError, match='valid'):
        CameraSettings(**settings)
