"""Which patches were reused, drawn over the camera's image."""

import cv2
import numpy as np
from numpy.typing import NDArray

from vla_cache_ros.cli.report.palette import STATUS_COLOURS, rgb
from vla_cache_ros.core.layout import CameraSpan, TokenLayout
from vla_cache_ros.core.plan import PatchStatus, ReusePlan

OPACITY = {
    PatchStatus.CHANGED: 0.34,
    PatchStatus.PROTECTED: 0.50,
    PatchStatus.EXPIRED: 0.45,
    PatchStatus.REFRESHED: 0.30,
}
REUSED_OPACITY = (0.25, 0.75)
"""Opacity of a reused patch of age 1, and of the oldest one drawn apart."""

OLDEST_DRAWN_APART = 8
"""Age, in policy steps, beyond which patches look alike."""


def upscale(image: NDArray[np.uint8], size_px: int) -> NDArray[np.uint8]:
    """Resize a square camera image to a watchable size."""
    resized = cv2.resize(image, (size_px, size_px), interpolation=cv2.INTER_CUBIC)
    return np.asarray(resized, dtype=np.uint8)


def draw_overlay(
    image: NDArray[np.uint8], status: NDArray[np.uint8], age: NDArray[np.int32]
) -> NDArray[np.uint8]:
    """Tint each patch by its status, a reused one by its age too.

    Args:
        image: uint8 [H, W, 3].
        status: PatchStatus, uint8 [rows, cols].
        age: Policy steps since the patch's K/V was computed, int32 [rows, cols].

    Returns:
        uint8 [H, W, 3].
    """
    rows, cols = status.shape
    colour = np.zeros((rows, cols, 3), dtype=np.float32)
    opacity = np.zeros((rows, cols, 1), dtype=np.float32)
    for kind, text in STATUS_COLOURS.items():
        colour[status == kind] = rgb(text)
        opacity[status == kind] = OPACITY.get(kind, 0.0)
    youngest, oldest = REUSED_OPACITY
    share = np.clip((age - 1) / (OLDEST_DRAWN_APART - 1), 0.0, 1.0)[..., None]
    reused = (status == PatchStatus.REUSED)[..., None]
    opacity = np.where(reused, youngest + (oldest - youngest) * share, opacity)

    # A patch's cell, by pixel: images need not be multiples of the grid.
    height, width = image.shape[:2]
    row = np.arange(height) * rows // height
    col = np.arange(width) * cols // width
    alpha, tint = opacity[row][:, col], colour[row][:, col]
    # Grid lines: the first pixel row and column of each patch keep more of the image.
    edge = np.zeros((height, width, 1), dtype=np.float32)
    edge[np.flatnonzero(np.diff(row, prepend=-1))] = 1.0
    edge[:, np.flatnonzero(np.diff(col, prepend=-1))] = 1.0
    alpha = alpha * (1.0 - 0.5 * edge)
    return (image * (1.0 - alpha) + tint * alpha).astype(np.uint8)


def patch_grids(
    plan: ReusePlan, layout: TokenLayout
) -> dict[str, tuple[NDArray[np.uint8], NDArray[np.int32]]]:
    """Cut a plan's status and age into one grid [rows, cols] per camera."""
    first = layout.vision[0]

    def grid(values: NDArray, camera: CameraSpan) -> NDArray:
        part = values[camera.start - first : camera.stop - first]
        return part.reshape(camera.rows, camera.cols)

    return {camera.name: (grid(plan.status, camera), grid(plan.age, camera)) for camera in layout}


def reused_by_camera(plan: ReusePlan, layout: TokenLayout) -> dict[str, int]:
    """Tokens of each camera that were reused in at least one layer group."""
    return {
        name: int((status == PatchStatus.REUSED).sum())
        for name, (status, _) in patch_grids(plan, layout).items()
    }


def reused_by_group(plan: ReusePlan, layout: TokenLayout) -> list[float]:
    """Share of the vision tokens that each layer group reused."""
    start, stop = layout.vision
    shares: list[float] = []
    for slots in plan.recompute:
        ran = int(((slots >= start) & (slots < stop)).sum())
        shares.append(1.0 - ran / layout.num_vision)
    return shares
