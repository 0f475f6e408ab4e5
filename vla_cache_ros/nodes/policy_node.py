"""The policy as a lifecycle node: images, robot state and instruction in, action chunks out.

The executor's thread only receives and pairs. Inference has a thread of its own that always works
on the newest observation, so that no timer, service or other node in the process waits for it.

An observation that cannot be used is dropped, counted and reported, and answered by an empty
chunk: the guard then sends the null action. The node stays alive.
"""

import json
import threading
import time
from collections import Counter
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from geometry_msgs.msg import PoseStamped
from sensor_msgs.msg import Image, JointState
from std_msgs.msg import String
from std_srvs.srv import Trigger
from vla_cache_interfaces.msg import ActionChunk as ActionChunkMessage
from vla_cache_interfaces.msg import StepReport as StepReportMessage

from vla_cache_ros.core.errors import InstructionError, ObservationError
from vla_cache_ros.core.protocols import Policy
from vla_cache_ros.core.types import ActionChunk, Observation
from vla_cache_ros.nodes import qos
from vla_cache_ros.nodes.chunk_messages import chunk_to_message, empty_chunk
from vla_cache_ros.nodes.conversions import stamp_to_ns, to_proprioception
from vla_cache_ros.nodes.image_conversions import image_to_rgb
from vla_cache_ros.nodes.latest_worker import LatestWorker
from vla_cache_ros.nodes.managed_node import ManagedNode
from vla_cache_ros.nodes.pairing import Drop, PairedInputs, Pairing
from vla_cache_ros.nodes.parameter_tables.policy_node import PolicyParameters
from vla_cache_ros.nodes.parameters import declare, read
from vla_cache_ros.nodes.policy_loading import PolicyFactory, load_policy
from vla_cache_ros.nodes.running import run_nodes
from vla_cache_ros.nodes.step_messages import StepTimes, drop_to_message, step_to_message

STOPLESS_DROPS = frozenset({'unpaired_image', 'superseded', 'repeated_stamp'})
"""Drops that are part of normal running, where the next image is on its way: no empty chunk."""


@dataclass(frozen=True)
class _Request:
    """One observation on its way to the worker; epoch: resets before it was paired."""

    inputs: PairedInputs
    instruction: str
    epoch: int
    received_ns: int
    age_ms: float


