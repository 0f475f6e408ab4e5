"""The command sink as a node: the guarded command, as a robot's own controllers want it.

It is the last node before the robot, as small as the guard: no torch, no model. It trusts nobody
with time: a command is taken once, fresh, from a guard that lives, and is over after one control
step, whatever comes next.
"""

import math
import time
from typing import Any

import numpy as np
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from numpy.typing import NDArray
from vla_cache_interfaces.msg import ActionChunk as ActionChunkMessage
from vla_cache_interfaces.msg import Heartbeat

from vla_cache_ros.core.command_gate import CommandGate, GateConfig
from vla_cache_ros.core.errors import ObservationError
from vla_cache_ros.core.gripper_switch import GripperSwitch
from vla_cache_ros.core.twist import DeltaScale
from vla_cache_ros.nodes import qos
from vla_cache_ros.nodes.arm_sinks import (
    ArmSink,
    JointTrajectorySink,
    NoArmSink,
    RefusedError,
    TwistSink,
)
from vla_cache_ros.nodes.chunk_messages import message_to_command
from vla_cache_ros.nodes.conversions import stamp_to_ns
from vla_cache_ros.nodes.gripper_sinks import make_gripper
from vla_cache_ros.nodes.managed_node import ManagedNode
from vla_cache_ros.nodes.parameter_tables.command_sink import SinkParameters
from vla_cache_ros.nodes.parameters import declare, read
from vla_cache_ros.nodes.running import run_nodes

_REPORT_PERIOD_S = 1.0
_WATCH_PERIOD_S = 0.02
_RATE_TOLERANCE = 0.01


