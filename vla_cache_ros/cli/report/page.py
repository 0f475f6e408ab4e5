"""The report folder: video, charts, metrics.json and one HTML page that holds them all."""

import json
from pathlib import Path
from typing import Any

from vla_cache_ros.cli.report.charts import draw_latency, draw_reuse, draw_steps
from vla_cache_ros.cli.report.result import ARMS, DemoResult, compute_metrics
from vla_cache_ros.cli.report.templates import Chart, render_template, video_url
from vla_cache_ros.cli.report.video import Strip, compose, write_png, write_video

VIDEO, POSTER, METRICS, PAGE = 'cameras.mp4', 'demo.png', 'metrics.json', 'index.html'


def write_report(folder: Path, result: DemoResult) -> dict[str, Any]:
    """Write the report of a demo.

    Args:
        folder: Is made when missing.
        result: What the demo left behind.

    Returns:
        What metrics.json holds.
    """
    folder.mkdir(parents=True, exist_ok=True)
    metrics = compute_metrics(result)
    text = json.dumps(metrics, indent=2, allow_nan=True)
    (folder / METRICS).write_text(text + '\n', encoding='utf-8')

    shown = result.best_pair()
    has_video = bool(shown.dense.frames and shown.cached.frames)
    charts: list[Chart] = []
    if has_video:
        strips = [
            Strip('dense', shown.dense.frames, shown.dense.outcome, overlay=False),
            Strip(f'cached ({result.cache})', shown.cached.frames, shown.cached.outcome, True),
        ]
        write_video(folder / VIDEO, strips, result.layout)
        # A moment in the middle of the task says more than its first or last picture.
        middle = min(len(strip.frames) for strip in strips) // 2
        write_png(folder / POSTER, compose(strips, result.layout, middle))
        charts = _draw_charts(folder, result, metrics)
    page = _render(folder, result, metrics, charts, has_video, shown.cached.spec.init_state)
    (folder / PAGE).write_text(page, encoding='utf-8')
    return metrics


def _draw_charts(folder: Path, result: DemoResult, metrics: dict[str, Any]) -> list[Chart]:
    shown = result.best_pair()
    stages = {
        arm: {stage: q['p50'] for stage, q in metrics['arms'][arm]['stage_ms'].items()}
        for arm in ARMS
    }
    for arm in ARMS:  # what the graph adds to a policy step: transport, queueing, guard
        if (overhead := metrics['arms'][arm]['not_inference_ms']) is not None:
            stages[arm]['graph'] = max(0.0, overhead['p50'])
    totals = {
        arm: [report.total_ms for pair in result.pairs for report in pair.arm(arm).reports]
        for arm in ARMS
    }
    draw_latency(folder / 'latency.png', stages, totals)
    draw_reuse(folder / 'reuse.png', shown.cached.reports, result.layout)
    draw_steps(
        folder / 'steps.png',
        {arm: [report.total_ms for report in shown.arm(arm).reports] for arm in ARMS},
    )
    return [
        Chart(
            'Where a policy step spends its time',
            'Medians of each stage over every policy step of this run; "graph" is everything '
            'between the image stamp and the first command that is not inference. Below: how '
            'many policy steps took at most so long (the slowest hundredth may lie outside).',
            folder / 'latency.png',
        ),
        Chart(
            'What was reused, and why the rest was not',
            'The cached episode of the video. Bottom: share of vision tokens whose keys and '
            'values were kept, by group of decoder layers.',
            folder / 'reuse.png',
        ),
        Chart(
            'Time of each policy step',
            'The two episodes of the video. Peaks of the cached one are its keyframes.',
            folder / 'steps.png',
        ),
    ]


def _render(
    folder: Path,
    result: DemoResult,
    metrics: dict[str, Any],
    charts: list[Chart],
    has_video: bool,
    init_state: int,
) -> str:
    return render_template(
        'page.html.j2',
        result=result,
        metrics=metrics,
        arms=ARMS,
        init_state=init_state,
        video=video_url(folder / VIDEO, folder) if has_video else '',
        charts=[chart.embedded() for chart in charts],
    )
