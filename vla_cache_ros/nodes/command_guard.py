"""The command guard as a node: what reaches the robot is finite, in limits, fresh, never repeated.

It hands out the actions of the newest chunk one by one and sends the null action when there is
none, so that a silent policy means an arm at rest. It is small on purpose: no torch, no model, up
before anything else and alive after everything else.
"""

import time
from collections import Counter
from typing import Any

from sensor_msgs.msg import JointState
from std_srvs.srv import Trigger
from vla_cache_interfaces.msg import ActionChunk as ActionChunkMessage
from vla_cache_interfaces.msg import GuardStatus

from vla_cache_ros.core.action_queue import ActionQueue
from vla_cache_ros.core.errors import ObservationError
from vla_cache_ros.core.guard import CommandGuard, GuardConfig
from vla_cache_ros.core.types import ActionChunk
from vla_cache_ros.nodes import qos
from vla_cache_ros.nodes.chunk_messages import chunk_to_message, message_to_chunk
from vla_cache_ros.nodes.conversions import stamp_to_ns
from vla_cache_ros.nodes.managed_node import ManagedNode
from vla_cache_ros.nodes.parameter_tables.command_guard import GuardParameters
from vla_cache_ros.nodes.parameters import declare, read
from vla_cache_ros.nodes.report_messages import CommandReport, guard_to_message
from vla_cache_ros.nodes.running import run_nodes


