"""Names, shapes and paths of LeRobot's dataset layout, version 2.1, as this project fills it.

    meta/info.json              features, totals, path templates
    meta/tasks.jsonl            task_index -> instruction
    meta/episodes.jsonl         one line per episode: length, instruction, where it came from
    meta/episodes_stats.jsonl   per episode and feature: min, max, mean, std, count
    data/chunk-000/episode_000000.parquet
    videos/chunk-000/observation.images.<camera>/episode_000000.mp4

Features whose names begin with `label.` are ours: what the expert and the simulator knew about the
frame. They teach a policy and are never its input.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vla_cache_ros.core.errors import DatasetError
from vla_cache_ros.core.json_text import need
from vla_cache_ros.dataset.video import PIXEL_FORMAT

CODEBASE_VERSION = 'v2.1'
CHUNKS_SIZE = 1000
DATA_PATH = 'data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet'
VIDEO_PATH = 'videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4'
INFO_PATH = 'meta/info.json'
TASKS_PATH = 'meta/tasks.jsonl'
EPISODES_PATH = 'meta/episodes.jsonl'
STATS_PATH = 'meta/episodes_stats.jsonl'

ACTION_NAMES = ['x', 'y', 'z', 'axis_angle_x', 'axis_angle_y', 'axis_angle_z', 'gripper']
STATE_NAMES = [
    *(f'ee_position_m_{axis}' for axis in 'xyz'),
    *(f'ee_quaternion_{axis}' for axis in 'xyzw'),
    'gripper_position_m_left',
    'gripper_position_m_right',
]
_SIZES = (
    'image_size_px',
    'control_frequency_hz',
    'control_steps_per_frame',
    'chunk_size',
    'relevance_rows',
)
_GREATEST_SIZE = 1 << 14
RELEVANCE_BITS = {'target': 1, 'goal': 2, 'gripper': 4}
"""Meaning of the bits of `label.relevance`, one byte per patch."""


@dataclass(frozen=True)
class DatasetSpec:
    """What every episode of one dataset has in common.

    Attributes:
        cameras: Camera names, in the order of `label.relevance`.
        image_size_px: Side of the square images.
        control_frequency_hz: Rate of the actions in `label.chunk`.
        control_steps_per_frame: Control steps from one stored frame to the next.
        chunk_size: T, actions in `label.chunk`.
        relevance_rows: Rows (and columns) of the patch grid of `label.relevance`.
        robot_type: LeRobot's name of the robot.
    """

    cameras: tuple[str, ...] = ('agentview', 'wrist')
    image_size_px: int = 128
    control_frequency_hz: int = 20
    control_steps_per_frame: int = 2
    chunk_size: int = 8
    relevance_rows: int = 16
    robot_type: str = 'panda'

    @property
    def fps(self) -> int:
        """Stored frames per second."""
        return self.control_frequency_hz // self.control_steps_per_frame

    @property
    def array_shapes(self) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
        """Shape of one frame and element type of every non-image feature, by feature name."""
        f32, u8, flag = np.dtype(np.float32), np.dtype(np.uint8), np.dtype(bool)
        grid = (len(self.cameras), self.relevance_rows, self.relevance_rows)
        return {
            'observation.state': ((9,), f32),
            'action': ((7,), f32),
            'action.executed': ((7,), f32),
            'label.chunk': ((self.chunk_size, 7), f32),
            'label.valid': ((self.chunk_size,), flag),
            'label.target_position_m': ((3,), f32),
            'label.goal_position_m': ((3,), f32),
            'label.relevance': (grid, u8),
            'label.policy_drives': ((1,), flag),
        }

    def features(self) -> dict[str, dict[str, Any]]:
        """The `features` of info.json."""
        size, names = (
            self.image_size_px,
            {'action': ACTION_NAMES, 'observation.state': STATE_NAMES},
        )
        video_info = {
            'video.fps': float(self.fps),
            'video.height': size,
            'video.width': size,
            'video.channels': 3,
            'video.codec': 'h264',
            'video.pix_fmt': PIXEL_FORMAT,
            'video.is_depth_map': False,
            'has_audio': False,
        }
        features: dict[str, dict[str, Any]] = {
            video_key(camera): {
                'dtype': 'video',
                'shape': [size, size, 3],
                'names': ['height', 'width', 'channels'],
                'info': video_info,
            }
            for camera in self.cameras
        }
        for name, (shape, dtype) in self.array_shapes.items():
            # Grids are stored flat: LeRobot's loaders handle vectors of any length.
            flat = [int(np.prod(shape))] if len(shape) > 2 else list(shape)
            dtype_name = 'bool' if dtype.kind == 'b' else dtype.name
            features[name] = {'dtype': dtype_name, 'shape': flat, 'names': names.get(name)}
        for name in ('timestamp', 'frame_index', 'episode_index', 'index', 'task_index'):
            dtype_name = 'float32' if name == 'timestamp' else 'int64'
            features[name] = {'dtype': dtype_name, 'shape': [1], 'names': None}
        return features

    def info(self, episodes: int, frames: int, tasks: int) -> dict[str, Any]:
        """The whole of info.json for given totals."""
        return {
            'codebase_version': CODEBASE_VERSION,
            'robot_type': self.robot_type,
            'total_episodes': episodes,
            'total_frames': frames,
            'total_tasks': tasks,
            'total_videos': episodes * len(self.cameras),
            'total_chunks': -(-episodes // CHUNKS_SIZE),
            'chunks_size': CHUNKS_SIZE,
            'fps': self.fps,
            'splits': {'train': f'0:{episodes}'},
            'data_path': DATA_PATH,
            'video_path': VIDEO_PATH,
            'features': self.features(),
            'vla_cache': asdict(self) | {'relevance_bits': RELEVANCE_BITS},
        }

    def _check(self) -> None:
        """Check the types and signs of what a file said.

        Raises:
            ValueError: One is wrong.
        """
        for camera in self.cameras:
            need(camera, str, 'a camera')
        need(self.robot_type, str, 'robot_type')
        for name in _SIZES:
            if not 0 < need(getattr(self, name), int, name) <= _GREATEST_SIZE:
                raise ValueError(f'{name} is not between 1 and {_GREATEST_SIZE}')
        if self.fps == 0:
            raise ValueError('control_steps_per_frame exceeds control_frequency_hz')

    @classmethod
    def from_info(cls, info: dict[str, Any], path: Path) -> 'DatasetSpec':
        """Read the specification back.

        Args:
            info: Content of info.json.
            path: The dataset's folder, for messages.

        Raises:
            DatasetError: Another version of the layout, or not written by this project.
        """
        version = info.get('codebase_version')
        if version != CODEBASE_VERSION:
            raise DatasetError(
                f'{path} has LeRobot layout {version!r}; valid: {CODEBASE_VERSION!r}. Convert it '
                "with LeRobot's own conversion scripts, or record anew with `vla-cache demos`."
            )
        try:
            own: dict[str, Any] = dict(info.get('vla_cache') or {})
            own.pop('relevance_bits', None)
            own['cameras'] = tuple(own['cameras'])
            spec = cls(**own)
            spec._check()
        except (KeyError, TypeError, ValueError) as error:
            raise DatasetError(
                f'{path} is a LeRobot dataset without the expert labels that training needs '
                f'(entry "vla_cache" of {INFO_PATH}: {error}); record one with `vla-cache demos`.'
            ) from error
        if spec.features() != info.get('features'):
            raise DatasetError(
                f'{path / INFO_PATH}: its features do not agree with its "vla_cache" entry; '
                'the file was edited or comes from another version. Record anew.'
            )
        return spec


def video_key(camera: str) -> str:
    """LeRobot's feature name of a camera."""
    return f'observation.images.{camera}'


def data_file(root: Path, episode_index: int) -> Path:
    """Parquet file of an episode."""
    chunk = episode_index // CHUNKS_SIZE
    return root / DATA_PATH.format(episode_chunk=chunk, episode_index=episode_index)


def video_file(root: Path, episode_index: int, camera: str) -> Path:
    """Video file of an episode and a camera."""
    return root / VIDEO_PATH.format(
        episode_chunk=episode_index // CHUNKS_SIZE,
        episode_index=episode_index,
        video_key=video_key(camera),
    )
