"""The report of an evaluation: one HTML page that states the claim and shows what it rests on."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vla_cache_ros.cli.report.evaluation_charts import (
    course,
    draw_conditions,
    draw_courses,
    draw_differences,
    draw_step_times,
    draw_success,
)
from vla_cache_ros.cli.report.palette import arm_colours
from vla_cache_ros.cli.report.templates import (
    UNKNOWN,
    Chart,
    four,
    one,
    percent,
    render_template,
    two,
    video_url,
)
from vla_cache_ros.evaluation.episode import UNDISTURBED, EpisodeRow, EpisodeSpec, PolicyStep
from vla_cache_ros.evaluation.paired import pair_rows
from vla_cache_ros.evaluation.statistics import Quantiles, Rate
from vla_cache_ros.evaluation.summary import (
    ALL,
    DEFAULT_MARGIN,
    DENSE,
    ArmSummary,
    EvaluationSummary,
    points_in_words,
    summarise,
)

PAGE, CHARTS, VIDEOS = 'report.html', 'charts', 'videos'
WORST_LISTED = 10
"""Episodes in the list of divergences."""

MAX_LISTED = 200
"""Rows of the longer tables; the rest is in the database beside the page."""


@dataclass(frozen=True)
class Worst:
    """Where a cached episode's actions were furthest from the dense ones.

    Attributes:
        row: The episode.
        step: Its policy step of the greatest mean divergence.
    """

    row: EpisodeRow
    step: PolicyStep

    @property
    def mean(self) -> float:
        """The step's mean divergence."""
        return self.step.divergence.mean if self.step.divergence else 0.0


def worst_divergences(rows: Sequence[EpisodeRow], count: int) -> list[Worst]:
    """The cached episodes with the greatest divergence of one step, the greatest first."""
    found = [
        Worst(row, max(compared, key=lambda step: step.divergence.mean))  # type: ignore[union-attr]
        for row in rows
        if (compared := [step for step in row.trace if step.divergence is not None])
    ]
    return sorted(found, key=lambda worst: -worst.mean)[:count]


def video_path(folder: Path, spec: EpisodeSpec) -> Path:
    """Where an episode's video lies in a report's folder."""
    parts = (spec.suite, spec.task, f'init{spec.init_state}', spec.arm, spec.condition, spec.seed)
    return folder / VIDEOS / f'{"_".join(map(str, parts))}.mp4'


def write_evaluation_report(
    folder: Path,
    rows: Sequence[EpisodeRow],
    settings: Mapping[str, Any],
    *,
    command: str = '',
    margin: float = DEFAULT_MARGIN,
) -> Path:
    """Write the page; videos that `record_worst` left in the folder become part of it.

    Args:
        folder: Is made when missing; charts go into a folder of their own in it.
        rows: Every episode, those that the simulator failed included.
        settings: What they were run with; a mapping within makes a group.
        command: That made them.
        margin: The loss of success that non-inferiority tolerates, as a share.

    Returns:
        The page.
    """
    charts_folder = folder / CHARTS
    charts_folder.mkdir(parents=True, exist_ok=True)
    summary = summarise(rows, margin)
    main = _main_condition(summary)
    shown = [arm for arm in summary.arms if arm.condition == main]
    worst = worst_divergences(rows, WORST_LISTED)
    outcomes = {row.spec: row for row in rows}
    page = render_template(
        'evaluation.html.j2',
        summary=summary,
        suites=list(dict.fromkeys(row.spec.suite for row in rows)),
        colours=arm_colours(summary.arm_names),
        arms=shown,
        main=main,
        margin=points_in_words(margin),
        charts=[chart.embedded() for chart in _draw_charts(charts_folder, rows, summary)],
        all_steps=ALL,
        work=work_table(shown),
        worst=[_worst_entry(folder, each, outcomes) for each in worst],
        discordant=_discordant(rows, summary),
        groups=_groups(settings),
        command=command,
        limit=MAX_LISTED,
    )
    path = folder / PAGE
    path.write_text(page, encoding='utf-8')
    return path


def _main_condition(summary: EvaluationSummary) -> str:
    """The condition that the claim is about: undisturbed where that ran."""
    if UNDISTURBED in summary.conditions or not summary.conditions:
        return UNDISTURBED
    return summary.conditions[0]


