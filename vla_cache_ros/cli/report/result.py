"""What a demo run leaves behind, and the figures that follow from it."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from vla_cache_ros.cli.recording import Frame
from vla_cache_ros.core.layout import TokenLayout
from vla_cache_ros.core.types import StepReport
from vla_cache_ros.evaluation.episode import EpisodeRow, EpisodeSpec, PolicyStep
from vla_cache_ros.evaluation.statistics import compare_pairs, quantiles, wilson_rate

ARMS = ('dense', 'cached')


@dataclass(frozen=True)
class GraphFigures:
    """What the ROS graph did during one episode.

    Attributes:
        latency_ms: Image capture -> first command, wall time, one per policy step.
        overhead_ms: The part of it that is not inference.
        publish_ms: Publishing the chunk.
        refresh_hz: Policy steps per second of wall time.
        command_hz: Commands per second of wall time.
        counts: What was dropped, missed or replaced -> how often.
    """

    latency_ms: tuple[float, ...] = ()
    overhead_ms: tuple[float, ...] = ()
    publish_ms: tuple[float, ...] = ()
    refresh_hz: float = float('nan')
    command_hz: float = float('nan')
    counts: Mapping[str, int] = field(default_factory=dict[str, int])


@dataclass(frozen=True)
class DemoEpisode:
    """One episode of the demo, played over the ROS graph."""

    spec: EpisodeSpec
    outcome: str
    steps: int
    wall_s: float
    frames: tuple[Frame, ...]
    graph: GraphFigures = GraphFigures()
    note: str = ''

    @property
    def reports(self) -> list[StepReport]:
        """The policy's reports, in order."""
        return [frame.chunk.report for frame in self.frames if frame.chunk.report is not None]

    @property
    def row(self) -> EpisodeRow:
        """The same row as an evaluation without ROS keeps."""
        return EpisodeRow(
            self.spec,
            self.outcome,
            steps=self.steps,
            wall_s=self.wall_s,
            trace=tuple(PolicyStep.of(report, control_step=None) for report in self.reports),
            note=self.note,
        )


@dataclass(frozen=True)
class DemoPair:
    """A dense and a cached episode from the same initial state."""

    dense: DemoEpisode
    cached: DemoEpisode

    def arm(self, name: str) -> DemoEpisode:
        """The episode of 'dense' or 'cached'."""
        return self.dense if name == 'dense' else self.cached

    @property
    def judged(self) -> bool:
        """Whether both episodes say something about the policy."""
        return self.dense.row.judged and self.cached.row.judged


@dataclass(frozen=True)
class DemoResult:
    """Everything that the report is made of."""

    task: str
    instruction: str
    cache: str
    layout: TokenLayout
    pairs: tuple[DemoPair, ...]
    about: Mapping[str, Any]
    """Machine, versions, weights' hash and configuration, as they go into metrics.json."""

    def best_pair(self) -> DemoPair:
        """The pair to show: one where both succeed if there is any."""
        return max(self.pairs, key=lambda pair: pair.cached.row.success + pair.dense.row.success)


def compute_metrics(result: DemoResult) -> dict[str, Any]:
    """Compute metrics.json: success, times and the honest speed-up.

    Three ratios are told apart, dense over cached: of a policy step alone, of image stamp to
    command, and of the whole loop with simulator and rendering per control step.
    """
    pairs = [pair for pair in result.pairs if pair.judged]
    episodes = {arm: [pair.arm(arm) for pair in result.pairs] for arm in ARMS}
    arms = {arm: _arm_metrics(episodes[arm]) for arm in ARMS}
    comparison = (
        asdict(
            compare_pairs(
                [p.dense.row.success for p in pairs], [p.cached.row.success for p in pairs]
            )
        )
        if pairs
        else None
    )
    return {
        'task': result.task,
        'instruction': result.instruction,
        'cache': result.cache,
        'success': {
            'pairs': len(result.pairs),
            'simulator_errors': sum(
                not pair.arm(arm).row.judged for pair in result.pairs for arm in ARMS
            ),
            'paired': comparison,
        },
        'speed_up': {
            name: _ratio(arms['dense'][key], arms['cached'][key])
            for name, key in (
                ('policy_step', 'step_ms'),
                ('image_to_command', 'latency_ms'),
                ('whole_loop', 'loop_ms'),
            )
        },
        'arms': arms,
        'episodes': [
            pair.arm(arm).row.as_dict()
            | {
                'refresh_hz': pair.arm(arm).graph.refresh_hz,
                'command_hz': pair.arm(arm).graph.command_hz,
                'graph_counts': dict(pair.arm(arm).graph.counts),
            }
            for pair in result.pairs
            for arm in ARMS
        ],
        **result.about,
    }


def _arm_metrics(episodes: Sequence[DemoEpisode]) -> dict[str, Any]:
    judged = [episode for episode in episodes if episode.row.judged]
    reports = [report for episode in judged for report in episode.reports]
    latencies = [value for episode in judged for value in episode.graph.latency_ms]
    overheads = [value for episode in judged for value in episode.graph.overhead_ms]
    publishing = [value for episode in judged for value in episode.graph.publish_ms]
    stages = list(dict.fromkeys(stage for report in reports for stage in report.stage_ms))
    rate = wilson_rate(sum(episode.row.success for episode in judged), len(judged))
    return {
        'success': asdict(rate) | {'text': str(rate)},
        'policy_steps': len(reports),
        'step_ms': _quantiles([report.total_ms for report in reports]),
        'stage_ms': {
            stage: _quantiles([r.stage_ms[stage] for r in reports if stage in r.stage_ms])
            for stage in stages
        },
        'latency_ms': _quantiles(latencies),
        'not_inference_ms': _quantiles(overheads),
        'publish_ms': _quantiles(publishing),
        'loop_ms': _quantiles(
            [1000.0 * episode.wall_s / episode.steps for episode in judged if episode.steps]
        ),
        'recompute_ratio': _mean([report.plan.recompute_ratio for report in reports]),
        'refresh_hz': _mean([episode.graph.refresh_hz for episode in judged]),
        'command_hz': _mean([episode.graph.command_hz for episode in judged]),
    }


def _quantiles(values: Sequence[float]) -> dict[str, float] | None:
    return asdict(quantiles(values)) if values else None


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _ratio(dense: Mapping[str, float] | None, cached: Mapping[str, float] | None) -> float | None:
    return dense['p50'] / cached['p50'] if dense and cached and cached['p50'] > 0 else None
