"""The report's video: what the policy saw, dense beside cached, patches overlaid."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vla_cache_ros.cli.recording import Frame
from vla_cache_ros.cli.report.overlay import draw_overlay, patch_grids, upscale
from vla_cache_ros.cli.report.palette import DARK, STATUS_COLOURS, STATUS_LABELS
from vla_cache_ros.core.layout import TokenLayout
from vla_cache_ros.core.plan import PatchStatus

PANEL_PX = 352
MARGIN_PX = 12
FRAMES_PER_S = 10
FINAL_FRAMES = 20
"""The last picture stays for two seconds."""


@dataclass(frozen=True)
class Strip:
    """One arm's episode, as the video shows it."""

    title: str
    frames: Sequence[Frame]
    outcome: str
    overlay: bool


def compose(strips: Sequence[Strip], layout: TokenLayout, index: int) -> NDArray[np.uint8]:
    """Draw one picture: a column per arm, a row per camera, a legend below.

    Args:
        strips: The arms, left to right.
        layout: Token layout of the policy, for the patch grids.
        index: Policy step; an episode that ended before shows its last frame and its outcome.

    Returns:
        uint8 [H, W, 3], both sides even.
    """
    from PIL import Image, ImageDraw

    cameras = [camera.name for camera in layout]
    legend_rows = 2 if any(strip.overlay for strip in strips) else 0
    head, foot = 58, 26 * legend_rows + (MARGIN_PX if legend_rows else 0)
    width = len(strips) * (PANEL_PX + MARGIN_PX) + MARGIN_PX
    height = head + len(cameras) * (PANEL_PX + MARGIN_PX) + foot
    canvas = Image.new('RGB', (width + width % 2, height + height % 2), DARK.background)
    draw = ImageDraw.Draw(canvas)

    for column, strip in enumerate(strips):
        left = MARGIN_PX + column * (PANEL_PX + MARGIN_PX)
        frame = strip.frames[min(index, len(strip.frames) - 1)]
        ended = index >= len(strip.frames) - 1
        draw.text((left, 8), strip.title, fill=DARK.ink, font=font(19))
        draw.text((left, 33), caption(frame, layout), fill=DARK.muted, font=font(14))
        if ended:
            draw.text(
                (left + PANEL_PX, 8), strip.outcome, fill=DARK.ink, font=font(19), anchor='ra'
            )
        for row, camera in enumerate(cameras):
            picture = upscale(frame.picture(camera), PANEL_PX)
            if strip.overlay and frame.chunk.report is not None:
                picture = draw_overlay(
                    picture, *patch_grids(frame.chunk.report.plan, layout)[camera]
                )
            top = head + row * (PANEL_PX + MARGIN_PX)
            canvas.paste(Image.fromarray(picture), (left, top))
            draw.text(
                (left + 7, top + 5),
                camera,
                fill='#ffffff',
                font=font(14),
                stroke_width=2,
                stroke_fill='#000000',
            )
    if legend_rows:
        draw_legend(draw, height - foot, width)
    return np.asarray(canvas)


def write_video(path: Path, strips: Sequence[Strip], layout: TokenLayout) -> None:
    """Write the episode as H.264 that every browser plays."""
    steps = max(len(strip.frames) for strip in strips)
    order = [*range(steps), *[steps - 1] * FINAL_FRAMES]
    encode_h264(path, (compose(strips, layout, index) for index in order), FRAMES_PER_S)


def encode_h264(
    path: Path, pictures: Iterable[NDArray[np.uint8]], frames_per_s: int, crf: int = 23
) -> None:
    """Encode RGB pictures of one even size.

    Args:
        path: An .mp4 file.
        pictures: uint8 [H, W, 3] each.
        frames_per_s: Speed.
        crf: x264's quality, lower is better.
    """
    import av

    container = av.open(str(path), 'w', options={'movflags': 'faststart'})
    stream: Any = None
    try:
        for picture in pictures:
            if stream is None:
                stream = container.add_stream('libx264', rate=frames_per_s)
                stream.height, stream.width = picture.shape[:2]
                stream.pix_fmt = 'yuv420p'
                stream.options = {'crf': str(crf), 'preset': 'veryfast'}
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format='rgb24')
            container.mux(stream.encode(frame))
        if stream is not None:
            container.mux(stream.encode())
    finally:
        container.close()


def write_png(path: Path, picture: NDArray[np.uint8]) -> None:
    """Write one picture as PNG."""
    from PIL import Image

    Image.fromarray(picture).save(path, optimize=True)


def caption(frame: Frame, layout: TokenLayout) -> str:
    """What the policy did at a frame, in words."""
    report = frame.chunk.report
    if report is None:
        return ''
    reused = int((report.plan.status == PatchStatus.REUSED).sum())
    share = '' if report.mode == 'dense' else f'  reused {100 * reused / layout.num_vision:.0f} %'
    return f'step {report.step}  {report.mode}{share}  {report.total_ms:.0f} ms'


def draw_legend(draw: Any, top: int, width: int) -> None:
    """Swatches with labels, flowing over two rows."""
    x, y = MARGIN_PX, top + 4
    for status, label in STATUS_LABELS.items():
        length = 22 + draw.textlength(label, font=font(13)) + 18
        if x + length > width and x > MARGIN_PX:
            x, y = MARGIN_PX, y + 24
        draw.rectangle((x, y + 2, x + 14, y + 16), fill=STATUS_COLOURS[status])
        draw.text((x + 20, y), label, fill=DARK.ink, font=font(13))
        x += length


@cache
def font(size_px: int) -> Any:
    """The videos' typeface."""
    from matplotlib.font_manager import findfont
    from PIL import ImageFont

    return ImageFont.truetype(findfont('DejaVu Sans'), size_px)
