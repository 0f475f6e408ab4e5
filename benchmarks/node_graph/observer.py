"""A process that writes down what a running graph says, with the moment it was received.

    python benchmarks/node_graph/observer.py EVENTS.jsonl [TOPIC ..] --ros-args ..

Reads orders from stdin, one JSON object a line: {"fault": name} sets the injector's fault,
{"instruction": text} publishes one, an empty one takes the publisher back, {"episode": [task,
init_state]} begins an episode of the simulator, {"call": service} calls a std_srvs/Trigger
service, {"transition": [node, id]} triggers a lifecycle transition.
Every event is one line: {"kind": .., "at_ns": CLOCK_MONOTONIC of its receipt, ..}.
"""

import json
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

from geometry_msgs.msg import TwistStamped
from lifecycle_msgs.srv import ChangeState
from rcl_interfaces.srv import SetParameters
from rclpy.node import Node
from rclpy.parameter import Parameter
from sensor_msgs.msg import TimeReference
from std_msgs.msg import String
from std_srvs.srv import Trigger
from vla_cache_interfaces.msg import ActionChunk, GuardStatus, Heartbeat, StepReport

from vla_cache_ros.nodes import qos
from vla_cache_ros.nodes.conversions import stamp_to_ns
from vla_cache_ros.nodes.running import run_nodes

LATCHED_S = 1.0
"""A text is heard before its publisher goes."""
HEARTBEATS = ('policy_node', 'sim_bridge', 'command_sink', 'recorder')


