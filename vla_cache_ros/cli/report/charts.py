"""The report's charts, each in a light and a dark version; PNG through matplotlib's Agg."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vla_cache_ros.cli.report.overlay import patch_grids, reused_by_group
from vla_cache_ros.cli.report.palette import (
    ARM_COLOURS,
    DARK,
    LIGHT,
    SERIES_COLOURS,
    STAGE_COLOURS,
    STATUS_COLOURS,
    STATUS_LABELS,
    Theme,
)
from vla_cache_ros.core.layout import TokenLayout
from vla_cache_ros.core.types import StepReport

DPI = 130


def themed_path(path: Path, theme: Theme) -> Path:
    """Where a chart's version for a theme lies: 'latency.png' and 'latency-dark.png'."""
    return path if theme is LIGHT else path.with_stem(f'{path.stem}-{theme.name}')


def draw_latency(
    path: Path,
    stage_ms: Mapping[str, Mapping[str, float]],
    step_ms: Mapping[str, Sequence[float]],
) -> None:
    """Draw the stages of a policy step, stacked per arm, and the spread of the whole step.

    Args:
        path: Of the light version.
        stage_ms: Arm -> stage -> median, milliseconds.
        step_ms: Arm -> one total per policy step, milliseconds.
    """
    arms = list(stage_ms)
    stages = list(dict.fromkeys(stage for arm in arms for stage in stage_ms[arm]))
    for theme in (LIGHT, DARK):
        with themed_figure(path, theme, (7.2, 3.9), rows=2, heights=(2, 1.15)) as (
            _,
            (bars, spread),
        ):
            left = dict.fromkeys(arms, 0.0)
            for stage in stages:
                values = [stage_ms[arm].get(stage, 0.0) for arm in arms]
                bars.barh(
                    arms,
                    values,
                    left=list(left.values()),
                    height=0.6,
                    label=stage,
                    color=STAGE_COLOURS.get(stage, theme.muted),
                    edgecolor=theme.background,
                )
                for arm, value in zip(arms, values, strict=True):
                    left[arm] += value
            widest = max(left.values())
            for arm in arms:
                bars.annotate(
                    f'{left[arm]:.1f} ms',
                    (left[arm] + widest * 0.01, arm),
                    va='center',
                    color=theme.ink,
                    fontsize=9,
                )
            bars.set_xlim(0, widest * 1.14)
            bars.invert_yaxis()
            bars.set_xlabel('sum of the stage medians, ms')
            bars.legend(
                ncols=len(stages),
                loc='lower left',
                bbox_to_anchor=(0, 1.0),
                frameon=False,
                fontsize=8,
                handlelength=1.0,
                columnspacing=1.0,
                labelcolor=theme.ink,
            )
            for arm in arms:
                times = np.sort(np.asarray(step_ms[arm], dtype=np.float64))
                share = 100.0 * np.arange(1, times.size + 1) / times.size
                spread.plot(times, share, color=ARM_COLOURS.get(arm, theme.ink), label=arm)
            # A single stray step must not squeeze the rest of the picture.
            spread.set_xlim(0, 1.1 * max(float(np.percentile(step_ms[arm], 99)) for arm in arms))
            spread.set_ylim(0, 101)
            spread.set_ylabel('% of steps')
            spread.set_xlabel('a policy step takes at most, ms')
            spread.legend(frameon=False, fontsize=8, labelcolor=theme.ink, loc='upper left')


