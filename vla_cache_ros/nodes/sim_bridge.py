"""A simulator as a lifecycle node: cameras and robot state out, commands in.

Lockstep: the simulator takes one control step per command, which carries the stamp of the state
that it answers; a run is then a function of task, initial state and policy alone. When no command
comes in time, the null action is taken and counted.

Realtime: one control step per period, with the newest command or, without one, the null action.

Simulated time goes on from episode to episode, so that no reader sees the clock go backwards.
"""

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np
from geometry_msgs.msg import PoseStamped
from numpy.typing import NDArray
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import Image, JointState, TimeReference
from std_msgs.msg import String
from std_srvs.srv import Trigger
from vla_cache_interfaces.msg import ActionChunk

from vla_cache_ros.core.errors import ObservationError, SimulatorError, VlaCacheError
from vla_cache_ros.nodes import qos
from vla_cache_ros.nodes.chunk_messages import message_to_command
from vla_cache_ros.nodes.conversions import ns_to_stamp, pose_message, stamp_to_ns
from vla_cache_ros.nodes.image_conversions import rgb_to_image
from vla_cache_ros.nodes.managed_node import ManagedNode
from vla_cache_ros.nodes.parameter_tables.sim_bridge import SimBridgeParameters
from vla_cache_ros.nodes.parameters import declare, read
from vla_cache_ros.nodes.reset_handshake import ResetHandshake
from vla_cache_ros.nodes.running import run_nodes

JOINT_NAMES = (
    *(f'panda_joint{index}' for index in range(1, 8)),
    'panda_finger_joint1',
    'panda_finger_joint2',
)

_FIRST_STAMP_NS = 1_000_000_000
"""Simulated time begins at 1 s: 0 means "no time yet" to ROS."""


class Scene(Protocol):
    """What the bridge needs of a simulator's scene."""

    def proprioception(self) -> Mapping[str, NDArray[np.float32]]:
        """State of the arm, without rendering: the observation's keys that are no cameras."""
        ...


class Simulator(Protocol):
    """What the bridge needs of an environment: gymnasium's reset, and a step in two halves."""

    @property
    def instruction(self) -> str:
        """The present task in words."""
        ...

    @property
    def scene(self) -> Scene:
        """The scene of the present episode."""
        ...

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """Start an episode; options: task, init_state."""
        ...

    def advance(self, action: NDArray[Any]) -> tuple[float, bool, bool, dict[str, Any]]:
        """Take one control step without rendering: reward, terminated, truncated, info."""
        ...

    def observe(self) -> dict[str, NDArray[Any]]:
        """Render the cameras and read the arm's state."""
        ...

    def close(self) -> None:
        """Free the simulator."""
        ...


EnvFactory = Callable[[SimBridgeParameters], Any]


@dataclass(frozen=True)
class EpisodeResult:
    """How an episode went.

    Attributes:
        episode: Number of the episode, from 1.
        suite: Name of the suite.
        task: Index of the task.
        init_state: Index of the initial state.
        seed: Seed of the reset.
        instruction: The task in words.
        steps: Control steps taken.
        success: Whether the task's goal was reached.
        reason: 'success', 'step limit', 'reset', 'deactivate', or 'error: ..' when the simulator
            failed, which says nothing about the policy.
        null_steps: Steps taken with the null action because no command came in time.
        late_commands: Commands that answered a state already left behind.
        refused_commands: Commands that were not one action of finite numbers.
        wall_s: Wall time from the first frame to the end.
    """

    episode: int
    suite: str
    task: int
    init_state: int
    seed: int
    instruction: str
    steps: int = 0
    success: bool = False
    reason: str = ''
    null_steps: int = 0
    late_commands: int = 0
    refused_commands: int = 0
    wall_s: float = 0.0


@dataclass
class _Episode:
    """The episode in progress."""

    start: EpisodeResult
    observation: Mapping[str, NDArray[Any]] | None
    began_s: float = 0.0
    steps: int = 0
    null_steps: int = 0
    late_commands: int = 0
    refused_commands: int = 0
    running: bool = False  # the first frame is out

    def result(self, reason: str, success: bool = False) -> EpisodeResult:
        changes = {
            'steps': self.steps,
            'success': success,
            'reason': reason,
            'null_steps': self.null_steps,
            'late_commands': self.late_commands,
            'refused_commands': self.refused_commands,
            'wall_s': time.monotonic() - self.began_s if self.running else 0.0,
        }
        return EpisodeResult(**(asdict(self.start) | changes))