class CommandGuardNode(ManagedNode):
    """Sends one checked command per control step.

    Subscribes (relative names, remappable):
        vla/action_chunk (vla_cache_interfaces/ActionChunk); one without actions revokes the rest.
        joint_states (sensor_msgs/JointState), in state pacing: each asks for one command.
    Publishes:
        vla/action (vla_cache_interfaces/ActionChunk of one action): the command, stamped with the
            state it answers (state pacing) or the time it was sent (timer pacing).
        vla/status (vla_cache_interfaces/GuardStatus): each command, and what was changed.
    Serves:
        ~/reset (std_srvs/Trigger): forget chunk and clock.
    """

    def __init__(self, node_name: str = 'command_guard', **node_arguments: Any) -> None:
        """Declare the parameters; nothing else is allocated before `configure`.

        Args:
            node_name: Name of the node.
            **node_arguments: Passed on to rclpy's Node.

        Raises:
            ConfigError: A parameter is out of its range.
        """
        super().__init__(node_name, **node_arguments)
        self._settings = declare(self, GuardParameters)
        self._acts = False
        self._inputs: list[Any] = []
        self.supervise(self._settings)

    def allocate(self) -> None:
        """Create executor, guard, publishers and subscriptions.

        Raises:
            ConfigError: The limits contradict one another.
        """
        self._settings = parameters = read(self, GuardParameters)
        self._queue = ActionQueue(parameters.actions_per_chunk)
        self._guard = CommandGuard(
            GuardConfig(
                lower=parameters.lower_limits,
                upper=parameters.upper_limits,
                on_limit=parameters.on_limit,
                max_age_ms=1e3 * parameters.stale_image_timeout_s,
            )
        )
        self._refused: Counter[str] = Counter()
        self._asked_ns: int | None = None  # a control step that waits for its command
        self._null_left = 0  # null actions that stand in for the chunk that was revoked

        self._command_publisher = self.publisher(ActionChunkMessage, 'vla/action', qos.command())
        self._status_publisher = self.publisher(GuardStatus, 'vla/status', qos.report())
        self._inputs = [
            self.subscription(
                ActionChunkMessage, 'vla/action_chunk', self._on_chunk, qos.command()
            )
        ]
        self.service(Trigger, '~/reset', self._on_reset)
        self._timer = None
        if parameters.pacing == 'state':
            self._inputs.append(
                self.subscription(JointState, 'joint_states', self._on_state, qos.state())
            )

    def start(self) -> None:
        """Begin to command."""
        self._queue.clear()
        self._guard.reset()
        self._asked_ns = None
        self._null_left = 0
        self._acts = True
        if self._settings.pacing == 'timer':
            # On the node's own clock: simulated time paces it where use_sim_time is set.
            self._timer = self.create_timer(
                1 / self._settings.control_frequency_hz, self._on_period
            )

    def stop(self) -> None:
        """Send the null action, and forget the chunk."""
        if not self._acts:
            return
        self._acts = False
        if self._timer is not None:
            self.destroy_timer(self._timer)
            self._timer = None
        self._queue.clear()
        self._asked_ns = self.get_clock().now().nanoseconds
        if self.context.ok():
            self._answer()

    def release(self) -> None:
        """Forget the inputs."""
        self._inputs = []

    @property
    def counts(self) -> dict[str, int]:
        """Reason -> commands changed or chunks refused; 'passed' -> commands let through."""
        return dict(self._guard.counts) | dict(self._refused)

    def unconnected(self) -> list[str]:
        """Topics of an episode that have not found their other end yet."""
        outputs = [] if self._settings.dry_run else [self._command_publisher]
        return qos.unconnected(outputs, self._inputs)

    def _on_state(self, message: JointState) -> None:
        """Lockstep: answer this state now, or as soon as a chunk is there."""
        if not self._acts:
            return
        self._asked_ns = stamp_to_ns(message.header.stamp)
        if self._queue.remaining or self._null_left:
            self._answer()

    def _on_period(self) -> None:
        """Timer: answer this period; when there is no action, also as soon as a chunk is there."""
        self._asked_ns = now_ns = self.get_clock().now().nanoseconds
        is_starved = self._queue.needs_replan
        self._answer()
        self._asked_ns = now_ns if is_starved else None

    def _on_chunk(self, message: ActionChunkMessage) -> None:
        if not self._acts:
            return
        try:
            chunk = message_to_chunk(message)
        except ObservationError as error:
            self._refused['bad_chunk'] += 1
            self.get_logger().warning(f'chunk refused: {error}', throttle_duration_sec=1.0)
            self._revoke()
            return
        if not len(chunk.actions):
            self._revoke()
            return
        if not self._queue.load(chunk):
            self._refused['repeated_chunk'] += 1
            self.get_logger().warning(
                f'chunk of stamp {chunk.stamp_ns} refused: one of that stamp or a newer one '
                'was loaded.',
                throttle_duration_sec=1.0,
            )
            return
        self._null_left = 0
        if self._asked_ns is not None:
            if self._timer is not None:
                self._asked_ns = self.get_clock().now().nanoseconds
                self._timer.reset()  # the new chunk's rhythm begins with its first action
            self._answer()

    def _revoke(self) -> None:
        """Forget the chunk; as many null actions as it had stand in for it.

        In lockstep they keep the simulator going until its next images are due.
        """
        self._queue.clear()
        self._null_left = self._settings.actions_per_chunk
        if self._asked_ns is not None and self._timer is None:
            self._answer()

    def _answer(self) -> None:
        """Send the command of the control step that asked."""
        asked_ns, self._asked_ns = self._asked_ns, None
        assert asked_ns is not None  # callers checked
        queued = self._queue.pop()
        if queued is None:
            self._null_left = max(0, self._null_left - 1)
            command = self._guard.check(None, asked_ns, asked_ns)
        else:
            command = self._guard.check(queued.action, queued.stamp_ns, asked_ns, queued.sequence)
        if 'clock_backwards' in command.reasons:
            self._queue.clear()  # its stamps belong to a time that is over
        stamp_ns = asked_ns if queued is None else queued.stamp_ns
        if not self._settings.dry_run:
            self._command_publisher.publish(
                chunk_to_message(
                    ActionChunk(command.action[None], stamp_ns),
                    self._settings.control_frequency_hz,
                    asked_ns,
                )
            )
        self._status_publisher.publish(
            guard_to_message(
                CommandReport(
                    step_ns=asked_ns,
                    published_ns=time.monotonic_ns(),
                    action=command.action,
                    is_null=command.is_null,
                    image_stamp_ns=None if queued is None else queued.stamp_ns,
                    index=None if queued is None else queued.index,
                    reasons=command.reasons,
                    degradation='hold' if queued is None else 'nominal',
                    dry_run=self._settings.dry_run,
                    counts=self.counts,
                )
            )
        )

    def _on_reset(self, _: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        if not self._acts:
            response.message = 'not active'
            return response
        self._queue.clear()
        self._guard.reset()
        self._asked_ns = None
        self._null_left = 0
        unconnected = self.unconnected()
        response.success = not unconnected
        if unconnected:
            response.message = f'no other end yet: {", ".join(unconnected)}'
        return response


def main(args: list[str] | None = None) -> int:
    """Run the node on its own."""
    return run_nodes(CommandGuardNode, args=args)
