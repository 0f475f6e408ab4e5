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
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from geometry_msgs.msg import PoseStamped
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from sensor_msgs.msg import Image, JointState
from std_msgs.msg import String
from std_srvs.srv import Trigger
from trajectory_msgs.msg import JointTrajectory

from vla_cache_ros.core.errors import (
    InstructionError,
    ObservationError,
    VlaCacheError,
)
from vla_cache_ros.core.protocols import Policy
from vla_cache_ros.core.types import ActionChunk, Observation, StepReport
from vla_cache_ros.nodes import qos
from vla_cache_ros.nodes.conversions import (
    ACTION_NAMES,
    actions_to_trajectory,
    stamp_to_ns,
    to_proprioception,
)
from vla_cache_ros.nodes.image_conversions import image_to_rgb
from vla_cache_ros.nodes.latest_worker import LatestWorker
from vla_cache_ros.nodes.pairing import Drop, PairedInputs, Pairing
from vla_cache_ros.nodes.parameter_tables.policy_node import PolicyParameters
from vla_cache_ros.nodes.parameters import declare, read
from vla_cache_ros.nodes.running import autostart, run_nodes
from vla_cache_ros.resources import resource_folder
from vla_cache_trt.backends import backend_module, settle_precision

PolicyFactory = Callable[[PolicyParameters], Policy]

"""Policies that can be loaded by name."""

STOPLESS_DROPS = frozenset({'unpaired_image', 'superseded', 'repeated_stamp'})
"""Drops that are part of normal running, where the next image is on its way: no empty chunk."""

_EMPTY = np.empty((0, len(ACTION_NAMES)), np.float32)


@dataclass(frozen=True)
class _Request:
    """One observation on its way to the worker; epoch: resets before it was paired."""

    inputs: PairedInputs
    instruction: str
    epoch: int
    received_ns: int
    age_ms: float