def _draw_charts(
    folder: Path, rows: Sequence[EpisodeRow], summary: EvaluationSummary
) -> list[Chart]:
    """Draw what the rows hold; a chart without data is left out."""
    main = _main_condition(summary)
    judged = [row for row in rows if row.judged and row.spec.condition == main]
    by_arm = {
        arm: mine
        for arm in summary.arm_names
        if (mine := [row for row in judged if row.spec.arm == arm])
    }
    charts: list[Chart] = []

    def add(name: str, title: str, caption: str) -> Path:
        charts.append(Chart(title, caption, folder / f'{name}.png'))
        return charts[-1].path

    if judged:
        draw_success(
            add(
                'success',
                'Success by task',
                'Wilson intervals. Every arm started from the same initial states.',
            ),
            _success_groups(summary, main),
        )
    pairs = {
        pair.arm if pair.condition == main else f'{pair.arm}, {pair.condition}': pair
        for pair in summary.paired
        if pair.comparison is not None
    }
    if pairs:
        draw_differences(
            add(
                'differences',
                'Difference from the dense policy',
                'Pairs of episodes from the same initial state. An arm is non-inferior where its '
                'whole interval lies right of the margin.',
            ),
            pairs,
        )
    if len(summary.conditions) > 1:
        draw_conditions(
            add(
                'conditions',
                'Disturbed episodes',
                'Success, and the share of the vision-token work that is done, by condition.',
            ),
            summary,
        )
    times = {
        arm: steps
        for arm, mine in by_arm.items()
        if (steps := [step.step_ms for row in mine for step in row.trace])
    }
    if times:
        draw_step_times(
            add(
                'times',
                'Time of a policy step',
                'All policy steps of the judged episodes, on the machine and under the load of '
                'this run; the slowest hundredth may lie outside. Comparing with the dense chunk '
                'is in no time.',
            ),
            times,
        )
    reuse = {
        arm: line
        for arm, mine in by_arm.items()
        if (line := course(mine, lambda step: 100 * (1 - step.vision_recompute_ratio)))
        and line.mean.any()
    }
    if reuse:
        draw_courses(
            add(
                'reuse',
                'Reuse over the episode',
                'Share of the vision-token work that was saved, mean over the episodes still '
                'running and the band that holds 80 % of them. Dips are keyframes.',
            ),
            reuse,
            'vision work saved, %',
        )
    divergence = {
        arm: line
        for arm, mine in by_arm.items()
        if (line := course(mine, lambda s: s.divergence.mean if s.divergence else None))
    }
    if divergence:
        draw_courses(
            add(
                'divergence',
                'Divergence over the episode',
                'Mean absolute difference of the executed deltas from those of the dense policy '
                'on the same observation, in action units; mean and 80 % band as above.',
            ),
            divergence,
            '|cached − dense|',
        )
    return charts


def _success_groups(summary: EvaluationSummary, condition: str) -> dict[str, dict[str, Rate]]:
    """Task -> arm -> success, and all tasks together where there are several."""
    groups: dict[str, dict[str, Rate]] = {}
    for task in summary.tasks:
        if task.condition == condition:
            groups.setdefault(task.task, {})[task.arm] = task.success
    if len(groups) > 1:
        groups['all'] = {a.arm: a.success for a in summary.arms if a.condition == condition}
    return groups


def _worst_entry(
    folder: Path, worst: Worst, outcomes: Mapping[EpisodeSpec, EpisodeRow]
) -> dict[str, Any]:
    """An episode of the list, with its video where there is one."""
    video = video_path(folder, worst.row.spec)
    dense = outcomes.get(replace(worst.row.spec, arm=DENSE))
    return {
        'row': worst.row,
        'step': worst.step,
        'dense': dense.outcome if dense else '',
        'video': video_url(video, folder) if video.is_file() else '',
    }


def _discordant(rows: Sequence[EpisodeRow], summary: EvaluationSummary) -> list[dict[str, Any]]:
    """Episodes that one arm of a pair alone solved."""
    return [
        {'spec': pair.cached.spec, 'solved_by': DENSE if pair.dense.success else arm}
        for arm in summary.arm_names
        if arm != DENSE
        for pair in pair_rows(rows, arm, DENSE)
        if pair.judged and pair.dense.success != pair.cached.success
    ]


def work_table(arms: Sequence[ArmSummary]) -> list[tuple[str, list[str]]]:
    """What each arm did and how long it took: label -> a cell per arm."""
    lines: list[tuple[str, list[str]]] = []

    def add(label: str, figure: Callable[[ArmSummary], str]) -> None:
        lines.append((label, [figure(arm) for arm in arms]))

    def union(of: Callable[[ArmSummary], Iterable[str]]) -> list[str]:
        return list(dict.fromkeys(name for arm in arms for name in of(arm)))

    add('vision-token work saved', lambda arm: percent(arm.vision_work_saved, 1))
    add('token-layers recomputed', lambda arm: percent(arm.recompute_ratio, 1))
    for mode in union(lambda arm: arm.step_ms):
        label = 'policy step' if mode == ALL else f'{mode} steps'
        add(label, lambda arm, mode=mode: _times(arm.step_ms.get(mode)))
    for stage in union(lambda arm: arm.stage_ms.get(ALL, {})):
        add(
            f'stage: {stage}',
            lambda arm, stage=stage: _times(arm.stage_ms.get(ALL, {}).get(stage)),
        )
    add(
        'policy per control step, mean',
        lambda arm: two(arm.control_step_ms.mean if arm.control_step_ms else None),
    )
    add('harness per control step, median', lambda arm: two(arm.overhead_ms))
    add('control steps to success, median', lambda arm: one(arm.steps_to_success))
    add('divergence from dense, mean', lambda arm: four(arm.divergence_mean))
    add('divergence of one component, greatest', lambda arm: four(arm.divergence_max))
    add(
        'gripper commands that differ',
        lambda arm: str(arm.gripper_flips) if arm.compared_steps else UNKNOWN,
    )
    for label, of in (
        ('steps', lambda arm: arm.modes),
        ('flush', lambda arm: arm.flushes),
        ('keyframe', lambda arm: arm.keyframes),
    ):
        for name in union(of):
            add(f'{label}: {name}', lambda arm, of=of, name=name: str(of(arm).get(name, 0)))
    return lines


def _times(times: Quantiles | None) -> str:
    return f'{times.p50:.2f} / {times.p95:.2f}' if times else UNKNOWN


def _groups(settings: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Settings by group; those that are in none come first."""
    plain = {key: value for key, value in settings.items() if not isinstance(value, Mapping)}
    groups = {key: dict(value) for key, value in settings.items() if isinstance(value, Mapping)}
    return {'': plain} | groups if plain else groups
