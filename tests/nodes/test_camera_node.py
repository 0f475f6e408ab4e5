"""camera_node with real files and with stand-ins for devices: topics, faults, no leaks."""

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from rclpy.lifecycle import TransitionCallbackReturn
from rclpy.node import Node
from rclpy.parameter import Parameter
from sensor_msgs.msg import CameraInfo, CompressedImage, Image

from vla_cache_ros.core.errors import CameraError
from vla_cache_ros.nodes import qos
from vla_cache_ros.nodes.camera_node import CameraNode
from vla_cache_ros.nodes.cameras.settings import Frame, Opened
from vla_cache_ros.nodes.cameras.sources import source_factory
from vla_cache_ros.nodes.conversions import stamp_to_ns
from vla_cache_ros.nodes.image_conversions import compressed_to_rgb, image_to_rgb

pytestmark = pytest.mark.ros

SUCCESS, FAILURE = TransitionCallbackReturn.SUCCESS, TransitionCallbackReturn.FAILURE
CALIBRATION = """
image_width: 64
image_height: 48
camera_matrix: {data: [50.0, 0.0, 32.0, 0.0, 50.0, 24.0, 0.0, 0.0, 1.0]}
distortion_coefficients: {data: [0.0, 0.0, 0.0, 0.0, 0.0]}
"""
QUICK = {
    'stall_timeout_s': 0.2,
    'give_up_s': 0.3,
    'first_backoff_s': 0.02,
    'last_backoff_s': 0.05,
    'diagnostics_period_s': 0.1,
}


class Devices:
    """Cameras by source name; each is plugged in and blocked by hand."""

    def __init__(self) -> None:
        self.plugged = {'/dev/video0': True, '/dev/video1': True}
        self.blocked = threading.Event()
        self.blocked.set()
        self.open_now = 0

    def find(self, text: str, settings):
        return lambda clock, pause: Device(self, text, clock, pause)


class Device:
    def __init__(self, devices: Devices, text: str, clock, pause) -> None:
        self.devices, self.text, self.clock, self.pause = devices, text, clock, pause
        self.is_open = False

    def open(self) -> Opened:
        self._check()
        self.is_open = True
        self.devices.open_now += 1
        return Opened({'exposure': 'asked 200, got 10'} if self.text == '/dev/video1' else {})

    def read(self) -> Frame | None:
        self.pause(0.01)
        self.devices.blocked.wait(30)
        self._check()
        return Frame(np.full((48, 64, 3), int(self.text[-1]), np.uint8), self.clock())

    def close(self) -> None:
        self.devices.open_now -= self.is_open
        self.is_open = False

    def _check(self) -> None:
        if not self.devices.plugged[self.text]:
            raise CameraError(f'there is no device {self.text}')


class Listener(Node):
    """Everything that camera_node publishes."""

    def __init__(self) -> None:
        super().__init__('listener')
        self.images: dict[str, list[Image]] = {'front': [], 'wrist': []}
        self.compressed: list[CompressedImage] = []
        self.infos: list[CameraInfo] = []
        self.diagnostics: list[DiagnosticArray] = []
        for camera, kept in self.images.items():
            qos.subscribe(self, Image, f'camera/{camera}/image_raw', kept.append, qos.frame())
        topic = 'camera/front/image_raw/compressed'
        qos.subscribe(self, CompressedImage, topic, self.compressed.append, qos.frame())
        topic = 'camera/front/camera_info'
        qos.subscribe(self, CameraInfo, topic, self.infos.append, qos.frame())
        qos.subscribe(self, DiagnosticArray, '/diagnostics', self.diagnostics.append, qos.report())

    def status(self, camera: str) -> DiagnosticStatus:
        """The newest of one camera."""
        name = f'vla_cache: camera {camera}'
        for message in reversed(self.diagnostics):
            for status in message.status:
                if status.name == name:
                    return status
        return DiagnosticStatus(level=DiagnosticStatus.STALE)


@pytest.fixture
def listener(executor) -> Listener:
    listener = Listener()
    executor.add_node(listener)
    return listener


@pytest.fixture
def devices():
    devices = Devices()
    yield devices
    devices.blocked.set()


@pytest.fixture
def make_node(executor) -> Callable[..., CameraNode]:
    def make(find=source_factory, **parameters) -> CameraNode:
        overrides = [Parameter(name, value=value) for name, value in (QUICK | parameters).items()]
        node = CameraNode(find_source=find, parameter_overrides=overrides)
        executor.add_node(node)
        return node

    return make


