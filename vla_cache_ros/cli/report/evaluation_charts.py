"""Charts of an evaluation: success, differences, times, and what happens along an episode."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vla_cache_ros.cli.report.charts import themed_figure
from vla_cache_ros.cli.report.palette import DARK, LIGHT, Theme, arm_colours
from vla_cache_ros.evaluation.episode import EpisodeRow, PolicyStep
from vla_cache_ros.evaluation.statistics import Rate
from vla_cache_ros.evaluation.summary import EvaluationSummary, Interval, PairedSummary

WIDTH_IN = 7.2
_MARKERS = 'osD^vPX'
FEWEST_EPISODES = 3
"""A point along the episode is drawn while at least so many episodes are still running."""


def draw_success(path: Path, groups: Mapping[str, Mapping[str, Rate]]) -> None:
    """Draw success rates with their intervals: a row per group, a dot per arm.

    Args:
        path: Of the light version.
        groups: Group (a task, a condition) -> arm -> success.
    """
    arms = list(dict.fromkeys(arm for rates in groups.values() for arm in rates))
    colours = arm_colours(arms)
    step = 0.8 / max(2, len(arms))
    height_in = 0.75 + len(groups) * (0.14 + 0.11 * len(arms))
    for theme in (LIGHT, DARK):
        with themed_figure(path, theme, (WIDTH_IN, height_in)) as (_, (axis,)):
            for index, arm in enumerate(arms):
                found = [
                    (row, rates[arm]) for row, rates in enumerate(groups.values()) if arm in rates
                ]
                found = [(row, rate) for row, rate in found if rate.trials]
                values = np.array([100 * rate.value for _, rate in found])
                bounds = np.array([[100 * rate.low, 100 * rate.high] for _, rate in found])
                offset = (index - (len(arms) - 1) / 2) * step
                _dots(
                    axis,
                    values,
                    np.array([row + offset for row, _ in found]),
                    colours[arm],
                    arm,
                    x_bounds=bounds.reshape(-1, 2),
                )
            axis.set_yticks(range(len(groups)), list(groups))
            axis.tick_params(axis='y', labelcolor=theme.ink)
            axis.set_ylim(len(groups) - 0.45, -0.55)
            axis.set_xlim(-1, 101)
            axis.set_xlabel('success, % [95 % interval]')
            _legend(axis, theme, len(arms))


def draw_differences(path: Path, pairs: Mapping[str, PairedSummary]) -> None:
    """Draw each comparison's difference with its interval beside the margin.

    Args:
        path: Of the light version.
        pairs: Label -> a comparison that has judged pairs.
    """
    colours = arm_colours([pair.arm for pair in pairs.values()])
    for theme in (LIGHT, DARK):
        with themed_figure(path, theme, (WIDTH_IN, 0.75 + 0.32 * len(pairs))) as (_, (axis,)):
            axis.axvline(0.0, color=theme.muted, linewidth=1.0)
            for margin in {p.non_inferiority.margin for p in pairs.values() if p.non_inferiority}:
                axis.axvline(
                    -100 * margin,
                    color=theme.muted,
                    linestyle='--',
                    linewidth=1.0,
                    label=f'margin: {-100 * margin:g}',
                )
            for row, pair in enumerate(pairs.values()):
                found = pair.comparison
                assert found is not None  # the caller's promise
                _dots(
                    axis,
                    np.array([100 * found.difference]),
                    np.array([row]),
                    colours[pair.arm],
                    '',
                    x_bounds=np.array([[100 * found.low, 100 * found.high]]),
                )
            axis.set_yticks(range(len(pairs)), list(pairs))
            axis.tick_params(axis='y', labelcolor=theme.ink)
            axis.set_ylim(len(pairs) - 0.4, -0.6)
            axis.set_xlabel('success minus dense, points [95 % score interval]')
            _legend(axis, theme, 2)


def draw_step_times(path: Path, step_ms: Mapping[str, Sequence[float]]) -> None:
    """Draw the distribution of policy step times, a row per arm on one axis of time.

    Args:
        path: Of the light version.
        step_ms: Arm -> one total per policy step, milliseconds.
    """
    colours = arm_colours(list(step_ms))
    every = np.concatenate([np.asarray(times) for times in step_ms.values()])
    # A single stray step must not squeeze the rest of the picture.
    limit = 1.1 * max(float(np.percentile(times, 99)) for times in step_ms.values())
    edges = np.linspace(min(0.9 * float(every.min()), 0.98 * limit), limit, 121)
    for theme in (LIGHT, DARK):
        size_in = (WIDTH_IN, 0.5 + 0.9 * len(step_ms))
        with themed_figure(
            path, theme, size_in, rows=len(step_ms), heights=[1] * len(step_ms)
        ) as (
            _,
            axes,
        ):
            for axis, (arm, times) in zip(axes, step_ms.items(), strict=True):
                counts, _ = np.histogram(times, edges)
                axis.stairs(100 * counts / len(times), edges, fill=True, color=colours[arm])
                p50, p95 = np.percentile(times, [50, 95])
                for quantile, style in ((p50, '-'), (p95, ':')):
                    axis.axvline(quantile, color=theme.ink, linestyle=style, linewidth=1.1)
                axis.set_title(
                    f'median {p50:.1f} ms, p95 {p95:.1f} ms',
                    loc='right',
                    fontsize=8,
                    color=theme.ink,
                    pad=2,
                )
                axis.set_xlim(edges[0], edges[-1])
                axis.set_ylabel(f'{arm}\n% of steps')
                axis.tick_params(labelbottom=axis is axes[-1])
            axes[-1].set_xlabel('time of a policy step, ms (line: median, dotted: p95)')


@dataclass(frozen=True)
class Course:
    """A quantity along the episode, over the episodes that are still running.

    Attributes:
        steps: Control steps [n].
        mean: Mean over episodes [n].
        low, high: The 10th and the 90th percentile [n].
    """

    steps: NDArray[np.int64]
    mean: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]


def course(
    rows: Sequence[EpisodeRow], quantity: Callable[[PolicyStep], float | None]
) -> Course | None:
    """Gather a quantity by control step; None where too few episodes have it.

    Args:
        rows: Of one arm.
        quantity: Of a policy step; None where it has none.
    """
    found: dict[int, list[float]] = {}
    for step in (step for row in rows for step in row.trace):
        value = quantity(step)
        if value is not None and step.control_step is not None:
            found.setdefault(step.control_step, []).append(value)
    fewest = min(FEWEST_EPISODES, len(rows))
    steps = sorted(step for step, values in found.items() if len(values) >= fewest)
    if not steps:
        return None
    return Course(
        np.array(steps),
        np.array([float(np.mean(found[step])) for step in steps]),
        *np.array([np.percentile(found[step], [10, 90]) for step in steps]).T,
    )


def draw_courses(path: Path, courses: Mapping[str, Course], label: str) -> None:
    """Draw a quantity along the episode: a line and a band per arm.

    Args:
        path: Of the light version.
        courses: Arm -> its course.
        label: The quantity in words, with its unit.
    """
    colours = arm_colours(list(courses))
    for theme in (LIGHT, DARK):
        with themed_figure(path, theme, (WIDTH_IN, 2.7)) as (_, (axis,)):
            for arm, line in courses.items():
                axis.fill_between(
                    line.steps, line.low, line.high, color=colours[arm], alpha=0.18, linewidth=0
                )
                axis.plot(line.steps, line.mean, color=colours[arm], linewidth=1.5, label=arm)
            axis.set_ylim(bottom=0)
            axis.set_xlim(left=0)
            axis.set_xlabel('control step')
            axis.set_ylabel(label)
            _legend(axis, theme, len(courses))


def draw_conditions(path: Path, summary: EvaluationSummary) -> None:
    """Draw success and vision work of every arm under every condition.

    Args:
        path: Of the light version.
        summary: Of an evaluation with several conditions.
    """
    arms, conditions = summary.arm_names, summary.conditions
    colours = arm_colours(arms)
    step = 0.8 / max(2, len(arms))
    for theme in (LIGHT, DARK):
        with themed_figure(path, theme, (WIDTH_IN, 5.0), rows=2, heights=(1.25, 1)) as (
            _,
            (success, work),
        ):
            for index, arm in enumerate(arms):
                found = [
                    (place + (index - (len(arms) - 1) / 2) * step, one)
                    for place, name in enumerate(conditions)
                    if (one := summary.find(arm, name)) and one.success.trials
                ]
                places = np.array([place for place, _ in found])
                _dots(
                    success,
                    places,
                    np.array([100 * one.success.value for _, one in found]),
                    colours[arm],
                    arm,
                    y_bounds=100 * np.array([[o.success.low, o.success.high] for _, o in found]),
                )
                shares = [one.vision_recompute_ratio or 0.0 for _, one in found]
                work.bar(places, 100 * np.array(shares), 0.9 * step, color=colours[arm])
            for axis in (success, work):
                axis.set_xlim(-0.6, len(conditions) - 0.4)
                axis.set_xticks(range(len(conditions)), [''] * len(conditions))
            success.set_ylim(-2, 102)
            success.set_ylabel('success, % [95 % interval]')
            work.set_ylim(0, 105)
            work.set_ylabel('vision work done, %')
            work.set_xticks(
                range(len(conditions)), [name.replace('_', ' ') for name in conditions]
            )
            work.tick_params(axis='x', labelcolor=theme.ink, rotation=25)
            _legend(success, theme, len(arms))


def draw_success_against_time(
    path: Path, success: Mapping[str, Rate], time_ms: Mapping[str, Interval]
) -> None:
    """Draw each arm's success over the policy's time per control step, intervals on both axes.

    Args:
        path: Of the light version.
        success: Arm -> success.
        time_ms: Arm -> policy time per control step, milliseconds.
    """
    colours = arm_colours(list(success))
    lowest = min(rate.low for rate in success.values())
    times = [time_ms[arm] for arm in success]
    for theme in (LIGHT, DARK):
        with themed_figure(path, theme, (WIDTH_IN, 4.2)) as (_, (axis,)):
            for (arm, rate), time, marker in zip(
                success.items(), times, itertools.cycle(_MARKERS), strict=False
            ):
                _dots(
                    axis,
                    np.array([time.mean]),
                    np.array([100 * rate.value]),
                    colours[arm],
                    arm,
                    x_bounds=np.array([[time.low, time.high]]),
                    y_bounds=100 * np.array([[rate.low, rate.high]]),
                    marker=marker,
                )
            axis.set_xlim(
                0.85 * min(time.low for time in times), 1.04 * max(time.high for time in times)
            )
            axis.set_ylim(max(-2, 100 * lowest - 4), 102)
            axis.set_xlabel('policy time per control step, ms [95 % interval]')
            axis.set_ylabel('success, % [95 % interval]')
            _legend(axis, theme, len(success))


def _dots(
    axis: Any,
    x: NDArray[np.float64],
    y: NDArray[np.float64],
    colour: str,
    label: str,
    x_bounds: NDArray[np.float64] | None = None,
    y_bounds: NDArray[np.float64] | None = None,
    marker: str = 'o',
) -> None:
    """Draw dots with bars from bound to bound, [n, 2] each."""

    def reach(values: NDArray[np.float64], bounds: NDArray[np.float64] | None) -> Any:
        if bounds is None:
            return None
        # Rounding must not make a bar's length negative.
        return np.maximum(0.0, np.stack([values - bounds[:, 0], bounds[:, 1] - values]))

    axis.errorbar(
        x,
        y,
        xerr=reach(x, x_bounds),
        yerr=reach(y, y_bounds),
        fmt=marker,
        color=colour,
        markersize=6,
        elinewidth=1.6,
        capsize=0,
        label=label or None,
    )


def _legend(axis: Any, theme: Theme, columns: int) -> None:
    if axis.get_legend_handles_labels()[0]:
        axis.legend(
            ncols=columns,
            loc='lower left',
            bbox_to_anchor=(0, 1.0),
            frameon=False,
            fontsize=8,
            handlelength=1.0,
            labelcolor=theme.ink,
        )
