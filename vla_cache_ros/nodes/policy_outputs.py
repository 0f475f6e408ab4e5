"""The policy's outputs: chunks, reports of steps, of drops and of the shadow."""

import threading
from collections import Counter

from vla_cache_interfaces.msg import ActionChunk as ActionChunkMessage
from vla_cache_interfaces.msg import ShadowReport, StepReport

from vla_cache_ros.core.layout import TokenLayout
from vla_cache_ros.core.types import ActionChunk
from vla_cache_ros.nodes import qos
from vla_cache_ros.nodes.chunk_messages import chunk_to_message, empty_chunk
from vla_cache_ros.nodes.managed_node import ManagedNode
from vla_cache_ros.nodes.pairing import Drop
from vla_cache_ros.nodes.report_messages import ShadowResult, shadow_to_message
from vla_cache_ros.nodes.step_messages import (
    ROUTINE_DROPS,
    StepTimes,
    drop_to_message,
    step_to_message,
)


class PolicyOutputs:
    """Publishes from both threads, and counts what was dropped."""

    def __init__(self, node: ManagedNode, control_frequency_hz: float) -> None:
        """Create the publishers.

        Args:
            node: Owns them.
            control_frequency_hz: Rate at which the actions of a chunk follow one another.
        """
        self._node = node
        self._control_frequency_hz = control_frequency_hz
        self._lock = threading.Lock()
        self._drops: Counter[str] = Counter()
        self.chunk_publisher = node.publisher(
            ActionChunkMessage, 'vla/action_chunk', qos.command()
        )
        self.report_publisher = node.publisher(StepReport, '~/step_report', qos.report())
        self._shadow_publisher = node.publisher(ShadowReport, '~/shadow_report', qos.report())

    @property
    def drops(self) -> dict[str, int]:
        """Dropped inputs, by reason."""
        with self._lock:
            return dict(self._drops)

    def chunk(self, chunk: ActionChunk) -> None:
        """Publish a chunk."""
        self.chunk_publisher.publish(chunk_to_message(chunk, self._control_frequency_hz))

    def revoke(self) -> None:
        """Say that no action follows from whatever came before."""
        self.chunk(empty_chunk(self._node.get_clock().now().nanoseconds))

    def drop(self, drop: Drop) -> None:
        """Count and report an input that was not used, and stop the robot where that is due."""
        with self._lock:
            self._drops[drop.reason] += 1
        if drop.reason not in ROUTINE_DROPS:
            self.chunk(empty_chunk(drop.stamp_ns))
            self.warn(f'{drop.reason}: {drop.detail}')
        self.report_publisher.publish(
            drop_to_message(drop.stamp_ns, drop.reason, drop.detail, self.drops)
        )

    def step(self, chunk: ActionChunk, layout: TokenLayout, times: StepTimes, late: bool) -> None:
        """Report a policy step."""
        report = chunk.report
        self.report_publisher.publish(
            step_to_message(
                chunk,
                layout,
                times,
                self.drops,
                off_reason='' if report is None else report.off_reason,
                reuse_pressure=0.0 if report is None else report.reuse_pressure,
                deadline_missed=late,
            )
        )

    def shadow(self, result: ShadowResult, off_reason: str) -> None:
        """Report a comparison."""
        if result.alarm:
            self.warn(off_reason or 'shadow mode: cached actions are too far from dense ones')
        self._shadow_publisher.publish(shadow_to_message(result))

    def warn(self, text: str) -> None:
        """Log a warning, one a second."""
        self._node.get_logger().warning(text, throttle_duration_sec=1.0)
