"""The command guard as a node: what reaches the robot is finite, in limits, fresh, never repeated.

It hands out the actions of chunks one per control step, and the null action when there is none,
so that a silent policy means an arm at rest. It is small on purpose: no torch, no OpenCV, no
model, up before anything else and alive after everything else. What to send is decided in
core/command_loop.py.

Timer pacing counts its periods from the activation on: a late command does not shift those after
it, and periods that were missed are skipped, not made up for. It runs on the steady clock, which
no correction of the wall's clock stops, or on simulated time where use_sim_time is set.
"""

import dataclasses
import json
import math
import time
from typing import Any

from geometry_msgs.msg import PoseStamped
from rcl_interfaces.msg import SetParametersResult
from rclpy.node import Node
from rclpy.parameter import Parameter
from sensor_msgs.msg import JointState
from std_msgs.msg import String
from std_srvs.srv import Trigger
from vla_cache_interfaces.msg import ActionChunk as ActionChunkMessage
from vla_cache_interfaces.msg import Heartbeat

from vla_cache_ros.core.errors import ObservationError
from vla_cache_ros.nodes import qos
from vla_cache_ros.nodes.chunk_messages import message_to_chunk
from vla_cache_ros.nodes.conversions import stamp_to_ns
from vla_cache_ros.nodes.e_stop import EmergencyStop
from vla_cache_ros.nodes.guard_outputs import GuardOutputs
from vla_cache_ros.nodes.guard_settings import make_loop
from vla_cache_ros.nodes.managed_node import ManagedNode
from vla_cache_ros.nodes.parameter_tables.command_guard import GuardParameters
from vla_cache_ros.nodes.parameters import declare, read
from vla_cache_ros.nodes.realtime import freeze_garbage, set_priority
from vla_cache_ros.nodes.running import run_nodes, steady_timer

_RATE_TOLERANCE = 0.01


