"""Cameras, video files and image folders as image topics, each with a thread of its own.

A camera that is unplugged, hangs, or does not do what it was asked makes the node neither fail
nor wait: it says so on /diagnostics and in the log, and tries again by itself.
"""

import dataclasses
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray
from rclpy.publisher import Publisher
from sensor_msgs.msg import CameraInfo, CompressedImage, Image

from vla_cache_ros.nodes import qos
from vla_cache_ros.nodes.cameras.diagnostics import camera_diagnostics, not_as_asked
from vla_cache_ros.nodes.cameras.reader import CameraReader, CameraStatus, ReaderSettings
from vla_cache_ros.nodes.cameras.settings import CameraSettings, Frame, SourceFactory
from vla_cache_ros.nodes.cameras.sources import source_factory
from vla_cache_ros.nodes.cameras.wanted import WantedCamera, wanted_cameras
from vla_cache_ros.nodes.conversions import ns_to_stamp
from vla_cache_ros.nodes.image_conversions import (
    calibration_to_info,
    rgb_to_compressed,
    rgb_to_image,
)
from vla_cache_ros.nodes.latest_worker import LatestWorker
from vla_cache_ros.nodes.managed_node import ManagedNode
from vla_cache_ros.nodes.parameter_tables.camera_node import CameraParameters
from vla_cache_ros.nodes.parameters import declare, read
from vla_cache_ros.nodes.running import run_nodes

_WATCH_PERIOD_S = 0.1
_STOP_TIMEOUT_S = 2.0

SourceFinder = Callable[[str, CameraSettings], SourceFactory]


@dataclass
class Camera:
    """One camera at work.

    Attributes:
        wanted: What the parameters say.
        reader: Its thread.
        image: Publishes pictures as they are.
        compressed: Publishes them as JPEG; None where that is not wanted.
        info: Publishes the calibration; None without one.
        publishing: The thread that publishes while the reader goes on; None when stopped.
        reported_state: As last logged and published.
        counts: 'published'; 'superseded': replaced by a newer picture before that.
    """

    wanted: WantedCamera
    reader: CameraReader
    image: Publisher
    compressed: Publisher | None
    info: Publisher | None
    publishing: LatestWorker[Frame] | None = None
    reported_state: str = ''
    counts: Counter[str] = dataclasses.field(default_factory=Counter)


