"""The chart of a replay: how far actions differ, step by step."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vla_cache_ros.cli.replay_steps import ReplayRow
from vla_cache_ros.cli.report.charts import themed_figure
from vla_cache_ros.cli.report.palette import DARK, LIGHT, SERIES_COLOURS


def draw_divergence(path: Path, rows: Sequence[ReplayRow], tolerance: float | None) -> None:
    """Draw greatest and mean difference over time, gripper flips, and the tolerance.

    Args:
        path: Of the light version.
        rows: The steps, in order.
        tolerance: Drawn as a line where there is one above 0.
    """
    seconds = np.array([row.stamp_ns - rows[0].stamp_ns for row in rows]) / 1e9
    greatest = np.array([_or_nan(row.max_difference) for row in rows])
    mean = np.array([_or_nan(row.mean_difference) for row in rows])
    flips = np.array([row.gripper_flips > 0 for row in rows])
    for theme in (LIGHT, DARK):
        with themed_figure(path, theme, (7.2, 3.0)) as (_, axes):
            axis = axes[0]
            axis.plot(seconds, greatest, color=SERIES_COLOURS[0], label='greatest of a chunk')
            axis.plot(seconds, mean, color=SERIES_COLOURS[1], label='mean of a chunk')
            if tolerance:
                axis.axhline(tolerance, color=theme.muted, linestyle='--', label='tolerance')
            if flips.any():
                axis.plot(
                    seconds[flips],
                    np.nan_to_num(greatest[flips]),
                    linestyle='',
                    marker='x',
                    color=SERIES_COLOURS[2],
                    label='gripper of another sign',
                )
            top = float(np.nanmax(greatest, initial=tolerance or 0.0))
            axis.set_ylim(0, 1.1 * top or 1.0)
            axis.set_xlabel('recorded time, s')
            axis.set_ylabel('difference of the deltas')
            axis.legend(frameon=False, fontsize=8, labelcolor=theme.ink, loc='upper right')


def _or_nan(value: float | None) -> float:
    return np.nan if value is None else value
