"""A simulator and a policy that cost nothing but their messages and a fixed time of inference.

    python benchmarks/stand_ins.py simulator '{"steps": 1000}' --ros-args ..
    python benchmarks/stand_ins.py policy '{"inference_ms": 10}' --ros-args ..

What is measured with them is the middleware and the nodes, not a model. `source` sends chunks
without looking, `all` is the whole graph in one process, and `load` runs the package's own
policy; in a policy, a file called `stall` or `nan` in `faults` makes each step late, or its
actions NaN, for as long as it lies there.
"""

import json
import math
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from vla_cache_ros.core.layout import CameraSpan, TokenLayout
from vla_cache_ros.core.types import ActionChunk, Observation

CHUNK = 8
CHUNKS_HZ = 10.0
STALL_S = 0.2


@dataclass(frozen=True)
class StandIn:
    """What the stand-ins agree on.

    Attributes:
        cameras: Their names.
        height_px: Of each image.
        width_px: Of each image.
        inference_ms: Time that the policy takes.
        steps: Control steps of an episode; 0: as many as its init_state says.
        chunk: Actions of a chunk.
        motion: What the policy commands along x.
        faults: Folder of the files that break the policy; empty: never.
    """

    cameras: tuple[str, ...] = ('agentview', 'wrist')
    height_px: int = 128
    width_px: int = 128
    inference_ms: float = 10.0
    steps: int = 0
    chunk: int = CHUNK
    motion: float = 0.0
    faults: str = ''


class StandInEnv:
    """Cameras of random pixels and an arm at rest."""

    instruction = 'stand in for a simulator'

    def __init__(self, settings: StandIn) -> None:
        """Draw the images once."""
        shape = (len(settings.cameras), settings.height_px, settings.width_px, 3)
        images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
        self._settings = settings
        self._arm = {
            'ee_position_m': np.zeros(3, np.float32),
            'ee_quaternion_xyzw': np.array([0, 0, 0, 1], np.float32),
            'gripper_position_m': np.zeros(2, np.float32),
            'joint_position_rad': np.zeros(7, np.float32),
        }
        self._observation = dict(zip(settings.cameras, images, strict=True)) | self._arm
        self._steps_left = 0
        self.unwrapped = self.scene = self

    def reset(self, *, seed: int | None = None, options: dict[str, Any]) -> tuple[Any, Any]:
        """Begin an episode of `steps` control steps."""
        self._steps_left = self._settings.steps or options['init_state']
        return self._observation, {}

    def advance(self, action: np.ndarray) -> tuple[float, bool, bool, dict[str, Any]]:
        """Count down."""
        self._steps_left -= 1
        return 0.0, False, self._steps_left == 0, {}

    def observe(self) -> dict[str, np.ndarray]:
        """Images and arm."""
        return self._observation

    def proprioception(self) -> dict[str, np.ndarray]:
        """Arm alone."""
        return self._arm

    def close(self) -> None:
        """Nothing to free."""


class StandInPolicy:
    """Sleeps, then moves along x."""

    def __init__(self, settings: StandIn) -> None:
        """Take the time that a step shall last."""
        self._settings = settings
        self.chunk_size = settings.chunk
        self.camera_names = settings.cameras
        self.image_size_px = settings.height_px
        spans = (CameraSpan(name, slot, 1, 1) for slot, name in enumerate(settings.cameras))
        count = len(settings.cameras)
        self.layout = TokenLayout(tuple(spans), (count, count), (count, count), count)

    def reset(self, reason: str = 'reset') -> None:
        """Nothing to forget."""

    def act(self, observation: Observation) -> ActionChunk:
        """Sleep and answer."""
        time.sleep(self._settings.inference_ms / 1e3)
        actions = np.zeros((self.chunk_size, 7), np.float32)
        actions[:, 0] = self._settings.motion
        return ActionChunk(actions, observation.stamp_ns, instruction=observation.instruction)


class FaultyPolicy:
    """A policy that stalls, or computes NaN, while a file says so."""

    def __init__(self, policy: Any, folder: Path) -> None:
        """Wrap a policy.

        Args:
            policy: What computes.
            folder: Where the files `stall` and `nan` may lie.
        """
        self._policy = policy
        self._folder = folder

    def __getattr__(self, name: str) -> Any:
        """Everything else is the policy's own."""
        return getattr(self._policy, name)

    def act(self, observation: Observation) -> ActionChunk:
        """Answer, late or wrongly where a file lies there."""
        if (self._folder / 'stall').exists():
            time.sleep(STALL_S)
        chunk = self._policy.act(observation)
        if (self._folder / 'nan').exists():
            chunk = replace(chunk, actions=np.full_like(chunk.actions, np.nan))
        return chunk


def chunk_source(settings: StandIn, chunks_hz: float) -> Any:
    """A node under the policy's name that sends chunks by the clock alone."""
    from vla_cache_interfaces.msg import ActionChunk as ActionChunkMessage

    from vla_cache_ros.nodes import qos
    from vla_cache_ros.nodes.chunk_messages import chunk_to_message
    from vla_cache_ros.nodes.managed_node import ManagedNode
    from vla_cache_ros.nodes.parameter_tables.policy_node import PolicyParameters
    from vla_cache_ros.nodes.parameters import declare

    class ChunkSource(ManagedNode):
        def __init__(self) -> None:
            super().__init__('policy_node')
            self._settings = declare(self, PolicyParameters)
            self.supervise(self._settings)

        def allocate(self) -> None:
            rate_hz = self._settings.control_frequency_hz
            self._actions = np.zeros((math.ceil(2 * rate_hz / chunks_hz), 7), np.float32)
            self._actions[:, 0] = settings.motion
            self._chunks = self.publisher(ActionChunkMessage, 'vla/action_chunk', qos.command())
            self.timer(1 / chunks_hz, self._send)

        def _send(self) -> None:
            now_ns = self.get_clock().now().nanoseconds
            chunk = ActionChunk(self._actions, now_ns, instruction=StandInEnv.instruction)
            self._chunks.publish(chunk_to_message(chunk, self._settings.control_frequency_hz))

    return ChunkSource()


def main() -> int:
    """Run one node around a stand-in, or with `all` the whole graph in this process."""
    from vla_cache_ros.nodes.command_guard import CommandGuardNode
    from vla_cache_ros.nodes.policy_loading import load_policy
    from vla_cache_ros.nodes.policy_node import PolicyNode
    from vla_cache_ros.nodes.running import run_nodes
    from vla_cache_ros.nodes.sim_bridge import SimBridge

    kind, settings = sys.argv[1], StandIn(**json.loads(sys.argv[2]))
    settings = replace(settings, cameras=tuple(settings.cameras))

    def policy(parameters: Any) -> Any:
        made = load_policy(parameters) if kind == 'load' else StandInPolicy(settings)
        return FaultyPolicy(made, Path(settings.faults)) if settings.faults else made

    factories = {
        'simulator': lambda: SimBridge(lambda _: StandInEnv(settings)),
        'policy': lambda: PolicyNode(policy),
        'guard': CommandGuardNode,
        'source': lambda: chunk_source(settings, CHUNKS_HZ),
    }
    if kind == 'all':
        return run_nodes(*(factories[name] for name in ('guard', 'policy', 'simulator')))
    return run_nodes(factories['policy' if kind == 'load' else kind])


if __name__ == '__main__':
    sys.exit(main())
