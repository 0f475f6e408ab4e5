"""What a policy saw and did, step by step: for the report's pictures and for replays."""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vla_cache_ros.cli import environments
from vla_cache_ros.core.errors import ConfigError
from vla_cache_ros.core.json_text import need, parse_object
from vla_cache_ros.core.layout import TokenLayout
from vla_cache_ros.core.protocols import Policy
from vla_cache_ros.core.types import ActionChunk, Observation, Proprioception
from vla_cache_ros.evaluation.environment import EnvironmentFactory
from vla_cache_ros.evaluation.episode import EpisodeSpec
from vla_cache_ros.evaluation.rollout import run_episode

FORMAT = 'vla_cache_ros frames 1'


@dataclass(frozen=True)
class Frame:
    """One policy step: what it saw and what came of it."""

    observation: Observation
    chunk: ActionChunk

    def picture(self, camera: str) -> NDArray[np.uint8]:
        """What the plan's patches are cut from."""
        frames = self.chunk.report.frames if self.chunk.report is not None else {}
        return frames.get(camera, self.observation.images[camera])


class RecordingPolicy:
    """A policy that keeps every observation and chunk of the present episode.

    Attributes:
        frames: The steps since the last reset.
    """

    def __init__(self, policy: Policy, on_frame: Callable[[Frame], None] | None = None) -> None:
        """Wrap a policy.

        Args:
            policy: Does the work.
            on_frame: Called after each step, in the policy's own thread.
        """
        self.policy = policy
        self.frames: list[Frame] = []
        self._on_frame = on_frame

    def __getattr__(self, name: str) -> Any:
        """Everything else is the wrapped policy's."""
        return getattr(self.policy, name)

    @property
    def chunk_size(self) -> int:
        """T, actions per chunk."""
        return self.policy.chunk_size

    @property
    def camera_names(self) -> tuple[str, ...]:
        """The cameras that an observation must hold."""
        return self.policy.camera_names

    @property
    def image_size_px(self) -> int:
        """Side of the camera images that the training data had."""
        return self.policy.image_size_px

    @property
    def layout(self) -> TokenLayout:
        """The model's token layout."""
        return self.policy.layout

    def reset(self, reason: str = 'reset') -> None:
        """Forget the episode and its frames."""
        self.policy.reset(reason)
        self.frames = []

    def act(self, observation: Observation) -> ActionChunk:
        """Compute a chunk and keep both; the pictures' memory may be used again, so a copy."""
        chunk = self.policy.act(observation)
        kept = chunk
        if chunk.report is not None:
            report = dataclasses.replace(chunk.report, frames=_copied(chunk.report.frames))
            kept = dataclasses.replace(chunk, report=report)
        frame = Frame(dataclasses.replace(observation, images=_copied(observation.images)), kept)
        self.frames.append(frame)
        if self._on_frame is not None:
            self._on_frame(frame)
        return chunk


def _copied(images: Mapping[str, NDArray[np.uint8]]) -> dict[str, NDArray[np.uint8]]:
    return {name: np.array(image) for name, image in images.items()}


def record_episode(
    policy: Policy,
    spec: EpisodeSpec,
    folder: Path,
    image_size_px: int | None = None,
    make_env: EnvironmentFactory = environments.make_env,
) -> Path:
    """Play one episode and keep what the policy saw.

    Args:
        policy: Drives.
        spec: The episode; its arm should be the policy's.
        folder: Where the file goes; its name tells the episode.
        image_size_px: Side of the rendered images; None: what the policy sees. Other sizes let
            models of a finer input replay the frames.
        make_env: Builds the simulator.

    Returns:
        The file, as `load_observations` reads it.
    """
    size = image_size_px or policy.image_size_px
    env = make_env(spec.suite, spec.task, size)
    recorder = RecordingPolicy(policy)
    try:
        row = run_episode(env, recorder, spec)
    finally:
        env.close()
    path = recording_path(folder, spec, size)
    arm = 'dense policy' if spec.arm == 'off' else f'policy with {spec.arm}'
    about = f'{spec.suite}/{spec.task}, initial state {spec.init_state}, {arm} ({row.outcome})'
    save_observations(path, [frame.observation for frame in recorder.frames], about)
    return path


def recording_path(folder: Path, spec: EpisodeSpec, image_size_px: int) -> Path:
    """Where `record_episode` puts an episode."""
    return folder / f'frames_{spec.suite}_{spec.task}_{spec.init_state}_{image_size_px}px.npz'


def save_observations(path: Path, observations: Sequence[Observation], about: str = '') -> None:
    """Write observations without loss: a video codec's noise would pass for motion.

    Args:
        path: An .npz file.
        observations: Of one episode, in order.
        about: Where they come from, in words.
    """
    if not observations:
        raise ConfigError('there are no observations to save.')
    cameras = list(observations[0].images)
    head = {
        'format': FORMAT,
        'about': about,
        'cameras': cameras,
        'instruction': observations[0].instruction,
    }
    arrays: dict[str, NDArray[Any]] = {
        'head': np.array(json.dumps(head)),
        'proprioception': np.stack([_pack(item.proprioception) for item in observations]),
        'stamp_ns': np.array([item.stamp_ns for item in observations], dtype=np.int64),
        **{
            f'image_{camera}': np.stack([item.images[camera] for item in observations])
            for camera in cameras
        },
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix('.partial.npz')
    np.savez_compressed(partial, **arrays)  # type: ignore[arg-type]  # numpy's stub wants bools
    partial.replace(path)


def load_observations(path: Path) -> tuple[list[Observation], str]:
    """Read what `save_observations` wrote.

    Returns:
        The observations and where they come from.

    Raises:
        ConfigError: The file is missing, damaged or another kind of file.
    """
    try:
        return _read_observations(path)
    except FileNotFoundError:
        raise ConfigError(
            f'{path} does not exist; record frames with `vla-cache bench`.'
        ) from None
    except Exception as error:  # zip, zlib and numpy each have errors of their own for damage
        raise ConfigError(
            f'{path} holds no recorded frames ({type(error).__name__}: {error}).'
        ) from error


def _read_observations(path: Path) -> tuple[list[Observation], str]:
    with np.load(path, allow_pickle=False) as arrays:
        head = parse_object(str(arrays['head']))
        if head.get('format') != FORMAT:
            raise ValueError(f'it is not in the format {FORMAT!r}')
        images = {camera: arrays[f'image_{camera}'] for camera in head['cameras']}
        proprioception, stamps = arrays['proprioception'], arrays['stamp_ns']
    instruction = need(head['instruction'], str, 'instruction')
    observations = [
        Observation(
            {camera: stack[index] for camera, stack in images.items()},
            Proprioception(row[:3], row[3:7], row[7:9]),
            instruction,
            int(stamp),
        )
        for index, (row, stamp) in enumerate(zip(proprioception, stamps, strict=True))
    ]
    return observations, need(head['about'], str, 'about')


def _pack(state: Proprioception) -> NDArray[np.float32]:
    return np.concatenate(
        [state.ee_position_m, state.ee_quaternion_xyzw, state.gripper_position_m]
    )