@pytest.fixture
def make_devices_node(make_node, devices) -> Callable[..., CameraNode]:
    def make(**parameters) -> CameraNode:
        node = make_node(
            devices.find,
            camera_names=['front', 'wrist'],
            sources=['/dev/video0', '/dev/video1'],
            **parameters,
        )
        assert node.trigger_configure() == SUCCESS
        assert node.trigger_activate() == SUCCESS
        return node

    return make


@pytest.fixture
def video(tmp_path) -> Path:
    path = tmp_path / 'video.mp4'
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*'mp4v'), 50, (64, 48))
    for _ in range(5):
        writer.write(np.full((48, 64, 3), 90, np.uint8))
    writer.release()
    return path


def values_of(status: DiagnosticStatus) -> dict[str, str]:
    return {pair.key: pair.value for pair in status.values}


def descriptors() -> set[str]:
    """What this process holds open, sockets and pipes of the middleware left out."""
    links = set()
    for link in Path('/proc/self/fd').iterdir():
        try:
            links.add(os.readlink(link))
        except OSError:
            continue  # the one that listed the folder
    return {link for link in links if link.startswith('/') and '/dev/shm' not in link}


def camera_threads() -> list[str]:
    return [
        thread.name
        for thread in threading.enumerate()
        if thread.name.startswith(('camera ', 'publish '))
    ]


def test_video_becomes_image_compressed_and_info(make_node, listener, spin_until, video, tmp_path):
    (tmp_path / 'front.yaml').write_text(CALIBRATION)
    node = make_node(
        camera_names=['front'],
        sources=[str(video)],
        calibrations=[str(tmp_path / 'front.yaml')],
        publish_compressed=True,
    )
    assert node.trigger_configure() == SUCCESS
    assert node.trigger_activate() == SUCCESS
    images = listener.images['front']
    spin_until(lambda: len(images) > 12 and listener.compressed and listener.infos)
    np.testing.assert_allclose(image_to_rgb(images[-1]).astype(int), 90, atol=4)
    np.testing.assert_allclose(compressed_to_rgb(listener.compressed[-1]).astype(int), 90, atol=6)
    assert images[-1].header.frame_id == 'front_optical_frame'
    stamps_ns = [stamp_to_ns(image.header.stamp) for image in images]
    assert stamps_ns == sorted(set(stamps_ns))
    now_ns = node.get_clock().now().nanoseconds
    assert 0 < now_ns - stamps_ns[-1] < 2_000_000_000
    stamps = {stamp_to_ns(info.header.stamp) for info in listener.infos}
    assert stamps <= set(stamps_ns) | {max(stamps)}
    assert listener.infos[-1].k[0] == 50.0


def test_folder_is_published_in_order(make_node, listener, spin_until, tmp_path):
    for index in range(3):
        cv2.imwrite(str(tmp_path / f'{index}.png'), np.full((8, 8, 3), index, np.uint8))
    node = make_node(
        camera_names=['front'], sources=[str(tmp_path)], frame_rate_hz=20.0, loop=False
    )
    node.trigger_configure()
    node.trigger_activate()
    spin_until(lambda: values_of(listener.status('front')).get('state') == 'ended')
    shown = [int(image_to_rgb(image)[0, 0, 0]) for image in listener.images['front']]
    assert shown == sorted(shown)
    assert shown[-1] == 2
    assert listener.status('front').level == DiagnosticStatus.OK


def test_two_cameras_side_by_side(make_devices_node, listener, spin_until):
    make_devices_node()
    spin_until(lambda: min(map(len, listener.images.values())) > 5)
    for camera, value in (('front', 0), ('wrist', 1)):
        assert {int(image_to_rgb(image)[0, 0, 0]) for image in listener.images[camera]} == {value}
    spin_until(lambda: listener.status('front').level == DiagnosticStatus.OK)
    assert 'Hz' in listener.status('front').message


def test_refused_setting_is_a_warning(make_devices_node, listener, spin_until):
    make_devices_node()
    spin_until(lambda: 'not as asked' in listener.status('wrist').message)
    status = listener.status('wrist')
    assert status.level == DiagnosticStatus.WARN
    assert values_of(status)['not as asked: exposure'] == 'asked 200, got 10'


def test_calibration_of_another_size_is_a_warning_and_not_published(
    make_node, listener, spin_until, video, tmp_path
):
    path = tmp_path / 'front.yaml'
    path.write_text(CALIBRATION.replace('64', '640'))
    node = make_node(camera_names=['front'], sources=[str(video)], calibrations=[str(path)])
    node.trigger_configure()
    node.trigger_activate()
    spin_until(lambda: 'made at 640x48, got 64x48' in listener.status('front').message)
    assert listener.infos == []