class PolicyNode(ManagedNode):
    """Runs a policy.

    Subscribes (relative names, remappable):
        camera/<name>/image_raw (sensor_msgs/Image), for each camera of the policy.
        joint_states (sensor_msgs/JointState): the fingers.
        ee_pose (geometry_msgs/PoseStamped): the end effector.
        vla/instruction (std_msgs/String, transient local).
    Publishes:
        vla/action_chunk (vla_cache_interfaces/ActionChunk), stamped with the oldest image's stamp;
            empty: "no action follows from this observation".
        ~/step_report (vla_cache_interfaces/StepReport): what each step did, or why it was dropped.
    Serves:
        ~/reset (std_srvs/Trigger): forget the episode; answers with the instruction in force.
    """

    def __init__(
        self,
        policy_factory: PolicyFactory | None = None,
        node_name: str = 'policy_node',
        **node_arguments: Any,
    ) -> None:
        """Declare the parameters; nothing else is allocated before `configure`.

        Args:
            policy_factory: Makes the policy; default: by the parameters `checkpoint`, ..
            node_name: Name of the node.
            **node_arguments: Passed on to rclpy's Node.
        """
        super().__init__(node_name, **node_arguments)
        self._policy_factory = policy_factory or load_policy
        self._settings = declare(self, PolicyParameters)
        self._policy: Policy | None = None
        self._worker: LatestWorker[_Request] | None = None
        self._pairing = Pairing((), 0, 0)
        self._inputs: list[Any] = []
        self._lock = threading.Lock()  # guards the fields below, which the worker shares
        self._drops: Counter[str] = Counter()
        self._instruction = ''
        self._epoch = 0
        self._reset_reason = ''
        self.supervise(self._settings)

    @property
    def drops(self) -> dict[str, int]:
        """Dropped inputs since configure, by reason."""
        with self._lock:
            return dict(self._drops)

    def unconnected(self) -> list[str]:
        """Topics of an episode that have not found their other end yet; needs `configure`."""
        return qos.unconnected([self._chunk_publisher], self._inputs)

    # Lifecycle

    def allocate(self) -> None:
        """Load the policy, and create every publisher and subscription."""
        self._settings = parameters = read(self, PolicyParameters)
        self._policy = self._policy_factory(parameters)
        self._pairing = Pairing(
            self._policy.camera_names,
            tolerance_ns=round(parameters.pairing_tolerance_s * 1e9),
            silence_ns=round(parameters.stale_image_timeout_s * 1e9),
        )
        with self._lock:
            self._drops.clear()
            self._instruction = ''
        self._chunk_publisher = self.publisher(
            ActionChunkMessage, 'vla/action_chunk', qos.command()
        )
        self._report_publisher = self.publisher(StepReportMessage, '~/step_report', qos.report())
        self._inputs = [
            self.subscription(
                Image, f'camera/{camera}/image_raw', partial(self._on_image, camera), qos.frame()
            )
            for camera in self._policy.camera_names
        ]
        self._inputs += [
            self.subscription(JointState, 'joint_states', self._on_joints, qos.state()),
            self.subscription(PoseStamped, 'ee_pose', self._on_pose, qos.state()),
            self.subscription(String, 'vla/instruction', self._on_instruction, qos.latched()),
        ]
        self.service(Trigger, '~/reset', self._on_reset)
        self.get_logger().info(
            f'{parameters.checkpoint or "own weights"} on {parameters.device}, '
            f'backend {parameters.backend}, '
            f'cache {parameters.cache_preset}, cameras {", ".join(self._policy.camera_names)}'
        )

    def start(self) -> None:
        """Begin to act on what is received."""
        self._request_reset('activate')
        self._worker = LatestWorker(self._infer, name=f'{self.get_name()} inference')

    def stop(self) -> None:
        """Finish the inference in work, then revoke the chunk."""
        if self._worker is None:
            return
        self._stop_worker()
        self._publish_chunk(empty_chunk(self.get_clock().now().nanoseconds))

    def release(self) -> None:
        """Free the policy."""
        self._stop_worker()
        self._inputs = []
        self._pairing.clear()
        self._policy = None

    def _stop_worker(self) -> None:
        if self._worker is not None:
            self._worker.close()
            self._worker = None

    # Inputs: the executor's thread

    def _on_image(self, camera: str, message: Image) -> None:
        if self._worker is None:
            return
        received_ns = time.monotonic_ns()
        stamp_ns = stamp_to_ns(message.header.stamp)
        try:
            pixels = image_to_rgb(message)
        except ObservationError as error:
            self._drop(Drop('bad_image', f'{camera}: {error}', stamp_ns))
            return
        drop = self._pairing.add_image(camera, pixels, stamp_ns)
        if drop is not None:
            if drop.reason == 'clock_backwards':
                self._request_reset('clock went backwards')
            self._drop(drop)
        self._try_observation(received_ns)

    def _on_joints(self, message: JointState) -> None:
        if self._worker is not None:
            self._pairing.add_joints(message, stamp_to_ns(message.header.stamp))
            self._try_observation(time.monotonic_ns())

    def _on_pose(self, message: PoseStamped) -> None:
        if self._worker is not None:
            self._pairing.add_pose(message, stamp_to_ns(message.header.stamp))
            self._try_observation(time.monotonic_ns())

    def _on_instruction(self, message: String) -> None:
        instruction = message.data.strip()
        if instruction != self._instruction:
            with self._lock:
                self._instruction = instruction
            self._request_reset('instruction change')
        if not instruction and self._worker is not None:
            self._drop(
                Drop(
                    'empty_instruction',
                    'the instruction is empty; valid: a sentence such as "pick up the milk".',
                    self.get_clock().now().nanoseconds,
                )
            )

    def _on_reset(self, _: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        """Forget the episode: nothing that was computed before is published after.

        Success also says that every topic is connected, so that the first frame is not lost.
        """
        if self._worker is None:
            response.message = 'not active'
            return response
        self._pairing.clear()
        self._request_reset('reset')
        if unconnected := self.unconnected():
            response.message = f'no other end yet: {", ".join(unconnected)}'
            return response
        response.success = True
        response.message = json.dumps({'instruction': self._instruction})
        return response

    def _request_reset(self, reason: str) -> None:
        """Have the policy reset before its next step, and void what is in work."""
        with self._lock:
            self._epoch += 1
            self._reset_reason = reason
        if self._worker is not None:
            self._worker.clear()

    def _try_observation(self, received_ns: int) -> None:
        """Hand the newest complete observation to the worker."""
        inputs = self._pairing.take()
        if inputs is None or self._worker is None:
            return
        if not self._instruction:
            self._drop(
                Drop(
                    'no_instruction',
                    'there is no instruction yet; publish one on vla/instruction.',
                    inputs.stamp_ns,
                )
            )
            return
        age_ms = (self.get_clock().now().nanoseconds - inputs.stamp_ns) / 1e6
        limit_ms = 1e3 * self._settings.stale_image_timeout_s
        if age_ms > limit_ms:
            self._drop(
                Drop(
                    'stale_image',
                    f'image is {age_ms:.0f} ms old; valid: at most {limit_ms:.0f} ms.',
                    inputs.stamp_ns,
                )
            )
            return
        request = _Request(inputs, self._instruction, self._epoch, received_ns, age_ms)
        replaced = self._worker.submit(request)
        if replaced is not None:
            self._drop(
                Drop(
                    'superseded',
                    'a newer image came before work on this one began.',
                    replaced.inputs.stamp_ns,
                )
            )

    # Inference: the worker's thread

    def _infer(self, request: _Request) -> None:
        """Run one policy step and publish its chunk, then its report."""
        policy, stamp_ns = self._policy, request.inputs.stamp_ns
        assert policy is not None  # the worker lives within configure .. cleanup
        started_ns = time.monotonic_ns()
        try:
            self._apply_reset(policy)
            chunk = policy.act(self._observation(request))
        except InstructionError as error:
            self._drop(Drop('bad_instruction', str(error), stamp_ns))
            return
        except ObservationError as error:
            self._drop(Drop('bad_observation', str(error), stamp_ns))
            return
        except Exception as error:  # whatever a model raises, the node must outlive it
            self._request_reset('fault')
            self._drop(Drop('inference_fault', f'{type(error).__name__}: {error}', stamp_ns))
            return
        finished_ns = time.monotonic_ns()
        if request.epoch != self._epoch:
            self._drop(Drop('superseded', 'a reset came during inference.', stamp_ns))
            return
        self._publish_chunk(replace(chunk, instruction=request.instruction))
        times = StepTimes(
            request.age_ms, request.received_ns, started_ns, finished_ns, time.monotonic_ns()
        )
        self._report_publisher.publish(step_to_message(chunk, policy.layout, times, self.drops))

    def _apply_reset(self, policy: Policy) -> None:
        with self._lock:
            reason, self._reset_reason = self._reset_reason, ''
        if reason:
            policy.reset(reason)

    def _observation(self, request: _Request) -> Observation:
        inputs = request.inputs
        return Observation(
            images=inputs.images,
            proprioception=to_proprioception(
                inputs.joints, inputs.pose, self._settings.gripper_joint_names
            ),
            instruction=request.instruction,
            stamp_ns=inputs.stamp_ns,
        )

    # Outputs

    def _drop(self, drop: Drop) -> None:
        """Count and report an input that was not used, and stop the robot where that is due."""
        with self._lock:
            self._drops[drop.reason] += 1
        if drop.reason not in STOPLESS_DROPS:
            self._publish_chunk(empty_chunk(drop.stamp_ns))
            self.get_logger().warning(f'{drop.reason}: {drop.detail}', throttle_duration_sec=1.0)
        self._report_publisher.publish(
            drop_to_message(drop.stamp_ns, drop.reason, drop.detail, self.drops)
        )

    def _publish_chunk(self, chunk: ActionChunk) -> None:
        self._chunk_publisher.publish(chunk_to_message(chunk, self._settings.control_frequency_hz))


def main(args: list[str] | None = None) -> int:
    """Run the node on its own."""
    return run_nodes(PolicyNode, args=args)
