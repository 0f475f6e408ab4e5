"""The policy as a lifecycle node: images, robot state and instruction in, action chunks out.

The executor's thread only receives and pairs. Inference has a thread of its own that always works
on the newest observation, so that no timer, service or other node in the process waits for it.

An observation that cannot be used is dropped, counted and reported, and answered by an empty
chunk: the guard then sends the null action. The node stays alive.
"""

import json
from typing import Any

from std_srvs.srv import SetBool, Trigger
from vla_cache_interfaces.msg import ActionChunk as ActionChunkMessage

from vla_cache_ros.core.errors import ObservationError
from vla_cache_ros.nodes import qos
from vla_cache_ros.nodes.managed_node import ManagedNode
from vla_cache_ros.nodes.pairing import Drop, PairedInputs
from vla_cache_ros.nodes.parameter_tables.policy_node import PolicyParameters
from vla_cache_ros.nodes.parameters import declare, read
from vla_cache_ros.nodes.policy_inference import Inference
from vla_cache_ros.nodes.policy_inputs import PolicyInputs
from vla_cache_ros.nodes.policy_loading import PolicyFactory, load_policy
from vla_cache_ros.nodes.policy_outputs import PolicyOutputs
from vla_cache_ros.nodes.policy_task import EMPTY, TaskInput
from vla_cache_ros.nodes.running import run_nodes


class PolicyNode(ManagedNode):
    """Runs a policy.

    Subscribes (relative names, remappable):
        camera/<name>/image_raw (sensor_msgs/Image) or camera/<name>/image_raw/compressed
            (sensor_msgs/CompressedImage), for each camera of the policy.
        joint_states (sensor_msgs/JointState): the gripper's joints; joint_state_topics.
        ee_pose (geometry_msgs/PoseStamped): the end effector.
        vla/instruction (std_msgs/String, transient local).
        vla/committed (vla_cache_interfaces/ActionChunk): what the guard will run next.
    Publishes:
        vla/action_chunk (vla_cache_interfaces/ActionChunk), stamped with the oldest image's stamp;
            empty: "no action follows from this observation".
        vla/instruction (std_msgs/String, transient local): what ~/set_instruction was told.
        ~/step_report (vla_cache_interfaces/StepReport): what each step did, or why it was dropped.
        ~/shadow_report (vla_cache_interfaces/ShadowReport): cached beside dense actions.
    Serves:
        ~/reset (std_srvs/Trigger): forget the episode; answers with the instruction in force. A
            reuse that shadow mode switched off is on again.
        ~/set_instruction (vla_cache_interfaces/SetInstruction).
        ~/set_cache (std_srvs/SetBool): switch the reuse on and off by hand.
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
        self._outputs: PolicyOutputs | None = None
        self._inference: Inference | None = None
        self.supervise(self._settings)

    @property
    def drops(self) -> dict[str, int]:
        """Dropped inputs since configure, by reason."""
        return {} if self._outputs is None else self._outputs.drops

    @property
    def inputs(self) -> PolicyInputs:
        """What it receives; needs `configure`."""
        return self._inputs

    def unconnected(self) -> list[str]:
        """Topics of an episode that have not found their other end yet; needs `configure`."""
        assert self._outputs is not None
        return qos.unconnected(
            [self._outputs.chunk_publisher],
            [*self._inputs.subscriptions, *self._task.subscriptions],
        )

    # Lifecycle

    def allocate(self) -> None:
        """Load the policy, and create every publisher, subscription and service."""
        self._settings = parameters = read(self, PolicyParameters)
        policy = self._policy_factory(parameters)
        self._outputs = outputs = PolicyOutputs(self, parameters.control_frequency_hz)
        self._inference = Inference(
            policy, parameters, outputs, name=f'{self.get_name()} inference'
        )
        self._task = TaskInput(self, self._on_task)
        self._inputs = PolicyInputs(
            self,
            parameters,
            policy.camera_names,
            on_observation=self._on_observation,
            on_drop=outputs.drop,
            on_clock_backwards=lambda: self._working.reset('clock went backwards'),
        )
        self.subscription(ActionChunkMessage, 'vla/committed', self._on_committed, qos.command())
        self.service(Trigger, '~/reset', self._on_reset)
        self.service(SetBool, '~/set_cache', self._on_set_cache)
        self.get_logger().info(
            f'{parameters.checkpoint or "own weights"} on {parameters.device}, '
            f'backend {parameters.backend}, '
            f'cache {parameters.cache_preset}, cameras {", ".join(policy.camera_names)}'
        )

    def start(self) -> None:
        """Begin to act on what is received."""
        self._working.start()
        self._inputs.open()

    def stop(self) -> None:
        """Revoke the chunk at once, void what is in work, then wait for it."""
        if self._inference is not None and self._inference.is_running:
            self._inputs.close()
            self._inference.stop()

    def release(self) -> None:
        """Free the policy."""
        if self._inference is not None:
            self._inference.stop()
        self._inference = None

    @property
    def _working(self) -> Inference:
        """The inference; there is one from configure to cleanup."""
        assert self._inference is not None
        return self._inference

    # The executor's thread

    def _on_observation(self, inputs: PairedInputs, received_ns: int) -> None:
        """Hand an observation to the inference, if it may be acted on."""
        if not self._task.instruction:
            detail = 'there is no instruction yet; publish one on vla/instruction.'
            self._drop('no_instruction', detail, inputs.stamp_ns)
            return
        age_ms = (self.get_clock().now().nanoseconds - inputs.stamp_ns) / 1e6
        limit_ms = 1e3 * self._settings.stale_image_timeout_s
        if age_ms > limit_ms:
            detail = f'image is {age_ms:.0f} ms old; valid: at most {limit_ms:.0f} ms.'
            self._drop('stale_image', detail, inputs.stamp_ns)
            return
        self._working.submit(inputs, self._task.instruction, received_ns, age_ms)

    def _on_task(self) -> None:
        """Begin anew with another instruction; stop the robot when there is none."""
        self._working.reset('instruction change')
        if not self._task.instruction and self._working.is_running:
            self._drop('empty_instruction', EMPTY, self.get_clock().now().nanoseconds)

    def _on_committed(self, message: ActionChunkMessage) -> None:
        try:
            self._working.commit(message)
        except ObservationError as error:
            self._drop('bad_committed', str(error), self.get_clock().now().nanoseconds)

    def _on_reset(self, _: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        """Forget the episode: nothing that was computed before is published after.

        Success also says that every topic is connected, so that the first frame is not lost.
        """
        if not self._working.is_running:
            response.message = 'not active'
            return response
        self._inputs.clear()
        self._working.reset('reset', forgives=True)
        if unconnected := self.unconnected():
            response.message = f'no other end yet: {", ".join(unconnected)}'
            return response
        response.success = True
        response.message = json.dumps({'instruction': self._task.instruction})
        return response

    def _on_set_cache(
        self, request: SetBool.Request, response: SetBool.Response
    ) -> SetBool.Response:
        response.success = self._working.switch_reuse(on=request.data)
        response.message = (
            f'reuse is {"on" if request.data else "off"} from the next step on'
            if response.success
            else 'this policy has no reuse to switch'
        )
        return response

    def _drop(self, reason: str, detail: str, stamp_ns: int) -> None:
        assert self._outputs is not None
        self._outputs.drop(Drop(reason, detail, stamp_ns))


def main(args: list[str] | None = None) -> int:
    """Run the node on its own."""
    return run_nodes(PolicyNode, args=args)
