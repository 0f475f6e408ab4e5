"""Recorded LIBERO episodes that the benchmarks replay; recorded once, then read.

python benchmarks/recorded_frames.py [--image-size-px 256]
"""

import os
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault('MUJOCO_GL', 'egl')  # read once, at the simulator's import

import torch
import tyro

from vla_cache_ros.cli.checkpoints import CheckpointPolicies, find_checkpoint
from vla_cache_ros.cli.progress import Progress
from vla_cache_ros.cli.recording import load_observations, record_episode, recording_path
from vla_cache_ros.cli.tasks import parse_indices, parse_tasks
from vla_cache_ros.core.types import Observation
from vla_cache_ros.evaluation.episode import EpisodeSpec
from vla_cache_sim.suites import EVALUATION_STATES


@dataclass(frozen=True)
class Recordings:
    """Episodes that the small VLA plays densely, and the images that are kept of them."""

    tasks: str = 'libero_object/0,libero_object/3,libero_object/5,libero_spatial/2'
    """Comma-separated tasks."""
    init_states: str = '0'
    """Official initial states per task."""
    image_size_px: int = 128
    """Side of the rendered images; the small VLA sees 128, larger models replay 256."""
    folder: Path = Path('runs/recorded_frames')
    """Folder of the recordings; what lies there is not recorded again."""


def load_or_record(recordings: Recordings) -> list[tuple[list[Observation], str]]:
    """Each episode's observations and where they come from; records what is missing."""
    episodes = [
        EpisodeSpec(name.suite, name.task, init_state)
        for name in parse_tasks(recordings.tasks)
        for init_state in parse_indices(recordings.init_states, EVALUATION_STATES)
    ]
    size = recordings.image_size_px
    paths = {spec: recording_path(recordings.folder, spec, size) for spec in episodes}
    missing = [spec for spec in episodes if not paths[spec].exists()]
    if missing:
        policy = CheckpointPolicies(find_checkpoint(None))('off')
        with Progress('recordings', total=len(missing)) as progress:
            for spec in missing:
                record_episode(policy, spec, recordings.folder, size)
                progress.advance(f'{spec.suite}/{spec.task}')
    return [load_observations(paths[spec]) for spec in episodes]


def main() -> None:
    """Record what is missing and say what there is."""
    torch.set_num_threads(1)
    for observations, about in load_or_record(tyro.cli(Recordings, description=__doc__)):
        print(f'{len(observations)} frames: {about}')


if __name__ == '__main__':
    main()