def draw_reuse(path: Path, reports: Sequence[StepReport], layout: TokenLayout) -> None:
    """Draw one cached episode: why patches were recomputed, and what each layer group reused.

    Args:
        path: Of the light version.
        reports: The episode's steps, in order.
        layout: The policy's token layout.
    """
    steps = np.arange(len(reports))
    grids = [patch_grids(report.plan, layout) for report in reports]
    groups = reports[0].plan.groups
    reused = 100.0 * np.array([reused_by_group(report.plan, layout) for report in reports]).T
    cameras = [camera.name for camera in layout]
    for theme in (LIGHT, DARK):
        heights = (*[1.3] * len(cameras), 0.35 + 0.22 * len(groups))
        rows = len(cameras) + 1
        with themed_figure(path, theme, (7.2, 1.1 + 1.55 * rows), rows=rows, heights=heights) as (
            figure,
            axes,
        ):
            for axis, camera in zip(axes, cameras, strict=False):
                status = np.stack([grid[camera][0].ravel() for grid in grids])
                shares = [100.0 * (status == kind).mean(axis=1) for kind in STATUS_COLOURS]
                axis.stackplot(
                    steps,
                    shares,
                    colors=list(STATUS_COLOURS.values()),
                    step='mid',
                    linewidth=0,
                    labels=[label.split(' (')[0] for label in STATUS_LABELS.values()],
                )
                axis.set_ylim(0, 100)
                axis.set_xlim(0, max(1, len(reports) - 1))
                axis.set_ylabel(f'{camera}\n% of patches')
            axes[0].legend(
                ncols=3,
                loc='lower left',
                bbox_to_anchor=(0, 1.0),
                frameon=False,
                fontsize=8,
                handlelength=1.0,
                labelcolor=theme.ink,
            )
            axis = axes[-1]
            image = axis.imshow(
                reused,
                aspect='auto',
                cmap='Blues' if theme is LIGHT else 'Blues_r',
                vmin=0,
                vmax=100,
                interpolation='nearest',
                extent=(0, max(1, len(reports) - 1), len(groups) - 0.5, -0.5),
            )
            axis.set_yticks(range(len(groups)), [_group_name(g.start, g.stop) for g in groups])
            axis.set_xlabel('policy step')
            axis.grid(visible=False)
            bar = figure.colorbar(image, ax=list(axes), fraction=0.025, pad=0.02, shrink=0.6)
            bar.set_label('vision tokens reused, %', color=theme.ink, fontsize=8)
            bar.ax.tick_params(colors=theme.muted, labelsize=8)
            bar.outline.set_visible(False)


def draw_steps(path: Path, step_ms: Mapping[str, Sequence[float]]) -> None:
    """Draw the time of each policy step of one episode, an arm per line."""
    for theme in (LIGHT, DARK):
        with themed_figure(path, theme, (7.2, 2.4)) as (_, (axis,)):
            for arm, times in step_ms.items():
                axis.plot(times, color=ARM_COLOURS.get(arm, theme.ink), label=arm, linewidth=1.3)
            axis.set_ylim(bottom=0)
            axis.set_xlabel('policy step')
            axis.set_ylabel('ms')
            axis.legend(
                ncols=2,
                loc='lower left',
                bbox_to_anchor=(0, 1.0),
                frameon=False,
                fontsize=8,
                labelcolor=theme.ink,
            )


def draw_engines(path: Path, step_ms: Mapping[str, Mapping[str, float]], ceiling: float) -> None:
    """Draw the time of a policy step on several engines, dense above cached.

    Args:
        path: Of the light version.
        step_ms: Engine -> arm -> median, milliseconds.
        ceiling: Work of a dense step over that of a cached one.
    """
    places = np.arange(len(step_ms))
    height = 0.38
    for theme in (LIGHT, DARK):
        size_in = (7.2, 0.9 + 0.55 * len(step_ms))
        with themed_figure(path, theme, size_in) as (_, (axis,)):
            for index, (arm, colour) in enumerate(ARM_COLOURS.items()):
                values = [arms[arm] for arms in step_ms.values()]
                axis.barh(places + (index - 0.5) * height, values, height, color=colour, label=arm)
            for place, arms in zip(places, step_ms.values(), strict=True):
                for index, arm in enumerate(ARM_COLOURS):
                    ratio = f', {arms["dense"] / arms[arm]:.2f}x' if arm == 'cached' else ''
                    axis.annotate(
                        f' {arms[arm]:.1f} ms{ratio}',
                        (arms[arm], place + (index - 0.5) * height),
                        va='center',
                        color=theme.ink,
                        fontsize=8,
                    )
            axis.set_yticks(places, list(step_ms))
            axis.tick_params(axis='y', labelcolor=theme.ink)
            axis.set_xlim(0, 1.2 * max(max(arms.values()) for arms in step_ms.values()))
            axis.invert_yaxis()
            axis.set_xlabel(f'policy step, median, ms (dense / cached by work: {ceiling:.2f})')
            axis.legend(
                ncols=2,
                loc='lower left',
                bbox_to_anchor=(0, 1.0),
                frameon=False,
                fontsize=8,
                labelcolor=theme.ink,
            )