class CameraNode(ManagedNode):
    """Publishes cameras.

    Publishes (relative names, remappable), stamped at capture:
        camera/<name>/image_raw (sensor_msgs/Image, rgb8).
        camera/<name>/image_raw/compressed (sensor_msgs/CompressedImage, JPEG), if wanted.
        camera/<name>/camera_info (sensor_msgs/CameraInfo), if a calibration is given.
        /diagnostics (diagnostic_msgs/DiagnosticArray): a status per camera.
    """

    def __init__(
        self,
        node_name: str = 'camera_node',
        find_source: SourceFinder = source_factory,
        **node_arguments: Any,
    ) -> None:
        """Declare the parameters; cameras are opened at activation.

        Args:
            node_name: Name of the node.
            find_source: Stands in for the real sources in tests.
            **node_arguments: Passed on to rclpy's Node.

        Raises:
            ConfigError: A parameter is out of its range.
        """
        super().__init__(node_name, **node_arguments)
        self._find_source = find_source
        self._cameras: list[Camera] = []
        self._is_running = False
        self.supervise(declare(self, CameraParameters))

    @property
    def status(self) -> dict[str, CameraStatus]:
        """Camera name -> its state and figures."""
        return {camera.wanted.name: camera.reader.status() for camera in self._cameras}

    def allocate(self) -> None:
        """Check the parameters; make publishers and readers."""
        self._settings = parameters = read(self, CameraParameters)
        asked = CameraSettings(
            width_px=parameters.width_px,
            height_px=parameters.height_px,
            frame_rate_hz=parameters.frame_rate_hz,
            exposure=parameters.exposure,
            fourcc=parameters.fourcc,
            loop=parameters.loop,
        )
        timeouts = ReaderSettings(
            stall_timeout_s=parameters.stall_timeout_s,
            give_up_s=parameters.give_up_s,
            first_backoff_s=parameters.first_backoff_s,
            last_backoff_s=parameters.last_backoff_s,
        )
        found = [
            (wanted, self._find_source(wanted.source, asked))
            for wanted in wanted_cameras(parameters)
        ]
        self._cameras = [self._camera(wanted, make, asked, timeouts) for wanted, make in found]
        self._diagnostics = self.publisher(DiagnosticArray, '/diagnostics', qos.report())
        self._reported_s = 0.0
        self.timer(_WATCH_PERIOD_S, self._watch)

    def start(self) -> None:
        """Open the cameras, each in its own thread."""
        self._is_running = True
        for camera in self._cameras:
            camera.counts.clear()
            camera.reported_state = ''
            camera.publishing = LatestWorker(
                lambda frame, camera=camera: self._publish(camera, frame),
                f'publish {camera.wanted.name}',
            )
            camera.reader.start()

    def stop(self) -> None:
        """End the threads; no picture is published after this."""
        self._is_running = False
        for camera in self._cameras:
            camera.reader.ask_to_stop()
        end_s = time.monotonic() + _STOP_TIMEOUT_S
        for camera in self._cameras:
            if not camera.reader.stop(max(0.0, end_s - time.monotonic())):
                self.get_logger().error(
                    f'camera {camera.wanted.name}: its driver hangs; the device stays open until '
                    'its read returns or this process ends.'
                )
            if camera.publishing is not None:
                camera.publishing.close()
                camera.publishing = None

    def release(self) -> None:
        """Forget the cameras."""
        self._cameras = []

    def _camera(
        self,
        wanted: WantedCamera,
        make_source: SourceFactory,
        asked: CameraSettings,
        timeouts: ReaderSettings,
    ) -> Camera:
        camera = wanted.name
        image = self.publisher(Image, f'camera/{camera}/image_raw', qos.frame())
        compressed = info = None
        if self._settings.publish_compressed:
            compressed = self.publisher(
                CompressedImage, f'camera/{camera}/image_raw/compressed', qos.frame()
            )
        if wanted.calibration is not None:
            info = self.publisher(CameraInfo, f'camera/{camera}/camera_info', qos.frame())

        def take(frame: Frame) -> None:
            assert made.publishing is not None  # runs between start and stop alone
            if made.publishing.submit(frame) is not None:
                made.counts['superseded'] += 1

        reader = CameraReader(wanted.name, make_source, take, asked, timeouts)
        made = Camera(wanted, reader, image, compressed, info)
        return made

    def _publish(self, camera: Camera, frame: Frame) -> None:
        """Publish one picture, stamped on the node's clock with the moment of its capture."""
        age_ns = time.monotonic_ns() - frame.captured_ns
        stamp = ns_to_stamp(max(0, self.get_clock().now().nanoseconds - age_ns))
        frame_id, calibration = camera.wanted.frame_id, camera.wanted.calibration
        camera.image.publish(rgb_to_image(frame.pixels, stamp, frame_id))
        if camera.compressed is not None and camera.compressed.get_subscription_count():
            quality = self._settings.jpeg_quality
            camera.compressed.publish(
                rgb_to_compressed(frame.pixels, stamp, frame_id, quality=quality)
            )
        if camera.info is not None and calibration is not None:
            height_px, width_px = frame.pixels.shape[:2]
            if calibration.size_px == (width_px, height_px):
                camera.info.publish(calibration_to_info(calibration, stamp, frame_id))
        camera.counts['published'] += 1

    def _watch(self) -> None:
        """Notice what hangs; report changes at once and everything now and then."""
        if not self._is_running:
            return
        now_s = time.monotonic()
        is_due = now_s - self._reported_s >= self._settings.diagnostics_period_s
        for camera in self._cameras:
            camera.reader.watch()
            status = camera.reader.status()
            if status.state != camera.reported_state:
                self._log(camera, status)
                is_due = True
        if is_due:
            self._reported_s = now_s
            message = DiagnosticArray()
            message.header.stamp = self.get_clock().now().to_msg()
            message.status = [
                camera_diagnostics(
                    camera.wanted, camera.reader.status(), camera.counts, self.get_namespace()
                )
                for camera in self._cameras
            ]
            self._diagnostics.publish(message)

    def _log(self, camera: Camera, status: CameraStatus) -> None:
        """Say that a camera's state has changed."""
        camera.reported_state = status.state
        text = f'camera {camera.wanted.name} ({camera.wanted.shown_source}): {status.state}'
        if status.detail:
            text += f': {status.detail}'
        if status.state == 'streaming':
            width_px, height_px = status.size_px
            text += f', {width_px}x{height_px}, {status.reconnects} reconnects'
        remarks = not_as_asked(camera.wanted, status)
        if remarks:
            listed = ', '.join(f'{name} {what}' for name, what in remarks.items())
            text += f'; not as asked: {listed}'
        # rclpy wants one severity per place in the code.
        if status.state in ('opening', 'streaming', 'ended') and not remarks:
            self.get_logger().info(text)
        else:
            self.get_logger().warning(text)


def main(args: list[str] | None = None) -> int:
    """Run the node on its own."""
    return run_nodes(CameraNode, args=args)
