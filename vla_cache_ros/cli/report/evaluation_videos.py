"""The episodes that diverged most, played again with their frames kept, as videos.

An episode follows from its spec: the same weights, settings and seeds play it as it was. Where a
replay ends otherwise (a simulator of another version, say), its video says so.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vla_cache_ros.cli.recording import Frame, RecordingPolicy
from vla_cache_ros.cli.report.evaluation_page import video_path, worst_divergences
from vla_cache_ros.cli.report.overlay import draw_overlay, patch_grids, upscale
from vla_cache_ros.cli.report.palette import ARM_COLOURS, DARK, STATUS_COLOURS
from vla_cache_ros.cli.report.video import (
    MARGIN_PX,
    PANEL_PX,
    caption,
    draw_legend,
    encode_h264,
    font,
)
from vla_cache_ros.core.layout import TokenLayout
from vla_cache_ros.core.plan import PatchStatus
from vla_cache_ros.core.protocols import Policy
from vla_cache_ros.evaluation.arms import parse_arm
from vla_cache_ros.evaluation.episode import EpisodeRow, PolicyStep
from vla_cache_ros.evaluation.runner import EpisodeRunner, Job
from vla_cache_ros.evaluation.summary import DENSE

FRAMES_PER_S = 5
"""A refresh of four actions at 20 Hz is shown as long as it takes."""

FINAL_FRAMES = 10
"""The last picture stays for two seconds."""

_HEAD_PX, _STRIP_PX, _LEGEND_PX = 62, 96, 56
_FLIP_COLOUR = STATUS_COLOURS[PatchStatus.CHANGED]


@dataclass(frozen=True)
class Recorded:
    """An episode that was played again.

    Attributes:
        row: Of the replay, with divergences.
        frames: What the policy saw, one per policy step.
        layout: The policy's token layout.
        note: How the replay differs from the episode; empty where it does not.
    """

    row: EpisodeRow
    frames: Sequence[Frame]
    layout: TokenLayout
    note: str = ''


def record_worst(folder: Path, rows: Sequence[EpisodeRow], job: Job, count: int) -> list[Path]:
    """Play the cached episodes with the greatest divergences again and write their videos.

    Args:
        folder: The report's; the videos go where `write_evaluation_report` finds them.
        rows: Of the evaluation, with divergences.
        job: What the rows were run with.
        count: How many at most.

    Returns:
        The videos; those that the folder had already are not made again, and an episode whose
        simulator fails now has none.
    """
    paths: list[Path] = []
    worst = [each.row for each in worst_divergences(rows, count) if each.row.judged]
    recorder = _Recorder(job)
    try:
        for row in worst:
            path = video_path(folder, row.spec)
            if not path.is_file():
                recorded = recorder.play(row)
                if recorded is None:
                    continue
                path.parent.mkdir(parents=True, exist_ok=True)
                write_episode_video(path, recorded)
            paths.append(path)
    finally:
        recorder.close()
    return paths


class _Recorder:
    """Plays episodes, keeping what the cached policy sees."""

    def __init__(self, job: Job) -> None:
        self._factory = job.policy_factory
        self._recorders: dict[str, RecordingPolicy] = {}
        self._runner = EpisodeRunner(replace(job, policy_factory=self._policy, divergence=True))

    def play(self, row: EpisodeRow) -> Recorded | None:
        """Play an episode again; None where the simulator fails."""
        again = self._runner.run(row.spec)
        if not again.judged:
            return None
        recorder = self._recorders[parse_arm(row.spec.arm).preset]
        same = (again.outcome, again.steps) == (row.outcome, row.steps)
        note = '' if same else f'then: {row.outcome} after {row.steps} steps'
        return Recorded(again, recorder.frames, recorder.layout, note)

    def close(self) -> None:
        self._runner.close()

    def _policy(self, preset: str) -> Policy:
        policy = self._factory(preset)
        if preset == DENSE:
            return policy
        self._recorders[preset] = RecordingPolicy(policy)
        return self._recorders[preset]


def write_episode_video(path: Path, recorded: Recorded) -> None:
    """Write an episode as H.264: the cameras with their reuse, the divergence below."""
    steps = len(recorded.frames)
    order = [*range(steps), *[steps - 1] * FINAL_FRAMES]
    partial = path.with_suffix('.partial.mp4')
    encode_h264(partial, (compose(recorded, index) for index in order), FRAMES_PER_S)
    partial.replace(path)


def compose(recorded: Recorded, index: int) -> NDArray[np.uint8]:
    """Draw one policy step: a panel per camera, the strip of divergences, the legend.

    Args:
        recorded: The episode.
        index: The policy step.

    Returns:
        uint8 [H, W, 3], both sides even.
    """
    from PIL import Image, ImageDraw

    layout, frame, spec = recorded.layout, recorded.frames[index], recorded.row.spec
    cameras = [camera.name for camera in layout]
    # A single camera leaves the second place empty: title and legend need the width.
    width = max(2, len(cameras)) * (PANEL_PX + MARGIN_PX) + MARGIN_PX
    strip_top = _HEAD_PX + PANEL_PX + MARGIN_PX
    height = strip_top + _STRIP_PX + _LEGEND_PX
    canvas = Image.new('RGB', (width + width % 2, height + height % 2), DARK.background)
    draw = ImageDraw.Draw(canvas)

    under = '' if spec.condition == 'none' else f', {spec.condition}'
    title = f'{spec.name}, initial state {spec.init_state}, {spec.arm}{under}'
    draw.text((MARGIN_PX, 8), title, fill=DARK.ink, font=font(18))
    draw.text((MARGIN_PX, 35), caption(frame, layout), fill=DARK.muted, font=font(14))
    if index == len(recorded.frames) - 1:
        ended = recorded.row.outcome + (f' ({recorded.note})' if recorded.note else '')
        draw.text((width - MARGIN_PX, 35), ended, fill=DARK.ink, font=font(16), anchor='ra')
    grids = patch_grids(frame.chunk.report.plan, layout) if frame.chunk.report else {}
    for column, camera in enumerate(cameras):
        left = MARGIN_PX + column * (PANEL_PX + MARGIN_PX)
        picture = upscale(frame.picture(camera), PANEL_PX)
        if camera in grids:
            picture = draw_overlay(picture, *grids[camera])
        canvas.paste(Image.fromarray(picture), (left, _HEAD_PX))
        draw.text(
            (left + 7, _HEAD_PX + 5),
            camera,
            fill='#ffffff',
            font=font(14),
            stroke_width=2,
            stroke_fill='#000000',
        )
    _draw_strip(draw, recorded.row.trace, index, strip_top, width)
    draw_legend(draw, height - _LEGEND_PX + 4, width)
    return np.asarray(canvas)


def _draw_strip(draw: Any, trace: Sequence[PolicyStep], index: int, top: int, width: int) -> None:
    """A bar per policy step, its height the mean divergence; a dot where the gripper differs."""
    step = trace[index].divergence
    said = 'no divergence known'
    if step is not None:
        said = f'|cached - dense|: mean {step.mean:.4f}, greatest {step.max:.3f}'
        said += f', gripper differs in {step.gripper_flips}' if step.gripper_flips else ''
    draw.text((MARGIN_PX, top), said, fill=DARK.ink, font=font(14))
    means = [one.divergence.mean if one.divergence else 0.0 for one in trace]
    greatest = max(means)
    draw.text(
        (width - MARGIN_PX, top),
        f'greatest mean {greatest:.4f}',
        fill=DARK.muted,
        font=font(13),
        anchor='ra',
    )
    bottom, reach = top + _STRIP_PX - 10, _STRIP_PX - 42
    pitch = (width - 2 * MARGIN_PX) / len(trace)
    for place, (one, mean) in enumerate(zip(trace, means, strict=True)):
        left = MARGIN_PX + place * pitch
        right = left + max(1.0, 0.8 * pitch)
        tall = max(1.0, reach * mean / greatest) if greatest else 1.0
        colour = ARM_COLOURS['cached'] if place <= index else DARK.grid
        if place == index:
            colour = DARK.ink
        draw.rectangle((left, bottom - tall, right, bottom), fill=colour)
        if one.divergence is not None and one.divergence.gripper_flips:
            centre = (left + right) / 2
            draw.ellipse((centre - 3, bottom + 3, centre + 3, bottom + 9), fill=_FLIP_COLOUR)
    draw.line((MARGIN_PX, bottom + 1, width - MARGIN_PX, bottom + 1), fill=DARK.muted)