class Observer(Node):
    """Subscribes to commands, reports and announcements, and writes each of them down."""

    def __init__(self, events: TextIO, topics: Sequence[str] = ()) -> None:
        """Subscribe.

        Args:
            events: Where the lines go.
            topics: What it listens to; none: everything.
        """
        super().__init__('observer')
        self._events = events
        self._lock = threading.Lock()
        self._beats: dict[str, str] = {}
        for kind, topic, callback, profile in (
            (ActionChunk, 'vla/action', self._on_command, qos.command()),
            (ActionChunk, 'vla/action_chunk', self._on_chunk, qos.command()),
            (GuardStatus, 'vla/status', self._on_status, qos.report()),
            (StepReport, 'policy_node/step_report', self._on_report, qos.report()),
            (TimeReference, 'fault_injector/injected', self._on_injected, qos.report()),
            (TimeReference, 'sim_bridge/time_reference', self._on_frame, qos.report()),
            (String, 'sim_bridge/episode', self._on_episode, qos.report()),
            (String, 'vla/instruction', self._on_instruction, qos.latched()),
            (TwistStamped, 'servo_node/delta_twist_cmds', self._on_twist, qos.report()),
        ):
            if topic in topics or not topics:
                self.create_subscription(kind, topic, callback, profile)
        for node in HEARTBEATS if not topics else ():
            self.create_subscription(
                Heartbeat, f'{node}/heartbeat', self._on_beat, qos.heartbeat()
            )
        self._instruction: Any = None  # a latched text of ours would contradict later ones
        self._fault = self.create_client(SetParameters, 'fault_injector/set_parameters')
        self._episode = self.create_client(SetParameters, 'sim_bridge/set_parameters')
        self._reset = self.create_client(Trigger, 'sim_bridge/reset')
        threading.Thread(target=self._obey, daemon=True).start()
        self._write('ready', wall_ns=time.time_ns())

    def _write(self, kind: str, **content: Any) -> None:
        line = json.dumps({'kind': kind, 'at_ns': time.monotonic_ns(), **content})
        with self._lock:
            self._events.write(line + '\n')
            self._events.flush()

    def _on_command(self, message: ActionChunk) -> None:
        self._write(
            'command',
            stamp_ns=stamp_to_ns(message.header.stamp),
            image_stamp_ns=stamp_to_ns(message.image_stamp),
            instruction=message.instruction,
            action=list(message.actions),
        )

    def _on_chunk(self, message: ActionChunk) -> None:
        self._write(
            'chunk',
            image_stamp_ns=stamp_to_ns(message.image_stamp),
            instruction=message.instruction,
            steps=len(message.actions) // max(1, len(message.axes)),
        )

    def _on_status(self, message: GuardStatus) -> None:
        self._write(
            'status',
            stamp_ns=stamp_to_ns(message.header.stamp),
            published_ns=message.published_ns,
            image_stamp_ns=stamp_to_ns(message.image_stamp),
            index=message.index,
            is_null=message.is_null,
            reasons=list(message.reasons),
            degradation=message.degradation,
        )

    def _on_report(self, message: StepReport) -> None:
        self._write(
            'report',
            stamp_ns=stamp_to_ns(message.header.stamp),
            published_ns=message.published_ns,
            dropped=message.dropped,
            flush_reason=message.flush_reason,
            inference_ms=message.inference_ms,
            age_ms=message.age_ms,
        )

    def _on_injected(self, message: TimeReference) -> None:
        self._write('injected', fault=message.source, began_ns=stamp_to_ns(message.time_ref))

    def _on_frame(self, message: TimeReference) -> None:
        self._write(
            'frame',
            stamp_ns=stamp_to_ns(message.header.stamp),
            captured_ns=stamp_to_ns(message.time_ref),
        )

    def _on_episode(self, message: String) -> None:
        self._write('episode', **json.loads(message.data))

    def _on_instruction(self, message: String) -> None:
        self._write('task', instruction=message.data)

    def _on_twist(self, message: TwistStamped) -> None:
        linear, angular = message.twist.linear, message.twist.angular
        values = (linear.x, linear.y, linear.z, angular.x, angular.y, angular.z)
        stamp_ns = stamp_to_ns(message.header.stamp)
        self._write('twist', stamp_ns=stamp_ns, is_zero=not any(values))

    def _on_beat(self, message: Heartbeat) -> None:
        """Only changes of state are of interest."""
        if self._beats.get(message.node) != message.state:
            self._beats[message.node] = message.state
            self._write('state', node=message.node, state=message.state)

    def _obey(self) -> None:
        for line in sys.stdin:
            order = json.loads(line)
            if 'fault' in order:
                request = SetParameters.Request()
                request.parameters = [Parameter('fault', value=order['fault']).to_parameter_msg()]
                self._call(self._fault, request)
            if 'instruction' in order:
                self._instruct(order['instruction'])
            if 'episode' in order:
                task, init_state = order['episode']
                values = {'task': task, 'init_state': init_state}
                request = SetParameters.Request()
                request.parameters = [
                    Parameter(name, value=value).to_parameter_msg()
                    for name, value in values.items()
                ]
                self._call(self._episode, request)
                self._call(self._reset, Trigger.Request())
            if 'call' in order:
                self._call(self.create_client(Trigger, order['call']), Trigger.Request())
            if 'transition' in order:
                node, number = order['transition']
                request = ChangeState.Request()
                request.transition.id = number
                self._call(self.create_client(ChangeState, f'{node}/change_state'), request)

    def _instruct(self, text: str) -> None:
        if not text:
            time.sleep(LATCHED_S)
            self.destroy_publisher(self._instruction)
            self._instruction = None
            return
        if self._instruction is None:
            self._instruction = self.create_publisher(String, 'vla/instruction', qos.latched())
        self._write('instruction', instruction=text)
        self._instruction.publish(String(data=text))

    def _call(self, client: Any, request: Any) -> None:
        """Call a service; its answer is an event."""
        client.wait_for_service(10.0)
        name = client.srv_name
        client.call_async(request).add_done_callback(
            lambda future: self._write('answer', service=name, answer=str(future.result()))
        )


def main() -> int:
    """Observe until told to stop."""
    with Path(sys.argv[1]).open('a', encoding='utf-8') as events:
        topics = sys.argv[2 : sys.argv.index('--ros-args')]
        return run_nodes(lambda: Observer(events, topics))


if __name__ == '__main__':
    sys.exit(main())