def test_unplugged_camera_is_an_error_and_comes_back_while_the_other_goes_on(
    make_devices_node, listener, spin_until, devices
):
    node = make_devices_node()
    front, wrist = listener.images['front'], listener.images['wrist']
    spin_until(lambda: front and wrist)
    devices.plugged['/dev/video0'] = False
    spin_until(lambda: listener.status('front').level == DiagnosticStatus.ERROR)
    assert 'there is no device /dev/video0' in listener.status('front').message
    lost, seen = stamp_to_ns(front[-1].header.stamp), len(wrist)
    spin_until(lambda: len(wrist) > seen + 5)
    front.clear()
    devices.plugged['/dev/video0'] = True
    spin_until(lambda: len(front) > 2)
    assert stamp_to_ns(front[0].header.stamp) > lost
    spin_until(lambda: listener.status('front').level == DiagnosticStatus.OK)
    assert values_of(listener.status('front'))['reconnects'] == '1'
    assert node.status['front'].reconnects == 1


def test_blocked_camera_is_an_error_and_deactivation_does_not_wait(
    make_devices_node, listener, spin_until, devices
):
    node = make_devices_node()
    spin_until(lambda: listener.images['front'])
    devices.blocked.clear()
    spin_until(lambda: 'stalled' in listener.status('front').message)
    assert listener.status('front').level == DiagnosticStatus.ERROR
    begun_s = time.monotonic()
    assert node.trigger_deactivate() == SUCCESS
    assert time.monotonic() - begun_s < 4
    assert node.lifecycle_state == 'inactive'
    devices.blocked.set()
    spin_until(lambda: not camera_threads())
    assert devices.open_now == 0
    assert node.trigger_activate() == SUCCESS
    listener.images['front'].clear()
    spin_until(lambda: listener.images['front'])


def test_reading_does_not_hold_up_the_executor(make_devices_node, spin_for, devices):
    node = make_devices_node()
    spin_for(0.2)
    devices.blocked.clear()
    ticks: list[float] = []
    node.timer(0.02, lambda: ticks.append(time.monotonic()))
    spin_for(0.5)
    assert len(ticks) > 10


def test_every_transition_leaves_no_thread_and_no_descriptor(make_node, spin_for, video, tmp_path):
    pictures = tmp_path / 'pictures'
    pictures.mkdir()
    cv2.imwrite(str(pictures / 'a.png'), np.zeros((8, 8, 3), np.uint8))
    node = make_node(camera_names=['front', 'wrist'], sources=[str(video), str(pictures)])
    before = descriptors()
    for _ in range(4):
        assert node.trigger_configure() == SUCCESS
        assert node.trigger_activate() == SUCCESS
        spin_for(0.1)
        assert len(camera_threads()) == 4
        assert str(video) in descriptors()
        assert node.trigger_deactivate() == SUCCESS
        assert camera_threads() == []
        assert node.trigger_activate() == SUCCESS
        assert node.trigger_deactivate() == SUCCESS
        assert node.trigger_cleanup() == SUCCESS
        assert descriptors() == before
    node.trigger_configure()
    node.trigger_activate()
    assert node.trigger_shutdown() == SUCCESS
    assert camera_threads() == []
    assert descriptors() == before


def test_publishes_nothing_once_deactivated(make_devices_node, listener, spin_until, spin_for):
    node = make_devices_node()
    spin_until(lambda: listener.images['front'])
    node.trigger_deactivate()
    spin_for(0.1)
    for kept in listener.images.values():
        kept.clear()
    spin_for(0.2)
    assert listener.images == {'front': [], 'wrist': []}


@pytest.mark.parametrize(
    'parameters',
    [
        {'sources': ['0', '1']},
        {'sources': ['v4l2src ! appsink']},
        {'fourcc': 'MJ'},
        {'calibrations': ['/nowhere.yaml']},
        {'first_backoff_s': 9.0},
    ],
)
def test_bad_parameters_fail_the_configuration_and_not_the_node(make_node, parameters):
    node = make_node(**parameters)
    assert node.trigger_configure() == FAILURE
    assert node.lifecycle_state == 'unconfigured'
    node.set_parameters(
        [
            Parameter(name, value=value)
            for name, value in (
                {'sources': ['0'], 'fourcc': '', 'calibrations': [''], 'first_backoff_s': 0.01}
            ).items()
        ]
    )
    assert node.trigger_configure() == SUCCESS


def test_camera_that_is_not_there_does_not_stop_activation(make_node, listener, spin_until):
    node = make_node(camera_names=['front'], sources=['/dev/video77'])
    assert node.trigger_configure() == SUCCESS
    assert node.trigger_activate() == SUCCESS
    spin_until(lambda: listener.status('front').level == DiagnosticStatus.ERROR)
    assert 'there is no camera device /dev/video77' in listener.status('front').message
