"""The other end of the policy node, for its tests."""

import threading

import numpy as np
from geometry_msgs.msg import PoseStamped
from rclpy.lifecycle import TransitionCallbackReturn
from rclpy.node import Node
from rclpy.parameter import Parameter
from sensor_msgs.msg import CompressedImage, Image, JointState
from std_msgs.msg import String
from std_srvs.srv import Trigger
from vla_cache_interfaces.msg import ActionChunk, ShadowReport, StepReport

from vla_cache_ros.nodes import qos
from vla_cache_ros.nodes.chunk_messages import message_to_chunk
from vla_cache_ros.nodes.conversions import ns_to_stamp, pose_message, stamp_to_ns
from vla_cache_ros.nodes.image_conversions import rgb_to_compressed, rgb_to_image
from vla_cache_ros.nodes.policy_node import PolicyNode


def inference_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if 'inference' in thread.name]


SUCCESS = TransitionCallbackReturn.SUCCESS
SECOND_NS = 1_000_000_000
PIXELS = np.full((16, 16, 3), 7, np.uint8)


class Robot:
    """The other end of every topic of the policy node."""

    def __init__(self, executor, spin_until, policy, **parameters) -> None:
        self.spin_until = spin_until
        self.configured = []
        values = {'use_sim_time': True, **parameters}
        overrides = [Parameter(name, value=value) for name, value in values.items()]
        self.failure: Exception | None = None
        self.node = PolicyNode(self._make(policy), parameter_overrides=overrides)
        peer = self.peer = Node('robot')
        self.is_compressed = parameters.get('image_transport') == 'compressed'
        kind = CompressedImage if self.is_compressed else Image
        suffix = '/compressed' if self.is_compressed else ''
        self.images = {
            name: qos.publish(peer, kind, f'camera/{name}/image_raw{suffix}', qos.frame())
            for name in policy.camera_names
        }
        self.joint_topics = [
            qos.publish(peer, JointState, topic, qos.state())
            for topic in parameters.get('joint_state_topics', ['joint_states'])
        ]
        self.pose = qos.publish(peer, PoseStamped, 'ee_pose', qos.state())
        self.instruction = qos.publish(peer, String, 'vla/instruction', qos.latched())
        self.chunks: list[ActionChunk] = []
        self.reports: list[StepReport] = []
        qos.subscribe(peer, ActionChunk, 'vla/action_chunk', self.chunks.append, qos.command())
        qos.subscribe(
            peer, StepReport, 'policy_node/step_report', self.reports.append, qos.report()
        )
        self.shadow_reports: list[ShadowReport] = []
        qos.subscribe(
            peer,
            ShadowReport,
            'policy_node/shadow_report',
            self.shadow_reports.append,
            qos.report(),
        )
        self.reset = peer.create_client(Trigger, 'policy_node/reset')
        executor.add_node(self.node)
        executor.add_node(peer)

    def _make(self, policy):
        def make(parameters):
            self.configured.append(parameters)
            if self.failure is not None:
                raise self.failure
            return policy

        return make

    @property
    def state(self) -> str:
        return self.node._state_machine.current_state[1]

    def activate(self, instruction: str = 'push the point') -> 'Robot':
        assert self.node.trigger_configure() == SUCCESS
        assert self.node.trigger_activate() == SUCCESS
        self.wait_for_peers()
        if instruction:
            self.tell(instruction)
        return self

    def wait_for_peers(self) -> None:
        publishers = (
            *self.images.values(),
            *self.joint_topics,
            self.pose,
            self.instruction,
        )
        self.spin_until(
            lambda: (
                all(publisher.get_subscription_count() for publisher in publishers)
                and not self.node.unconnected()
                and self.node._outputs.report_publisher.get_subscription_count()
                and self.reset.service_is_ready()
            )
        )

    def tell(self, instruction: str) -> None:
        self.instruction.publish(String(data=instruction))
        self.spin_until(lambda: self.node._task.instruction == instruction.strip())

    def send_state(self, stamp_ns: int, x_m: float = 0.0) -> None:
        self.send_joints(stamp_ns, panda_finger_joint1=0.04, panda_finger_joint2=-0.04)
        pose = pose_message(np.array([x_m, 0, 0]), np.array([0, 0, 0, 1]), 'world')
        pose.header.stamp = ns_to_stamp(stamp_ns)
        self.pose.publish(pose)

    def send_joints(self, stamp_ns: int, topic: int = 0, **positions: float) -> None:
        joints = JointState(name=list(positions), position=list(positions.values()))
        joints.header.stamp = ns_to_stamp(stamp_ns)
        self.joint_topics[topic].publish(joints)

    def send_images(
        self,
        stamp_ns: int,
        cameras: tuple[str, ...] = ('agentview', 'wrist'),
        pixels: np.ndarray = PIXELS,
        **changes: object,
    ) -> None:
        for camera in cameras:
            pack = rgb_to_compressed if self.is_compressed else rgb_to_image
            message = pack(pixels, ns_to_stamp(stamp_ns), camera)
            for name, value in changes.items():
                setattr(message, name, value)
            self.images[camera].publish(message)

    def send(self, stamp_ns: int) -> None:
        self.send_state(stamp_ns)
        self.send_images(stamp_ns)

    def expect_chunk(self, stamp_ns: int) -> np.ndarray:
        self.spin_until(
            lambda: any(stamp_to_ns(chunk.header.stamp) == stamp_ns for chunk in self.chunks)
        )
        chunk = next(c for c in self.chunks if stamp_to_ns(c.header.stamp) == stamp_ns)
        return message_to_chunk(chunk).actions

    def expect_drop(self, reason: str, count: int = 1) -> StepReport:
        def found():
            return [report for report in self.reports if report.dropped == reason]

        self.spin_until(lambda: len(found()) >= count)
        assert self.node.drops[reason] == count
        return found()[-1]

    def expect_alive(self, stamp_ns: int) -> None:
        """The next good observation is acted on."""
        self.send(stamp_ns)
        assert len(self.expect_chunk(stamp_ns)) == 8

    def call(self, kind: type, name: str, **request: object):
        """Ask a service of the node and wait for its answer."""
        client = self.peer.create_client(kind, f'policy_node/{name}')
        self.spin_until(client.service_is_ready)
        answer = client.call_async(kind.Request(**request))
        self.spin_until(answer.done)
        return answer.result()