class CommandSinkNode(ManagedNode):
    """Drives an arm and a gripper by guarded commands.

    Subscribes (relative names, remappable):
        vla/action (vla_cache_interfaces/ActionChunk of one action).
        command_guard/heartbeat (vla_cache_interfaces/Heartbeat).
        What arm_sinks.py needs.
    Publishes:
        What arm_sinks.py and gripper_sinks.py say; in a dry run below ~/dry_run/.
        /diagnostics (diagnostic_msgs/DiagnosticArray): a status once a second.
    """

    def __init__(self, node_name: str = 'command_sink', **node_arguments: Any) -> None:
        """Declare the parameters.

        Args:
            node_name: Name of the node.
            **node_arguments: Passed on to rclpy's Node.

        Raises:
            ConfigError: A parameter is out of its range.
        """
        super().__init__(node_name, **node_arguments)
        self._acts = False
        self.supervise(declare(self, SinkParameters))

    @property
    def counts(self) -> dict[str, int]:
        """Reason -> commands refused for it; 'taken' -> commands taken."""
        return dict(self._gate.counts)

    def allocate(self) -> None:
        """Create what drives arm and gripper.

        Raises:
            ConfigError: A value is out of its range, or a package is missing.
            RobotError: The robot description's file cannot be used.
        """
        self._settings = parameters = read(self, SinkParameters)
        scale = DeltaScale(
            parameters.position_scale_m,
            parameters.rotation_scale_rad,
            parameters.control_frequency_hz,
        )
        self._gate = CommandGate(
            GateConfig(
                parameters.command_timeout_s, parameters.heartbeat_timeout_periods * scale.period_s
            )
        )
        self._switch = GripperSwitch(parameters.gripper_threshold)
        self._arm = self._make_arm(scale)
        self._gripper = make_gripper(self, parameters)
        self._has_guard = False
        self._problem = ''
        self._diagnostics = self.publisher(DiagnosticArray, '/diagnostics', qos.report())
        self.subscription(ActionChunkMessage, 'vla/action', self._on_command, qos.command())
        self.subscription(
            Heartbeat, 'command_guard/heartbeat', self._on_heartbeat, qos.heartbeat()
        )
        self.timer(min(scale.period_s / 4, _WATCH_PERIOD_S), self._watch)
        self.timer(_REPORT_PERIOD_S, self._report)

    def start(self) -> None:
        """Begin to take commands."""
        self._acts = True
        self._switch.forget()
        self._switch.sleep()
        self._arm.start()

    def stop(self) -> None:
        """Bring the arm to rest, and take no more commands; the gripper holds."""
        if not self._acts:
            return
        self._acts = False
        try:
            if self.context.ok():
                self._arm.stop()
        finally:
            self._arm.finish()

    def _make_arm(self, scale: DeltaScale) -> ArmSink:
        if self._settings.sink == 'twist':
            return TwistSink(self, self._settings, scale)
        if self._settings.sink == 'joint_trajectory':
            return JointTrajectorySink(self, self._settings, scale)
        return NoArmSink()

    def _on_heartbeat(self, message: Heartbeat) -> None:
        is_active = message.state == 'active'
        self._gate.beat(is_active, time.monotonic())
        self._has_guard = self._has_guard or is_active
        self._watch()

    def _watch(self) -> None:
        """Stop the arm as soon as the guard falls silent, or says that it is not active."""
        if not self._has_guard or self._gate.has_guard(time.monotonic()):
            return
        self._has_guard = False
        self._switch.sleep()  # a guard that begins anew does not know what the gripper holds
        if self._acts:
            self._arm.stop()
            self.get_logger().error('the guard has fallen silent: the arm is stopped')

    def _on_command(self, message: ActionChunkMessage) -> None:
        """Take a command; whatever is refused stops the arm."""
        if not self._acts:
            return
        try:
            action = message_to_command(message)
        except ObservationError as error:
            self._refuse('bad_command', str(error))
            return
        rate_hz = self._settings.control_frequency_hz
        if not math.isclose(message.control_frequency_hz, rate_hz, rel_tol=_RATE_TOLERANCE):
            self._refuse(
                'wrong_rate',
                f'a command for {message.control_frequency_hz:g} Hz at control_frequency_hz '
                f'{rate_hz:g}: guard and sink must have the same.',
            )
            return
        stamp_ns = stamp_to_ns(message.header.stamp)
        now_ns = self.get_clock().now().nanoseconds
        reason = self._gate.check(stamp_ns, now_ns, time.monotonic())
        if reason:
            self._refused(reason, f'stamp {stamp_ns} at {now_ns} ns')
            return
        try:
            self._arm.take(action)
            self._gate.count('taken')
        except RefusedError as error:
            self._refuse(error.reason, str(error))
            if error.reason != 'out_of_reach':
                return  # at the edge of its reach an arm may still grasp
        self._take_gripper(action)

    def _take_gripper(self, action: NDArray[np.float32]) -> None:
        if self._gripper is None:
            return
        if self._gripper.has_lost():
            self._switch.forget()
        close = self._switch.update(float(action[6]), moves=bool(action[:6].any()))
        if close is not None and self._gripper.send(close):
            self._switch.told()

    def _refuse(self, reason: str, detail: str) -> None:
        self._gate.count(reason)
        self._refused(reason, detail)

    def _refused(self, reason: str, detail: str) -> None:
        self._arm.stop()
        self._problem = f'{reason}: {detail}'
        self.get_logger().warning(f'command refused, {self._problem}', throttle_duration_sec=1.0)

    def _report(self) -> None:
        """Say on /diagnostics how it goes: what was refused since the report before."""
        status = DiagnosticStatus(
            name='vla_cache: command sink',
            hardware_id=self.get_namespace(),
            level=DiagnosticStatus.OK,
            message='dry run' if self._settings.dry_run else f'driving {self._settings.sink}',
        )
        if self._problem:
            status.level, status.message = DiagnosticStatus.WARN, self._problem
        if not self._has_guard:
            status.level, status.message = DiagnosticStatus.ERROR, 'the guard is silent'
        self._problem = ''
        status.values = [
            KeyValue(key=f'commands: {reason}', value=str(count))
            for reason, count in sorted(self.counts.items())
        ]
        message = DiagnosticArray(status=[status])
        message.header.stamp = self.get_clock().now().to_msg()
        self._diagnostics.publish(message)


def main(args: list[str] | None = None) -> int:
    """Run the node on its own."""
    return run_nodes(CommandSinkNode, args=args)
