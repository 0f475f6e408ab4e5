"""What the conditions look like: a contact sheet, one row per condition, three moments each.

    python benchmarks/conditions_sheet.py [--task 0 --init-state 3 --image-size-px 96]

The arm follows the same fixed motion in every row. Writes docs/images/conditions.png.
"""

import os
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault('MUJOCO_GL', 'egl')  # read once, at the simulator's import

import cv2
import numpy as np
import tyro

from vla_cache_ros.cli.progress import Progress
from vla_cache_sim.conditions import CONDITIONS
from vla_cache_sim.libero import LiberoEnv, make_env

READ_STEPS = 4
CAPTION_PX = 18
GAP_PX = 2
INK = (60, 60, 60)
PAPER = 255


@dataclass(frozen=True)
class Options:
    """The contact sheet."""

    suite: str = 'libero_object'
    """Suite of the scene."""
    task: int = 0
    """Its task."""
    init_state: int = 3
    """Official initial state."""
    moments: tuple[int, ...] = (8, 40, 64)
    """Control steps that are shown, ascending."""
    image_size_px: int = 96
    """Side of each image."""
    out: Path = Path(__file__).parents[1] / 'docs/images/conditions.png'
    """What is written."""


def main() -> None:
    """Play every condition and put the images together."""
    options = tyro.cli(Options, description=__doc__)
    env = make_env(options.suite, options.task, image_size_px=options.image_size_px)
    strips = []
    with Progress('conditions', total=len(CONDITIONS)) as progress:
        for name in CONDITIONS:
            strips.append(captioned(film_strip(env, name, options), name))
            progress.advance(name)
    env.close()
    left, right = strips[: len(strips) // 2], strips[len(strips) // 2 :]
    columns = [np.concatenate(column) for column in (left, right)]
    gap = np.full((len(columns[0]), 4 * GAP_PX, 3), PAPER, np.uint8)
    sheet = np.concatenate([columns[0], gap, columns[1]], axis=1)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    # Five bits a channel: PNG cannot compress the grain of wood and of noise.
    cv2.imwrite(str(options.out), sheet[..., ::-1] & 0xF8, [cv2.IMWRITE_PNG_COMPRESSION, 9])
    print(f'{options.out}: {options.out.stat().st_size / 1024:.0f} KiB')


def film_strip(env: LiberoEnv, condition: str, options: Options) -> np.ndarray:
    """Agentview at each moment, then the wrist camera at the last: uint8 [H, W, 3]."""
    env.start(
        seed=0,
        options={
            'task': options.task,
            'init_state': options.init_state,
            'condition': condition,
        },
    )
    pictures = []
    for step in range(1, options.moments[-1] + 1):
        env.advance(motion(step))
        # A lost frame shows what was read before: a policy reads every few steps.
        if step in options.moments or (CONDITIONS[condition].dropped and step % READ_STEPS == 0):
            observation = env.observe()
        if step in options.moments:
            pictures.append(observation['agentview'])
        if step == options.moments[-1]:
            pictures.append(observation['wrist'])
    edges = np.full((options.image_size_px, GAP_PX, 3), PAPER, np.uint8)
    return np.concatenate([part for picture in pictures for part in (picture, edges)], axis=1)


def motion(step: int) -> np.ndarray:
    """A slow sweep over the objects, gripper open."""
    return np.array([0.25 * np.cos(step / 10), 0.35 * np.sin(step / 10), -0.15, 0, 0, 0, -1])


def captioned(strip: np.ndarray, text: str) -> np.ndarray:
    """The strip below its name."""
    caption = np.full((CAPTION_PX, strip.shape[1], 3), PAPER, np.uint8)
    cv2.putText(
        caption, text, (2, CAPTION_PX - 5), cv2.FONT_HERSHEY_SIMPLEX, 0.42, INK, 1, cv2.LINE_AA
    )
    return np.concatenate([caption, strip])


if __name__ == '__main__':
    main()