class CommandGuardNode(ManagedNode):
    """Sends one checked command per control step.

    Subscribes (relative names, remappable):
        vla/action_chunk (vla_cache_interfaces/ActionChunk); one without actions revokes the rest.
        vla/instruction (std_msgs/String): another task's chunks are refused.
        joint_states (sensor_msgs/JointState): in state pacing, each asks for one command; with
            joint limits, what they are checked against.
        ee_pose (geometry_msgs/PoseStamped), with a workspace.
        vla/e_stop (std_msgs/Bool): true stops and latches; false does not release.
        policy_node/heartbeat (vla_cache_interfaces/Heartbeat), by parameter.
    Publishes:
        vla/action (vla_cache_interfaces/ActionChunk of one action): the command, stamped with the
            state it answers (state pacing) or the time it was sent (timer pacing).
        vla/status (vla_cache_interfaces/GuardStatus): each command, and what was changed.
        vla/committed (vla_cache_interfaces/ActionChunk), in prefix execution, at each takeover and
            revocation: the actions that run next, stamped with the step the first is due at.
    Serves:
        ~/reset (std_srvs/Trigger): forget chunk and clock; answers with the instruction known.
        ~/e_stop, ~/release_e_stop (std_srvs/Trigger), in every lifecycle state.
    """

    def __init__(self, node_name: str = 'command_guard', **node_arguments: Any) -> None:
        """Declare the parameters, and serve the emergency stop.

        Args:
            node_name: Name of the node.
            **node_arguments: Passed on to rclpy's Node.

        Raises:
            ConfigError: A parameter is out of its range.
        """
        super().__init__(node_name, **node_arguments)
        self._settings = declare(self, GuardParameters)
        self._loop = make_loop(GuardParameters(), e_stopped=False)
        self._acts = False
        self._paced_by_state = False
        self._inputs: list[Any] = []
        self._timers: list[Any] = []
        self._e_stop = EmergencyStop(self, self._on_e_stop, self._on_release)
        self.add_on_set_parameters_callback(self._check_change)
        self.supervise(self._settings)

    def _check_change(self, changes: list[Parameter]) -> SetParametersResult:
        """Refuse a change that would not take effect: nobody shall trust a limit that is none."""
        own = {field.name for field in dataclasses.fields(GuardParameters)}
        changed = [change.name for change in changes if change.name in own]
        if not changed or self.lifecycle_state == 'unconfigured':
            return SetParametersResult(successful=True)
        reason = f'{", ".join(changed)}: read at configure; deactivate and clean up first'
        return SetParametersResult(successful=False, reason=reason)

    # Lifecycle

    def allocate(self) -> None:
        """Create the command loop, publishers and subscriptions.

        Raises:
            ConfigError: The limits contradict one another.
        """
        self._settings = parameters = read(self, GuardParameters)
        self._loop = make_loop(parameters, e_stopped=self._e_stop.latched)
        self._paced_by_state = parameters.pacing == 'state'
        self._asked_ns: int | None = None  # a control step that waits for its command
        self._outputs = GuardOutputs(self, parameters, self._loop.committed)
        self._inputs = [
            self.subscription(
                ActionChunkMessage, 'vla/action_chunk', self._on_chunk, qos.command()
            )
        ]
        self.subscription(String, 'vla/instruction', self._on_instruction, qos.latched())
        limits = self._loop.guard.config
        if self._paced_by_state or limits.joints.names:
            self._inputs.append(
                self.subscription(JointState, 'joint_states', self._on_joints, qos.state())
            )
        if limits.has_workspace:
            self._inputs.append(
                self.subscription(PoseStamped, 'ee_pose', self._on_pose, qos.state())
            )
        if self._loop.watch.period_s:
            self.subscription(
                Heartbeat, parameters.policy_heartbeat_topic, self._on_heartbeat, qos.heartbeat()
            )
        self.service(Trigger, '~/reset', self._on_reset)

    def start(self) -> None:
        """Begin to command; no chunk from before runs.

        Raises:
            ConfigError: The priority that is asked for is not permitted.
        """
        parameters = self._settings
        if parameters.realtime_priority:
            set_priority(parameters.realtime_priority)
        if parameters.freeze_garbage:
            freeze_garbage()
        self._loop.reset(self._until_ns())
        self._asked_ns = None
        self._acts = True
        if self._paced_by_state:
            return
        period_s = 1 / parameters.control_frequency_hz
        self._last_period_s = time.monotonic()
        simulated = self.get_parameter('use_sim_time').value
        self._command_timer = self._started(period_s, self._on_period, steady=not simulated)
        if self._loop.watch.period_s:
            self._started(self._loop.watch.period_s, self._look_for_policy)

    def stop(self) -> None:
        """Send the null action at once, and forget the chunk."""
        if not self._acts:
            return
        for timer in self._timers:
            self.destroy_timer(timer)
        self._timers = []
        try:
            self._send_null_at_once()
        finally:
            self._acts = False
        if self._settings.realtime_priority:
            set_priority(0)

    def release(self) -> None:
        """Forget the inputs."""
        self._inputs = []

    def _started(self, period_s: float, callback: Any, steady: bool = True) -> Any:
        """A timer that ends with `stop`, not with the configuration."""
        make = steady_timer if steady else Node.create_timer
        self._timers.append(make(self, period_s, callback))
        return self._timers[-1]

    # What others ask

    @property
    def counts(self) -> dict[str, int]:
        """Reason -> commands changed or chunks refused; 'passed' -> commands let through."""
        return self._loop.counts

    def unconnected(self) -> list[str]:
        """Topics of an episode that have not found their other end yet; needs `configure`."""
        outputs = [] if self._settings.dry_run else [self._outputs.commands]
        return qos.unconnected(outputs, self._inputs)

    def _on_reset(self, _: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        if not self._acts:
            response.message = 'not active'
            return response
        self._loop.reset(self._until_ns())
        self._asked_ns = None
        if unconnected := self.unconnected():
            response.message = f'no other end yet: {", ".join(unconnected)}'
            return response
        response.success = True
        response.message = json.dumps({'instruction': self._loop.instruction or ''})
        return response

    def _on_e_stop(self) -> None:
        self._loop.e_stopped = True
        self._send_null_at_once()

    def _on_release(self) -> None:
        self._loop.e_stopped = False
        self._loop.revoke(self._now_ns())

    # Inputs

    def _on_instruction(self, message: String) -> None:
        self._loop.give_instruction(message.data, self._now_ns() or 0)

    def _on_pose(self, message: PoseStamped) -> None:
        point = message.pose.position
        stamp_ns = stamp_to_ns(message.header.stamp)
        now_ns = stamp_ns if self._paced_by_state else self._clock_ns()
        self._loop.guard.robot.see_pose((point.x, point.y, point.z), stamp_ns, now_ns)

    def _on_joints(self, message: JointState) -> None:
        stamp_ns = stamp_to_ns(message.header.stamp)
        now_ns = stamp_ns if self._paced_by_state else self._clock_ns()
        self._loop.guard.robot.see_joints(
            dict(zip(message.name, message.position, strict=False)),
            dict(zip(message.name, message.velocity, strict=False)),
            stamp_ns,
            now_ns,
        )
        if self._paced_by_state and self._acts:
            self._asked_ns = stamp_ns
            self._answer_if_due()

    def _on_heartbeat(self, message: Heartbeat) -> None:
        if self._loop.watch.beat(message.state, time.monotonic()):
            self._lose_policy(f'it is {message.state}')

    def _look_for_policy(self) -> None:
        if self._loop.watch.look(time.monotonic()):
            self._lose_policy('its heartbeat is missing')

    def _lose_policy(self, why: str) -> None:
        self.get_logger().error(f'policy lost ({why}): the arm is held until it is back')
        self._send_null_at_once()

    def _on_chunk(self, message: ActionChunkMessage) -> None:
        if not self._acts:
            return
        try:
            chunk = message_to_chunk(message)
            self._check_rate(message)
        except ObservationError as error:
            self._warn(f'chunk refused: {error}')
            self._loop.give_bad_chunk()
            self._answer_if_due()
            return
        starved = self._loop.starved
        refusal = self._loop.give_chunk(chunk, self._now_ns())
        if refusal:
            self._warn(f'chunk of stamp {chunk.stamp_ns} refused: {refusal}')
        elif starved and not self._paced_by_state and self._loop.starts_at_once:
            self._command_timer.reset()  # the new chunk's rhythm begins with its first action
            self._last_period_s = time.monotonic()
            self._answer(self._clock_ns())
            return
        self._answer_if_due()

    def _check_rate(self, message: ActionChunkMessage) -> None:
        """Refuse deltas of another rate: executed at this one, they would be another speed."""
        rate_hz, own_hz = message.control_frequency_hz, self._settings.control_frequency_hz
        if self._paced_by_state or not message.actions:
            return  # the simulator's steps are what they are; no action has no speed
        if not math.isclose(rate_hz, own_hz, rel_tol=_RATE_TOLERANCE):
            raise ObservationError(
                f'actions for {rate_hz:g} Hz at control_frequency_hz {own_hz:g}: policy and guard '
                'must have the same.'
            )

    def _warn(self, text: str) -> None:
        self.get_logger().warning(text, throttle_duration_sec=1.0)

    # Commands

    def _on_period(self) -> None:
        now_s = time.monotonic()
        period_s = 1 / self._settings.control_frequency_hz
        missed = round((now_s - self._last_period_s) / period_s) - 1
        self._last_period_s = now_s
        if missed > 0:
            self._loop.count('missed_period', missed)
        self._answer(self._clock_ns())

    def _answer_if_due(self) -> None:
        """State pacing: answer the step that waits, or publish what is no longer committed."""
        asked_ns = self._asked_ns
        if self._paced_by_state and asked_ns is not None and self._loop.can_answer(asked_ns):
            self._asked_ns = None
            self._answer(asked_ns)
        self._outputs.commit(self._loop.committed)

    def _send_null_at_once(self) -> None:
        """Revoke the chunk and send the null action without waiting for the next period.

        A simulator in lockstep takes a command for the step that it waits in alone.
        """
        if not self._acts:
            return
        self._loop.revoke(self._now_ns())
        if not self.context.ok():
            return  # nobody would hear it: sinks have watchdogs of their own
        if not self._paced_by_state:
            self._answer(self._clock_ns())
        elif self._asked_ns is not None:
            asked_ns, self._asked_ns = self._asked_ns, None
            self._answer(asked_ns)

    def _answer(self, step_ns: int) -> None:
        """Send the command of a control step."""
        command = self._loop.step(step_ns)
        self._outputs.send(command, self._loop)
        self._outputs.commit(self._loop.committed)

    # Time

    def _clock_ns(self) -> int:
        return self.get_clock().now().nanoseconds

    def _now_ns(self) -> int | None:
        """The time of control steps; in state pacing the newest one, once there is one."""
        return self._loop.last_step_ns if self._paced_by_state else self._clock_ns()

    def _until_ns(self) -> int | None:
        """At a new start: refuse what was observed before; a simulator's clock may begin anew."""
        return None if self._paced_by_state else self._clock_ns()


def main(args: list[str] | None = None) -> int:
    """Run the node on its own."""
    return run_nodes(CommandGuardNode, args=args)
