"""Times what ROS 2 adds between an image and its command, in one process.

    python benchmarks/middleware.py [--frames 400] [--json]

The real graph (simulator, policy, guard, monitor) in lockstep; simulator and policy are stand-ins
that cost nothing but their messages and a fixed inference time. 'Overhead' is the time from the
stamping of the images to the publication of the first command computed from them, without the
inference.
"""

import json
import os
import time
from dataclasses import asdict, dataclass
from typing import Any

os.environ.setdefault('ROS_AUTOMATIC_DISCOVERY_RANGE', 'LOCALHOST')  # read once, by rclpy.init

import numpy as np
import rclpy
import tyro
from rclpy.executors import Executor, SingleThreadedExecutor

from vla_cache_ros.cli.report.machine import describe_machine, describe_versions
from vla_cache_ros.core.layout import CameraSpan, TokenLayout
from vla_cache_ros.core.types import ActionChunk, Observation
from vla_cache_ros.nodes.composition import Graph
from vla_cache_ros.nodes.monitor import Monitor
from vla_cache_ros.nodes.running import make_executor

CAMERAS = ('agentview', 'wrist')
CHUNK = 8
WARM_UP_FRAMES = 20
PARTS = ('transport', 'queue', 'publish', 'overhead', 'inference', 'image_to_command')
COLUMNS = ('p50_ms', 'p95_ms', 'p99_ms', 'max_ms')
EXECUTORS = {'events executor': make_executor, 'single-threaded executor': SingleThreadedExecutor}


@dataclass(frozen=True)
class Options:
    """Middleware benchmark."""

    frames: int = 400
    """Pairs of images for each measurement."""
    inference_ms: float = 10.0
    """Time that the stand-in policy takes."""
    image_sizes_px: tuple[int, ...] = (128, 224)
    """Sides of the square images."""
    json: bool = False
    """Print one JSON object instead of the table."""


class StandInEnv:
    """Two cameras of random pixels and an arm at rest."""

    instruction = 'stand in for a simulator'

    def __init__(self, image_size_px: int) -> None:
        """Draw the images once.

        Args:
            image_size_px: Their side.
        """
        shape = (image_size_px, image_size_px, 3)
        images = np.random.default_rng(0).integers(0, 256, (len(CAMERAS), *shape), np.uint8)
        self._arm = {
            'ee_position_m': np.zeros(3, np.float32),
            'ee_quaternion_xyzw': np.array([0, 0, 0, 1], np.float32),
            'gripper_position_m': np.zeros(2, np.float32),
            'joint_position_rad': np.zeros(7, np.float32),
        }
        self._observation = dict(zip(CAMERAS, images, strict=True)) | self._arm
        self._steps_left = 0
        self.unwrapped = self.scene = self

    def reset(self, *, seed: int | None = None, options: dict[str, Any]) -> tuple[Any, Any]:
        """Begin an episode of `init_state` images."""
        self._steps_left = options['init_state']
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
    """Sleeps, then moves nothing."""

    chunk_size = CHUNK
    camera_names = CAMERAS
    layout = TokenLayout((CameraSpan('agentview', 0, 1, 1),), (1, 1), (1, 1), 1)

    def __init__(self, image_size_px: int, inference_ms: float) -> None:
        """Take the time that a step shall last."""
        self.image_size_px = image_size_px
        self._inference_s = inference_ms / 1e3

    def reset(self, reason: str = 'reset') -> None:
        """Nothing to forget."""

    def act(self, observation: Observation) -> ActionChunk:
        """Sleep and answer."""
        time.sleep(self._inference_s)
        return ActionChunk(np.zeros((CHUNK, 7), np.float32), observation.stamp_ns)


def measure(options: Options, image_size_px: int, executor: Executor) -> Monitor:
    """Play one long episode and return the monitor that watched it."""
    with Graph(
        policy_factory=lambda _: StandInPolicy(image_size_px, options.inference_ms),
        env_factory=lambda _: StandInEnv(image_size_px),
        overrides={
            'sim_bridge': {'frame_every': 1},
            'command_guard': {'pacing': 'state', 'actions_per_chunk': 1},
            'monitor': {'window': 1_000_000},
        },
        executor=executor,
    ) as graph:
        graph.run_episode(task=0, init_state=WARM_UP_FRAMES)
        graph.monitor.clear()
        graph.run_episode(task=0, init_state=options.frames)
        return graph.monitor


def main() -> None:
    """Measure each size under each executor."""
    options = tyro.cli(Options, description=__doc__)
    overhead: dict[str, dict[str, Any]] = {}
    parts: dict[str, dict[str, Any]] = {}
    for name, make in EXECUTORS.items():
        for size_px in options.image_sizes_px:
            rclpy.init()
            try:
                latency = measure(options, size_px, make()).snapshot().latency
            finally:
                rclpy.try_shutdown()
            label = f'{len(CAMERAS)} x {size_px} px, {name}'
            figures = {part: asdict(latency[part]) for part in PARTS}
            overhead[label] = {column: figures['overhead'][column] for column in COLUMNS}
            parts[label] = {f'{part}, p50': figures[part]['p50_ms'] for part in PARTS}
    result = {
        'options': asdict(options),
        'image_to_command_without_inference': overhead,
        'parts_ms': parts,
        'machine': describe_machine(),
        'versions': describe_versions(),
        'command': f'python benchmarks/middleware.py --frames {options.frames} --json',
    }
    if options.json:
        print(json.dumps(result, indent=2))
        return
    for label, figures in overhead.items():
        print(f'{label:40}', *(f'{key} {value:7.3f}' for key, value in figures.items()))


if __name__ == '__main__':
    main()
