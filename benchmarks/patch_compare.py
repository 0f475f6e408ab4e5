"""Times the patch comparison, and the whole decision around it, against its plain reference.

    python benchmarks/patch_compare.py [--repeats 300] [--json]

Medians on one core over scenes in which an object moves and a quarter of the image is noisy.
"""

import json
import os
import platform
from collections.abc import Callable
from dataclasses import dataclass, replace
from statistics import median
from time import perf_counter

os.environ.setdefault('OMP_NUM_THREADS', '1')  # read once, when numpy and torch load

import cv2
import numpy as np
import torch
import tyro
from numpy.typing import NDArray

from vla_cache_ros.core.config import preset
from vla_cache_ros.core.controller import ReuseController
from vla_cache_ros.core.layout import CameraSpan, TokenLayout
from vla_cache_ros.core.patches import PatchReference, prepare_frame

GRID = 16
NUM_LAYERS = 6
SCENES = 32


@dataclass(frozen=True)
class Options:
    """Patch comparison benchmark."""

    repeats: int = 300
    """Timed calls of each measurement."""
    json: bool = False
    """Print one JSON object instead of the table."""


def make_layout(cameras: int) -> TokenLayout:
    """Cameras of 16 x 16 patches, then 60 other tokens."""
    size = GRID * GRID
    spans = tuple(CameraSpan(f'camera_{i}', i * size, GRID, GRID) for i in range(cameras))
    stop = cameras * size
    return TokenLayout(spans, (stop, stop + 52), (stop + 52, stop + 60), stop + 60)


def make_scenes(layout: TokenLayout, image_size_px: int) -> list[dict[str, NDArray[np.uint8]]]:
    """A still background, a square that moves over it, and noise of one level in a quarter."""
    rng = np.random.default_rng(0)
    shape = (image_size_px, image_size_px, 3)
    backgrounds = {camera.name: rng.integers(40, 216, shape) for camera in layout}
    side, half = image_size_px // 4, image_size_px // 2
    scenes: list[dict[str, NDArray[np.uint8]]] = []
    for step in range(SCENES):
        scene: dict[str, NDArray[np.uint8]] = {}
        for name, background in backgrounds.items():
            image = background.copy()
            image[half:, half:] += rng.integers(-1, 2, (half, half, 3))
            image[side : 2 * side, step : step + side] = 20
            scene[name] = image.astype(np.uint8)
        scenes.append(scene)
    return scenes


