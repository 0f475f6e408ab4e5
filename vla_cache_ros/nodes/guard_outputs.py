"""What the command guard publishes: commands, their reports, and what runs next."""

import time

from rclpy.publisher import Publisher
from vla_cache_interfaces.msg import ActionChunk as ActionChunkMessage
from vla_cache_interfaces.msg import GuardStatus

from vla_cache_ros.core.command_loop import CommandLoop, Committed, StepCommand
from vla_cache_ros.core.types import ActionChunk
from vla_cache_ros.nodes import qos
from vla_cache_ros.nodes.chunk_messages import chunk_to_message
from vla_cache_ros.nodes.managed_node import ManagedNode
from vla_cache_ros.nodes.parameter_tables.command_guard import GuardParameters
from vla_cache_ros.nodes.report_messages import CommandReport, guard_to_message


class GuardOutputs:
    """The guard's publishers; they end with the node's configuration.

    Attributes:
        commands: Publishes vla/action.
        status: Publishes vla/status.
        committed: Publishes vla/committed; None but in prefix execution.
    """

    def __init__(
        self, node: ManagedNode, parameters: GuardParameters, committed: Committed
    ) -> None:
        """Create the publishers.

        Args:
            node: Owns them.
            parameters: Of the guard.
            committed: What is committed at first: nothing, so that it need not be said.
        """
        self._dry_run = parameters.dry_run
        self._frequency_hz = parameters.control_frequency_hz
        self._committed = committed
        self.commands: Publisher = node.publisher(ActionChunkMessage, 'vla/action', qos.command())
        self.status: Publisher = node.publisher(GuardStatus, 'vla/status', qos.report())
        self.committed: Publisher | None = None
        if parameters.chunk_execution == 'prefix':
            self.committed = node.publisher(ActionChunkMessage, 'vla/committed', qos.command())

    def send(self, command: StepCommand, loop: CommandLoop) -> None:
        """Publish a command, unless in a dry run, and its report."""
        due = command.due
        if not self._dry_run:
            chunk = ActionChunk(
                command.guarded.action[None],
                command.step_ns if due is None else due.stamp_ns,
                instruction='' if due is None else due.instruction,
            )
            self.commands.publish(chunk_to_message(chunk, self._frequency_hz, command.step_ns))
        report = CommandReport(
            step_ns=command.step_ns,
            published_ns=time.monotonic_ns(),
            action=command.guarded.action,
            is_null=command.guarded.is_null,
            image_stamp_ns=None if due is None else due.stamp_ns,
            index=None if due is None else due.index,
            reasons=command.guarded.reasons,
            degradation=command.degradation,
            dry_run=self._dry_run,
            e_stop=loop.e_stopped,
            counts=loop.counts,
        )
        self.status.publish(guard_to_message(report))

    def commit(self, committed: Committed) -> None:
        """Publish what runs next, where that has changed."""
        if self.committed is None or committed is self._committed:
            return
        self._committed = committed
        chunk = ActionChunk(
            committed.actions, committed.step_ns, instruction=committed.instruction
        )
        self.committed.publish(chunk_to_message(chunk, self._frequency_hz))