class SimBridge(ManagedNode):
    """Runs a simulator.

    Publishes (relative names, remappable):
        camera/<name>/image_raw (sensor_msgs/Image, rgb8), every `frame_every` control steps.
        joint_states (sensor_msgs/JointState), ee_pose (geometry_msgs/PoseStamped, frame world),
            every control step.
        /clock (rosgraph_msgs/Clock), every control step.
        vla/instruction (std_msgs/String, transient local), at each reset.
        ~/episode (std_msgs/String): JSON {"event": "start" or "end", ..EpisodeResult}.
        ~/time_reference (sensor_msgs/TimeReference): with each pair of images, their stamp beside
            CLOCK_MONOTONIC, from which latencies are taken while simulated time stands still.
    Subscribes:
        vla/action (vla_cache_interfaces/ActionChunk of one action): the guarded command.
    Serves:
        ~/reset (std_srvs/Trigger): start the episode that task, init_state and seed name.
    """

    def __init__(
        self,
        env_factory: EnvFactory | None = None,
        node_name: str = 'sim_bridge',
        **node_arguments: Any,
    ) -> None:
        """Declare the parameters; the simulator is built at `configure`.

        Args:
            env_factory: Makes the gymnasium environment; default: by the parameter `suite`.
            node_name: Name of the node.
            **node_arguments: Passed on to rclpy's Node.
        """
        super().__init__(node_name, **node_arguments)
        self._env_factory = env_factory or load_env
        self._settings = declare(self, SimBridgeParameters)
        self._env: Any = None
        self._simulator: Simulator | None = None
        self._episode: _Episode | None = None
        self._episodes_started = 0
        self._episodes_left = 0
        self._stamp_ns = _FIRST_STAMP_NS
        self._gripper = -1.0
        self._command: NDArray[np.float32] | None = None
        self._listeners: list[Callable[[EpisodeResult], None]] = []
        self.supervise(self._settings)

    def add_episode_listener(
        self, listener: Callable[[EpisodeResult], None]
    ) -> Callable[[], None]:
        """Have a function called in the executor's thread at the end of each episode.

        Returns:
            A function that removes it again.
        """
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

    # Lifecycle

    def allocate(self) -> None:
        """Build the environment and create every publisher and subscription."""
        parameters = self._settings = read(self, SimBridgeParameters)
        self._env = self._env_factory(parameters)
        self._simulator = self._env.unwrapped
        self._image_publishers = {
            camera: self.publisher(Image, f'camera/{camera}/image_raw', qos.frame())
            for camera in parameters.camera_names
        }
        self._joint_publisher = self.publisher(JointState, 'joint_states', qos.state())
        self._pose_publisher = self.publisher(PoseStamped, 'ee_pose', qos.state())
        self._clock_publisher = self.publisher(Clock, '/clock', qos.clock())
        self._instruction_publisher = self.publisher(String, 'vla/instruction', qos.latched())
        self._episode_publisher = self.publisher(String, '~/episode', qos.report())
        self._time_publisher = self.publisher(TimeReference, '~/time_reference', qos.report())
        self._command_subscription = self.subscription(
            ActionChunk, 'vla/action', self._on_command, qos.command()
        )
        self.service(Trigger, '~/reset', self._on_reset)
        lockstep = parameters.mode == 'lockstep'
        period_s = 1.0 / parameters.control_frequency_hz
        self._step_timer = self.timer(
            parameters.command_timeout_s if lockstep else period_s, self._step_alone
        )
        self._start_timer = self.timer(0.0, self._start_next)
        self._step_timer.cancel()
        self._start_timer.cancel()
        self._handshake = self.own(
            ResetHandshake(
                self,
                parameters.reset_services,
                peers_present=self._peers_present,
                timeout_s=parameters.peer_timeout_s,
                done=self._begin_stepping,
            ),
            ResetHandshake.destroy,
        )

    def start(self) -> None:
        """Become ready for resets; with `episodes` set, start the first."""
        self._settings = read(self, SimBridgeParameters)
        self._episodes_left = self._settings.episodes
        if self._episodes_left:
            self._start_timer.reset()

    def stop(self) -> None:
        """End the episode; the simulator keeps its state."""
        self._end_episode('deactivate')

    def release(self) -> None:
        """Free the simulator."""
        self._episode = None
        if self._env is not None:
            self._env.close()
        self._env = self._simulator = None

    # Episodes

    def _on_reset(self, _: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        parameters = read(self, SimBridgeParameters)
        try:
            self.begin_episode(parameters.task, parameters.init_state, parameters.seed)
        except VlaCacheError as error:
            response.message = str(error)
            return response
        assert self._episode is not None  # begin_episode made it
        response.success = True
        response.message = json.dumps(asdict(self._episode.start))
        return response

    def begin_episode(self, task: int, init_state: int, seed: int = 0) -> None:
        """Reset the simulator and, once the peers took notice, send the first frame.

        Must be called in the executor's thread, or while nothing spins.

        Raises:
            ObservationError: The node is not active.
            UnknownNameError: There is no such task or initial state.
            SimulatorError: The simulator failed.
        """
        if self._simulator is None or self.lifecycle_state != 'active':
            raise ObservationError('the simulator is not active; configure and activate it first.')
        self._end_episode('reset')
        options = {'task': task, 'init_state': init_state}
        try:
            observation, _ = self._env.reset(seed=seed, options=options)
        except VlaCacheError:
            raise
        except Exception as error:  # whatever a simulator raises, the node must outlive it
            raise SimulatorError(f'reset failed: {type(error).__name__}: {error}') from error
        self._episodes_started += 1
        self._episode = _Episode(
            EpisodeResult(
                episode=self._episodes_started,
                suite=self._settings.suite,
                task=task,
                init_state=init_state,
                seed=seed,
                instruction=self._simulator.instruction,
            ),
            observation,
        )
        self._command = None
        self._gripper = -1.0
        self._instruction_publisher.publish(String(data=self._simulator.instruction))
        self._handshake.start(self._simulator.instruction)

    def _peers_present(self) -> bool:
        """Whether somebody reads images and state, and somebody commands."""
        outputs = (*self._image_publishers.values(), self._joint_publisher, self._pose_publisher)
        return not qos.unconnected(outputs, [self._command_subscription])

    @property
    def _period_ns(self) -> int:
        return round(1e9 / self._settings.control_frequency_hz)

    def _begin_stepping(self) -> None:
        """Send the first frame: every peer has forgotten the episode before."""
        if self._episode is None:
            return
        if self._episode.start.episode > 1:
            self._stamp_ns += self._period_ns  # no stamp is used twice
        self._episode.began_s = time.monotonic()
        self._episode.running = True
        self._publish_episode('start', self._episode.start)
        self._publish_tick()

    def _start_next(self) -> None:
        """Start the next of the episodes that are played without being asked."""
        self._start_timer.cancel()
        parameters = self._settings
        played = parameters.episodes - self._episodes_left
        self._episodes_left -= 1
        try:
            self.begin_episode(parameters.task, parameters.init_state + played, parameters.seed)
        except VlaCacheError as error:
            self.get_logger().error(f'no further episodes: {error}')

    def _end_episode(self, reason: str, success: bool = False) -> None:
        if self._episode is None:
            return
        result = self._episode.result(reason, success)
        self._episode = None
        self._step_timer.cancel()
        self._handshake.cancel()
        self._publish_episode('end', result)
        for listener in list(self._listeners):
            listener(result)
        if self._episodes_left > 0 and reason not in ('reset', 'deactivate'):
            self._start_timer.reset()

    def _publish_episode(self, event: str, result: EpisodeResult) -> None:
        content = {'event': event, 'stamp_ns': self._stamp_ns, **asdict(result)}
        self._episode_publisher.publish(String(data=json.dumps(content)))

    # Control steps

    def _on_command(self, message: ActionChunk) -> None:
        episode = self._episode
        if episode is None or not episode.running:
            return
        lockstep = self._settings.mode == 'lockstep'
        if lockstep and stamp_to_ns(message.header.stamp) != self._stamp_ns:
            episode.late_commands += 1
            return
        try:
            action = message_to_command(message)
        except ObservationError as error:
            episode.refused_commands += 1
            self.get_logger().warning(f'command refused: {error}', throttle_duration_sec=1.0)
            return
        if lockstep:
            self._step(action)
        else:
            self._command = action

    def _step_alone(self) -> None:
        """Step without waiting any longer: realtime's period, or lockstep's timeout."""
        if self._episode is None or not self._episode.running:
            return
        command, self._command = self._command, None  # a delta is never applied twice
        if command is None:
            self._episode.null_steps += 1
            command = np.array([0, 0, 0, 0, 0, 0, self._gripper], np.float32)
        self._step(command)

    def _step(self, action: NDArray[np.float32]) -> None:
        """Take one control step and publish what it led to."""
        episode, simulator = self._episode, self._simulator
        assert episode is not None  # callers checked
        assert simulator is not None  # an episode lives within configure .. cleanup
        try:
            _, terminated, truncated, info = simulator.advance(action)
            self._gripper = float(action[6])
            self._stamp_ns += self._period_ns
            episode.steps += 1
            if terminated or truncated:
                success = bool(info.get('success', terminated))
                self._end_episode('success' if success else 'step limit', success)
                return
            if episode.steps % self._settings.frame_every == 0:
                episode.observation = simulator.observe()
            self._publish_tick()
        except Exception as error:  # whatever a simulator raises, the node must outlive it
            self.get_logger().error(f'the simulator failed: {type(error).__name__}: {error}')
            self._end_episode(f'error: {error}')

    def _publish_tick(self) -> None:
        """Publish the clock, the arm's state and, when rendered, the images; then wait."""
        episode, simulator = self._episode, self._simulator
        assert episode is not None  # callers checked
        assert simulator is not None  # an episode lives within configure .. cleanup
        stamp = ns_to_stamp(self._stamp_ns)
        observation = episode.observation
        if observation is not None:
            reference = TimeReference(source='CLOCK_MONOTONIC')
            reference.header.stamp = stamp
            reference.time_ref = ns_to_stamp(time.monotonic_ns())
            self._time_publisher.publish(reference)
        self._clock_publisher.publish(Clock(clock=stamp))
        self._publish_state(observation or simulator.scene.proprioception(), stamp)
        if observation is not None:
            for camera, publisher in self._image_publishers.items():
                frame_id = f'{camera}_optical_frame'
                publisher.publish(rgb_to_image(observation[camera], stamp, frame_id))
        episode.observation = None
        if self._step_timer.is_canceled() or self._settings.mode == 'lockstep':
            self._step_timer.reset()

    def _publish_state(self, arm: Mapping[str, NDArray[Any]], stamp: Any) -> None:
        joints = JointState()
        joints.header.stamp = stamp
        joints.position = [
            *arm.get('joint_position_rad', np.empty(0)).tolist(),  # LIBERO's alone
            *arm['gripper_position_m'].tolist(),
        ]
        joints.name = list(JOINT_NAMES[-len(joints.position) :])
        pose = pose_message(arm['ee_position_m'], arm['ee_quaternion_xyzw'], 'world')
        pose.header.stamp = stamp
        self._pose_publisher.publish(pose)
        self._joint_publisher.publish(joints)


def load_env(parameters: SimBridgeParameters) -> Any:
    """Make the environment of a suite, in whatever simulator.

    Raises:
        UnknownNameError: There is no such suite, task or camera.
        SimulatorError: The simulator is not installed.
    """
    from vla_cache_sim.simulators import simulator_module

    return simulator_module(parameters.suite).make_env(
        parameters.suite,
        parameters.task,
        image_size_px=parameters.image_size_px,
        cameras=parameters.camera_names,
    )


def main(args: list[str] | None = None) -> int:
    """Run the node on its own."""
    return run_nodes(SimBridge, args=args)
