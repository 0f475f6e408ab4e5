"""Records the graph as MCAP, beside the robot and never in its way.

Messages are taken as the bytes that the middleware delivered and handed to a thread of their own,
so that neither the executor nor another node waits for the disk. When the disk is full, or fails,
the recording stops, says so on /diagnostics, and everything else goes on.
"""

import time
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rclpy.subscription import Subscription
from std_srvs.srv import Trigger

from vla_cache_ros.core.errors import RecordingError, VlaCacheError
from vla_cache_ros.nodes import qos
from vla_cache_ros.nodes.managed_node import ManagedNode
from vla_cache_ros.nodes.parameter_tables.recorder import RecorderParameters
from vla_cache_ros.nodes.parameters import declare, read
from vla_cache_ros.nodes.running import run_nodes
from vla_cache_ros.nodes.topic_choice import describe_topic, is_chosen, message_class
from vla_cache_ros.recording.background import BackgroundWriter, RecordingStatus
from vla_cache_ros.recording.container import RawMessage
from vla_cache_ros.recording.limits import MIB, WriterLimits
from vla_cache_ros.recording.writer import RecordingWriter, disk_free_bytes, unused_stem


class RecorderNode(ManagedNode):
    """Records topics.

    Subscribes:
        Whatever `topics` means, with the QoS that its publishers offer, as soon as it has a
            publisher; anew at each start, so that latched messages are in every recording.
    Publishes:
        /diagnostics (diagnostic_msgs/DiagnosticArray): the file, its size, messages by topic.
    Serves:
        ~/start, ~/stop (std_srvs/Trigger): begin a new recording, end the one that runs; answered
            with the file's name. Only while active.
    """

    def __init__(self, node_name: str = 'recorder', **node_arguments: Any) -> None:
        """Declare the parameters; nothing is recorded before `activate`.

        Args:
            node_name: Name of the node.
            **node_arguments: Passed on to rclpy's Node.
        """
        super().__init__(node_name, **node_arguments)
        self._settings = declare(self, RecorderParameters)
        self._recording: BackgroundWriter | None = None
        self._last: RecordingStatus | None = None  # of the recording that ended
        self._failure = ''  # why there is none although there should be
        self._inputs: dict[str, Subscription] = {}
        self._refused: dict[str, str] = {}  # topic -> why it cannot be recorded
        self._rate = (time.monotonic(), 0)  # when, and bytes then: for the size per minute
        self.supervise(self._settings)

    @property
    def is_recording(self) -> bool:
        """Whether messages are being written."""
        return self._recording is not None

    @property
    def status(self) -> RecordingStatus | None:
        """How the recording stands, or how the last one ended; None before the first."""
        return self._recording.status() if self._recording is not None else self._last

    # Lifecycle

    def allocate(self) -> None:
        """Read the parameters and offer the services."""
        self._settings = read(self, RecorderParameters)
        self._diagnostics = self.publisher(DiagnosticArray, '/diagnostics', qos.report())
        self.service(Trigger, '~/start', self._on_start)
        self.service(Trigger, '~/stop', self._on_stop)
        self.timer(self._settings.discovery_period_s, self._look)
        self.timer(self._settings.publish_period_s, self._publish)

    def start(self) -> None:
        """Begin to record, where that is wanted; that it cannot must not stop the robot."""
        if self._settings.record_on_activate:
            try:
                self._begin()
            except VlaCacheError as error:
                self._note_failure(str(error))

    def stop(self) -> None:
        """End the recording: write what waits and close the file."""
        self._end()

    # Recording

    def _begin(self) -> None:
        settings = self._settings
        folder = Path(settings.folder).expanduser()
        moment = datetime.now(timezone.utc).strftime('%Y%m%d_%H%M%SZ')
        writer = RecordingWriter(
            folder,
            unused_stem(folder, f'{settings.prefix}_{moment}'),
            time.monotonic,
            WriterLimits(
                file_bytes=settings.max_file_mib * MIB,
                file_s=settings.max_file_s,
                min_free_bytes=settings.min_free_mib * MIB,
                compression=settings.compression,
            ),
        )
        self._recording = BackgroundWriter(
            writer,
            settings.queue_mib * MIB,
            settings.flush_period_s,
            settings.sync_period_s,
        )
        self._failure, self._refused = '', {}
        self._rate = (time.monotonic(), 0)
        self.get_logger().info(f'recording to {writer.path}')
        self._look()

    def _end(self) -> None:
        """Stop receiving, write what waits, close the file. Idempotent."""
        for subscription in self._inputs.values():
            self.destroy_subscription(subscription)
        self._inputs = {}
        if self._recording is None:
            return
        recording, self._recording = self._recording, None
        self._last = ended = recording.close()
        if ended.failure:
            self._note_failure(ended.failure)
        self.get_logger().info(
            f'recorded {sum(ended.written.values())} messages, {ended.size_bytes / MIB:.1f} MiB, '
            f'up to {ended.path}; dropped {sum(ended.dropped.values())}'
        )

    def _look(self) -> None:
        """Subscribe to what has come up since; notice a recording that stopped by itself."""
        if self._recording is None:
            return
        if self._recording.status().failure:
            self._end()
            return
        settings = self._settings
        for name, kinds in self.get_topic_names_and_types():
            if name in self._inputs or not is_chosen(
                name, settings.topics, settings.exclude, self.get_namespace()
            ):
                continue
            try:
                self._subscribe(name, kinds)
            except RecordingError as error:
                if self._refused.get(name) != str(error):
                    self.get_logger().warning(str(error))
                self._refused[name] = str(error)

    def _subscribe(self, name: str, kinds: list[str]) -> None:
        described = describe_topic(self, name, kinds, self._settings.queue_depth)
        if described is None or self._recording is None:
            return
        topic, profile = described
        kind = message_class(topic.kind)
        self._recording.add_topic(topic)
        # One argument: Kilted's events executor gives no message info with raw messages.
        self._inputs[name] = self.create_subscription(
            kind, name, partial(self._receive, self._recording, name), profile, raw=True
        )
        self._refused.pop(name, None)

    def _receive(self, recording: BackgroundWriter, topic: str, data: Any) -> None:
        now_ns = self.get_clock().now().nanoseconds
        recording.submit(RawMessage(topic, data, now_ns, now_ns))

    def _note_failure(self, reason: str) -> None:
        self._failure = reason
        self.get_logger().error(f'recording stopped, the robot goes on: {reason}')

    # Services and reports

    def _on_start(self, _: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        if self.lifecycle_state != 'active':
            response.message = f'not active but {self.lifecycle_state}'
            return response
        if self._recording is not None:
            response.message = f'recording already, to {self._recording.status().path}'
            return response
        try:
            self._begin()
        except VlaCacheError as error:
            self._note_failure(str(error))
            response.message = str(error)
            return response
        assert self._recording is not None  # _begin made it
        response.success = True
        response.message = str(self._recording.status().path)
        return response

    def _on_stop(self, _: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        if self._recording is None:
            response.message = self._failure or 'not recording'
            return response
        self._end()
        assert self._last is not None  # _end kept it
        response.success = not self._last.failure
        response.message = self._last.failure or str(self._last.path)
        return response

    def _publish(self) -> None:
        if self.lifecycle_state != 'active':
            return
        message = DiagnosticArray(status=[self._health()])
        message.header.stamp = self.get_clock().now().to_msg()
        self._diagnostics.publish(message)

    def _health(self) -> DiagnosticStatus:
        status = self.status
        dropped = 0 if status is None else sum(status.dropped.values())
        level, words = DiagnosticStatus.OK, 'not recording'
        if self._failure:
            level, words = DiagnosticStatus.ERROR, f'stopped: {self._failure}'
        elif dropped:
            level, words = DiagnosticStatus.WARN, f'{dropped} messages dropped'
        elif self._refused:
            level, words = DiagnosticStatus.WARN, f'not recorded: {", ".join(self._refused)}'
        elif self.is_recording:
            words = 'recording'
        return DiagnosticStatus(
            level=level,
            name=f'{self.get_name()}: recording',
            message=words,
            hardware_id=self.get_namespace(),
            values=[KeyValue(key=key, value=str(value)) for key, value in self._figures(status)],
        )

    def _figures(self, status: RecordingStatus | None) -> list[tuple[str, object]]:
        if status is None:
            return []
        now_s, (then_s, then_bytes) = time.monotonic(), self._rate
        self._rate = (now_s, status.size_bytes)
        per_minute = 60 * (status.size_bytes - then_bytes) / MIB / max(now_s - then_s, 1e-3)
        figures: list[tuple[str, object]] = [
            ('file', status.path),
            ('size_mib', f'{status.size_bytes / MIB:.1f}'),
            ('mib_per_minute', f'{per_minute:.1f}' if self.is_recording else '0'),
            ('free_mib', f'{_free_bytes(status.path.parent) / MIB:.0f}'),
            ('waiting', status.waiting),
            ('waiting_mib', f'{status.waiting_bytes / MIB:.1f}'),
        ]
        for topic, received in sorted(status.received.items()):
            written, dropped = status.written.get(topic, 0), status.dropped.get(topic, 0)
            figures.append((topic, f'received {received}, written {written}, dropped {dropped}'))
        return figures + sorted(self._refused.items())


def _free_bytes(folder: Path) -> int:
    try:
        return disk_free_bytes(folder)
    except OSError:
        return 0


def main(args: list[str] | None = None) -> int:
    """Run the node on its own."""
    return run_nodes(RecorderNode, args=args)