def plain_compare(
    images: dict[str, NDArray[np.uint8]],
    reference: dict[str, NDArray[np.uint8]],
    layout: TokenLayout,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Both criteria from patches cut out and flattened to float64."""
    similarity, difference = [], []
    for camera in layout:
        patch = images[camera.name].shape[0] // camera.rows
        grid = (camera.rows, patch, camera.cols, patch, 3)
        x, r = (
            source[camera.name]
            .astype(np.float64)
            .reshape(grid)
            .transpose(0, 2, 1, 3, 4)
            .reshape(camera.size, -1)
            for source in (images, reference)
        )
        norms = np.linalg.norm(x, axis=1) * np.linalg.norm(r, axis=1)
        similarity.append((x * r).sum(axis=1) / norms)
        difference.append(np.sqrt(((x - r) ** 2).mean(axis=1)) / 255)
    return np.concatenate(similarity), np.concatenate(difference)


def time_call(call: Callable[[int], object], repeats: int) -> float:
    """Median time of call(index), milliseconds, after a warm-up."""
    for index in range(SCENES):
        call(index)
    times_ms: list[float] = []
    for index in range(repeats):
        started = perf_counter()
        call(index)
        times_ms.append((perf_counter() - started) * 1e3)
    return median(times_ms)


def measure_compare(image_size_px: int, repeats: int) -> dict[str, float]:
    """One camera: the fast path, its parts, and the plain reference; milliseconds."""
    layout = make_layout(cameras=1)
    scenes = make_scenes(layout, image_size_px)
    frames = [prepare_frame(scene, layout) for scene in scenes]
    reference = PatchReference(frames[0], layout)
    half = np.arange(layout.num_vision) % 2 == 0

    fast = reference.compare(frames[1])
    plain = plain_compare(scenes[1], scenes[0], layout)
    error = max(
        float(np.abs(fast.similarity - plain[0]).max()),
        float(np.abs(fast.difference - plain[1]).max()),
    )
    prepare_ms = time_call(lambda i: prepare_frame(scenes[i % SCENES], layout), repeats)
    compare_ms = time_call(lambda i: reference.compare(frames[i % SCENES]), repeats)
    plain_ms = time_call(lambda i: plain_compare(scenes[i % SCENES], scenes[0], layout), repeats)
    update_ms = time_call(lambda i: reference.update(frames[i % SCENES], half), repeats)
    return {
        'prepare_ms': prepare_ms,
        'compare_ms': compare_ms,
        'fast_ms': prepare_ms + compare_ms,
        'plain_ms': plain_ms,
        'speedup': plain_ms / (prepare_ms + compare_ms),
        'update_ms': update_ms,
        'max_error': error,
    }


def measure_decision(name: str, image_size_px: int, repeats: int) -> dict[str, float]:
    """Two cameras: plan() and commit() of cached steps under a preset; milliseconds."""
    layout = make_layout(cameras=2)
    scenes = make_scenes(layout, image_size_px)
    config = replace(preset(name, NUM_LAYERS), auto_off=False)
    controller = ReuseController(layout, NUM_LAYERS, config)
    rng = np.random.default_rng(0)
    relevance = rng.random(layout.num_vision).astype(np.float32)
    entropy = 3 + rng.random(NUM_LAYERS)
    times: dict[str, list[float]] = {'diff_ms': [], 'selection_ms': [], 'commit_ms': []}
    ratios: list[float] = []
    for index in range(SCENES + repeats):
        step = controller.plan(scenes[index % SCENES], 'benchmark')
        commit_ms = controller.commit(step, relevance, entropy if step.wants_entropy else None)
        if index >= SCENES and step.mode == 'cached':
            times['diff_ms'].append(step.diff_ms)
            times['selection_ms'].append(step.selection_ms)
            times['commit_ms'].append(commit_ms)
            ratios.append(step.plan.recompute_ratio)
    medians = {stage: median(values) for stage, values in times.items()}
    return {
        **medians,
        'total_ms': sum(medians.values()),
        'recompute_ratio': sum(ratios) / len(ratios),
    }


def print_table(title: str, rows: dict[str, dict[str, float]]) -> None:
    """Print one row per key, one column per figure."""
    columns = list(next(iter(rows.values())))
    width = max(len(name) for name in rows)
    print(title)
    print(' ' * width + ''.join(f'{column:>16}' for column in columns))
    for name, row in rows.items():
        figures = (f'{row[c]:.1e}' if c == 'max_error' else f'{row[c]:.3f}' for c in columns)
        print(f'{name:<{width}}' + ''.join(f'{figure:>16}' for figure in figures))


def main() -> None:
    """Measure and report."""
    options = tyro.cli(Options)
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    compare = {f'{px} px': measure_compare(px, options.repeats) for px in (128, 224)}
    decision = {
        f'{name} {px} px': measure_decision(name, px, options.repeats)
        for name in ('safe', 'paper')
        for px in (128, 224)
    }
    if options.json:
        machine = {'processor': platform.processor() or platform.machine(), 'threads': 1}
        print(json.dumps({'machine': machine, 'compare': compare, 'decision': decision}, indent=2))
        return
    print_table('Patch comparison, one camera of 16 x 16 patches, both criteria', compare)
    print()
    print_table('Decision per cached step, two cameras', decision)


if __name__ == '__main__':
    main()