class PolicyNode(LifecycleNode):
    """Runs a policy.

    Subscribes (relative names, remappable):
        camera/<name>/image_raw (sensor_msgs/Image), for each camera of the policy.
        joint_states (sensor_msgs/JointState): the fingers.
        ee_pose (geometry_msgs/PoseStamped): the end effector.
        vla/instruction (std_msgs/String, transient local).
    Publishes:
        vla/action_chunk (trajectory_msgs/JointTrajectory), stamped with the oldest image's stamp;
            without points: "no action follows from this observation".
        ~/step_report (std_msgs/String): JSON of what each step did, or of why it was dropped.
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
        self._owned: list[Any] = []
        self._lock = threading.Lock()  # guards the fields below, which the worker shares
        self._drops: Counter[str] = Counter()
        self._instruction = ''
        self._epoch = 0
        self._reset_reason = ''
        if self._settings.autostart:
            autostart(self)

    @property
    def drops(self) -> dict[str, int]:
        """Dropped inputs since configure, by reason."""
        with self._lock:
            return dict(self._drops)

    def unconnected(self) -> list[str]:
        """Topics of an episode that have not found their other end yet; needs `configure`."""
        return qos.unconnected([self._chunk_publisher], self._owned)

    # Lifecycle

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Load the policy, and create every publisher and subscription."""
        try:
            self._settings = read(self, PolicyParameters)
            self._policy = self._policy_factory(self._settings)
        except VlaCacheError as error:
            self.get_logger().error(f'configure failed: {error}')
            return TransitionCallbackReturn.FAILURE
        except Exception as error:
            self.get_logger().error(f'configure failed: {type(error).__name__}: {error}')
            raise
        parameters = self._settings
        self._pairing = Pairing(
            self._policy.camera_names,
            tolerance_ns=round(parameters.pairing_tolerance_s * 1e9),
            silence_ns=round(parameters.stale_image_timeout_s * 1e9),
        )
        with self._lock:
            self._drops.clear()
            self._instruction = ''
        self._chunk_publisher = qos.publish(
            self, JointTrajectory, 'vla/action_chunk', qos.command()
        )
        self._report_publisher = qos.publish(self, String, '~/step_report', qos.report())
        self._owned = [
            qos.subscribe(
                self,
                Image,
                f'camera/{camera}/image_raw',
                partial(self._on_image, camera),
                qos.frame(),
            )
            for camera in self._policy.camera_names
        ]
        self._owned += [
            qos.subscribe(self, JointState, 'joint_states', self._on_joints, qos.state()),
            qos.subscribe(self, PoseStamped, 'ee_pose', self._on_pose, qos.state()),
            qos.subscribe(self, String, 'vla/instruction', self._on_instruction, qos.latched()),
        ]
        self._reset_service = self.create_service(Trigger, '~/reset', self._on_reset)
        self.get_logger().info(
            f'{parameters.checkpoint or "own weights"} on {parameters.device}, '
            f'backend {parameters.backend}, '
            f'cache {parameters.cache_preset}, cameras {", ".join(self._policy.camera_names)}'
        )
        return super().on_configure(state)

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Begin to act on what is received."""
        self._request_reset('activate')
        self._worker = LatestWorker(self._infer, name=f'{self.get_name()} inference')
        return super().on_activate(state)

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Stop acting: finish the inference in work, then revoke the chunk."""
        self._stop_worker()
        self._publish_chunk(_EMPTY, self.get_clock().now().nanoseconds)
        return super().on_deactivate(state)

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Free the policy and everything that configure created."""
        self._release()
        return super().on_cleanup(state)

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Free everything, from whatever state."""
        if state.label == 'active':
            self._stop_worker()
            self._publish_chunk(_EMPTY, self.get_clock().now().nanoseconds)
        self._release()
        return super().on_shutdown(state)

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Free everything and go back to unconfigured, from where configure may be tried again."""
        self._release()
        super().on_error(state)
        return TransitionCallbackReturn.SUCCESS

    def destroy_node(self) -> None:
        """Stop the inference thread, then destroy the node."""
        self._stop_worker()
        super().destroy_node()

    def _stop_worker(self) -> None:
        if self._worker is not None:
            self._worker.close()
            self._worker = None

    def _release(self) -> None:
        """Free what configure and activate allocated; idempotent."""
        self._stop_worker()
        for subscription in self._owned:
            self.destroy_subscription(subscription)
        self._owned = []
        for name in ('_chunk_publisher', '_report_publisher'):
            publisher = self.__dict__.pop(name, None)
            if publisher is not None:
                self.destroy_lifecycle_publisher(publisher)
        service = self.__dict__.pop('_reset_service', None)
        if service is not None:
            self.destroy_service(service)
        self._pairing.clear()
        self._policy = None

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
        self._publish_chunk(chunk.actions, stamp_ns)
        published_ns = time.monotonic_ns()
        moments_ns = (request.received_ns, started_ns, finished_ns, published_ns)
        self._publish_report(step_report(chunk, policy, request.age_ms, moments_ns, self.drops))

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
            self._publish_chunk(_EMPTY, drop.stamp_ns)
            self.get_logger().warning(f'{drop.reason}: {drop.detail}', throttle_duration_sec=1.0)
        self._publish_report(
            {
                'stamp_ns': drop.stamp_ns,
                'dropped': drop.reason,
                'detail': drop.detail,
                'drops': self.drops,
            }
        )

    def _publish_chunk(self, actions: np.ndarray, stamp_ns: int) -> None:
        self._chunk_publisher.publish(
            actions_to_trajectory(actions, stamp_ns, self._settings.control_frequency_hz)
        )

    def _publish_report(self, report: dict[str, Any]) -> None:
        self._report_publisher.publish(String(data=json.dumps(report)))


def step_report(
    chunk: ActionChunk,
    policy: Policy,
    age_ms: float,
    moments_ns: Sequence[int],
    drops: dict[str, int],
) -> dict[str, Any]:
    """Build the JSON of one step.

    Args:
        chunk: What the policy returned.
        policy: The policy, for its layout.
        age_ms: Age of the oldest image at receipt, by the node's clock.
        moments_ns: CLOCK_MONOTONIC at receipt of the last input, start and end of the inference,
            and after the chunk was published.
        drops: Dropped inputs so far, by reason.
    """
    received_ns, started_ns, finished_ns, published_ns = moments_ns
    report = {
        'stamp_ns': chunk.stamp_ns,
        'age_ms': age_ms,
        'received_ns': received_ns,
        'published_ns': published_ns,
        'queue_ms': (started_ns - received_ns) / 1e6,
        'inference_ms': (finished_ns - started_ns) / 1e6,
        'publish_ms': (published_ns - finished_ns) / 1e6,
        'drops': drops,
    }
    if chunk.report is not None:
        report |= _reuse_report(chunk.report, policy)
    return report


def _reuse_report(report: StepReport, policy: Policy) -> dict[str, Any]:
    """What the step recomputed and reused, camera by camera."""
    plan, layout = report.plan, policy.layout
    first_slot, stop_slot = layout.vision
    kept = np.ones(layout.num_vision, dtype=bool)
    last = plan.recompute[-1]
    kept[last[(last >= first_slot) & (last < stop_slot)] - first_slot] = False
    spans = {
        camera.name: slice(camera.start - first_slot, camera.stop - first_slot)
        for camera in layout
    }
    return {
        'step': report.step,
        'mode': report.mode,
        'stage_ms': dict(report.stage_ms),
        'tokens': {name: span.stop - span.start for name, span in spans.items()},
        'reused': {name: int(kept[span].sum()) for name, span in spans.items()},
        'age_mean': float(plan.age.mean()),
        'age_max': int(plan.age.max()),
        'recompute_ratio': plan.recompute_ratio,
        'flush_reason': report.flush_reason,
        'keyframe_reason': report.keyframe_reason,
    }


def load_policy(parameters: PolicyParameters) -> Policy:
    """Load the policy that the parameters name.

    Raises:
        UnknownNameError: There is no such dataset, embodiment or precision.
        ConfigError: A parameter does not apply to the checkpoint.
        CheckpointError: The weights are missing or do not fit.
        EngineError: The engine is missing or does not fit; the message says how to build it.
    """
    from vla_cache_models.policy import load_model, make_policy

    precision, dtype = settle_precision(
        parameters.backend, parameters.precision, parameters.dtype, PolicyParameters.dtype
    )
    if parameters.backend != 'torch':
        backend_module(parameters.backend)  # what it lacks is said before a model is loaded
    model = load_model(
        parameters.checkpoint or resource_folder('weights'),
        unnorm_key=parameters.unnorm_key,
        embodiment=parameters.embodiment,
        dtype=dtype,
        device=parameters.device,
    )
    if parameters.backend != 'torch':
        model = _on_engines(model, parameters, precision)
    return make_policy(model, parameters.cache_preset)


def _on_engines(model: Any, parameters: PolicyParameters, precision: str) -> Any:
    """The model on engines that were built before; dense steps run on those of any preset."""
    from vla_cache_trt.build import DENSE_ON, Wanted, build_command, on_engines

    cache = DENSE_ON if parameters.cache_preset == 'off' else parameters.cache_preset
    return on_engines(
        Wanted(
            model,
            model.preset(cache),
            parameters.backend,
            precision,
            parameters.device,
            Path(parameters.engine_folder) if parameters.engine_folder else None,
            command=build_command(
                parameters.backend,
                precision,
                cache,
                checkpoint=parameters.checkpoint,
                unnorm_key=parameters.unnorm_key,
                embodiment=parameters.embodiment,
                device='' if parameters.device == 'cpu' else parameters.device,
                engine_folder=parameters.engine_folder,
            ),
        )
    )


def main(args: list[str] | None = None) -> int:
    """Run the node on its own."""
    return run_nodes(PolicyNode, args=args)