def draw_agreement(
    path: Path,
    curves: Mapping[str, Mapping[str, Mapping[str, Any]]],
    noise: Mapping[str, Any],
) -> None:
    """Draw how far cached actions are from dense ones against the share that is reused.

    Args:
        path: Of the light version.
        curves: Sweep -> value -> 'reused' and, for translation and rotation, the 'mean' and the
            'p95_of_step_maximum' of the absolute difference. 'preset' is drawn as points.
        noise: The same figures for the dense policy under sensor noise: a yardstick.
    """
    statistics = {'mean': 'mean', 'p95_of_step_maximum': "a step's greatest, p95"}
    for theme in (LIGHT, DARK):
        with themed_figure(path, theme, (7.2, 5.0), 2, heights=(1, 1)) as (
            _,
            axes,
        ):
            for axis, (statistic, label) in zip(axes, statistics.items(), strict=True):
                for part, style in (('translation', '-'), ('rotation', '--')):
                    axis.axhline(
                        noise[part][statistic],
                        color=theme.muted,
                        linestyle=style,
                        linewidth=0.8,
                        label=f'dense, noisy sensor, {part}',
                    )
                    _plot_curves(axis, curves, part, statistic)
                axis.set_yscale('log')
                axis.tick_params(which='minor', colors=theme.muted, labelsize=8)
                axis.set_xlim(left=0)
                axis.set_ylabel(f'|cached - dense|,\n{label}')
            axes[-1].set_xlabel('token-layers reused, %')
            axes[0].legend(
                ncols=2,
                loc='lower left',
                bbox_to_anchor=(0, 1.0),
                frameon=False,
                fontsize=8,
                labelcolor=theme.ink,
            )


def _plot_curves(
    axis: Any,
    curves: Mapping[str, Mapping[str, Mapping[str, Any]]],
    part: str,
    statistic: str,
) -> None:
    """Draw one statistic of translation or rotation: a line per sweep, points for presets."""
    style, marker = {'translation': ('-', 'D'), 'rotation': ('--', '^')}[part]
    for (sweep, points), colour in zip(curves.items(), SERIES_COLOURS, strict=False):
        ordered = sorted(points.values(), key=lambda point: point['reused'])
        axis.plot(
            [100 * point['reused'] for point in ordered],
            [point[part][statistic] for point in ordered],
            linestyle='' if sweep == 'preset' else style,
            marker=marker if sweep == 'preset' else 'o',
            markersize=6 if sweep == 'preset' else 3,
            linewidth=1.3,
            color=colour,
            label=f'{sweep.replace("_", " ")}, {part}',
        )


def _group_name(start: int, stop: int) -> str:
    return f'layer {start}' if stop == start + 1 else f'layers {start}-{stop - 1}'


@contextlib.contextmanager
def themed_figure(
    path: Path,
    theme: Theme,
    size_in: tuple[float, float],
    rows: int = 1,
    heights: Sequence[float] = (1,),
) -> Iterator[tuple[Any, Any]]:
    """Give a themed figure and its axes, top to bottom, and write it to `themed_path` at the end.

    The figure is made without pyplot: that keeps global state, and a window system, out of it.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size_in, dpi=DPI, facecolor=theme.background, layout='constrained')
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, 1, squeeze=False, height_ratios=heights)[:, 0]
    for axis in axes:
        axis.set_facecolor(theme.background)
        axis.tick_params(colors=theme.muted, labelsize=8)
        axis.xaxis.label.set(color=theme.ink, size=8)
        axis.yaxis.label.set(color=theme.ink, size=8)
        axis.grid(axis='both', color=theme.grid, linewidth=0.6)
        axis.set_axisbelow(True)
        for side, spine in axis.spines.items():
            spine.set_visible(side in ('left', 'bottom'))
            spine.set_color(theme.grid)
    yield figure, axes
    figure.savefig(themed_path(path, theme), facecolor=theme.background)
