import json
import re
from html.parser import HTMLParser

import av
import numpy as np
import pytest
from cli_fakes import LAYOUT, FakeEnv, FakePolicy, random_plan

from vla_cache_ros.cli.recording import RecordingPolicy
from vla_cache_ros.cli.report.overlay import draw_overlay, patch_grids, reused_by_group
from vla_cache_ros.cli.report.page import METRICS, PAGE, VIDEO, write_report
from vla_cache_ros.cli.report.palette import STATUS_COLOURS, STATUS_LABELS, rgb
from vla_cache_ros.cli.report.result import (
    DemoEpisode,
    DemoPair,
    DemoResult,
    GraphFigures,
    compute_metrics,
)
from vla_cache_ros.core.plan import PatchStatus
from vla_cache_ros.evaluation.episode import EpisodeSpec
from vla_cache_ros.evaluation.rollout import run_episode


def play(cache: str, init_state: int, outcome: str = '') -> DemoEpisode:
    recorder = RecordingPolicy(FakePolicy(cache))
    spec = EpisodeSpec('libero_object', 0, init_state, cache)
    row = run_episode(FakeEnv('libero_object', 0, 32), recorder, spec)
    latencies = tuple(frame.chunk.report.total_ms + 2.0 for frame in recorder.frames)
    return DemoEpisode(
        spec,
        outcome or row.outcome,
        row.steps,
        wall_s=1.0,
        frames=tuple(recorder.frames),
        graph=GraphFigures(latencies, (2.0,) * len(latencies), (0.5,), 5.0, 20.0, {'drops': 1}),
    )


def make_result(*pairs: DemoPair) -> DemoResult:
    about = {'machine': {'cpu': 'a <fast> one'}, 'versions': {}, 'config': {}}
    return DemoResult('libero_object/0', 'pick up the <cube>', 'safe', LAYOUT, pairs, about)


@pytest.fixture(scope='module')
def result():
    return make_result(*(DemoPair(play('off', i), play('safe', i)) for i in range(2)))


def test_every_status_has_a_colour_and_a_label():
    assert set(STATUS_COLOURS) == set(STATUS_LABELS) == set(PatchStatus)
    assert len(set(STATUS_COLOURS.values())) == len(PatchStatus)


def test_overlay_tints_each_patch_towards_its_colour():
    status = np.arange(4, dtype=np.uint8).reshape(2, 2)
    image = np.full((64, 64, 3), 128, np.uint8)
    drawn = draw_overlay(image, status, np.ones((2, 2), np.int32)).astype(float)
    for row in range(2):
        for col in range(2):
            inside = drawn[32 * row + 16, 32 * col + 16] - 128
            towards = np.array(rgb(STATUS_COLOURS[PatchStatus(status[row, col])])) - 128.0
            assert inside @ towards > 0


def test_older_reused_patches_are_tinted_more_strongly():
    image = np.full((64, 64, 3), 200, np.uint8)
    status = np.full((1, 4), PatchStatus.REUSED, np.uint8)
    drawn = draw_overlay(image, status, np.array([[1, 3, 8, 20]], np.int32)).astype(int)
    change = [int(np.abs(drawn[32, 16 * i + 8] - 200).sum()) for i in range(4)]
    assert change[0] < change[1] < change[2] == change[3]


def test_grids_and_groups_agree_with_the_plan():
    plan = random_plan(np.random.default_rng(0), dense=False)
    grids = patch_grids(plan, LAYOUT)
    assert list(grids) == ['agentview', 'wrist']
    assert np.array_equal(np.concatenate([s.ravel() for s, _ in grids.values()]), plan.status)
    shares = reused_by_group(plan, LAYOUT)
    assert shares == [
        (LAYOUT.num_tokens - len(slots)) / LAYOUT.num_vision for slots in plan.recompute
    ]
    assert reused_by_group(random_plan(np.random.default_rng(0), dense=True), LAYOUT) == [0] * 3


def test_metrics_tell_the_ratios_apart(result):
    metrics = compute_metrics(result)
    # FakePolicy: stages 1..6 ms dense, half of that cached; the first cached step is a keyframe.
    assert metrics['arms']['dense']['step_ms']['p50'] == 21.0
    assert metrics['arms']['cached']['step_ms']['p50'] == 10.5
    assert metrics['speed_up']['policy_step'] == 2.0
    assert metrics['speed_up']['image_to_command'] == pytest.approx(23.0 / 12.5)
    assert metrics['speed_up']['whole_loop'] == 1.0
    assert metrics['arms']['cached']['not_inference_ms']['p99'] == 2.0
    assert metrics['success']['paired']['both'] == 1
    assert metrics['success']['paired']['neither'] == 1
    assert [row['outcome'] for row in metrics['episodes']] == ['failure'] * 2 + ['success'] * 2
    json.dumps(metrics)


def test_a_simulators_failure_counts_for_neither_arm(result):
    broken = DemoPair(play('off', 1), play('safe', 1, outcome='simulator_error'))
    metrics = compute_metrics(make_result(*result.pairs, broken))
    assert metrics['success']['simulator_errors'] == 1
    assert metrics['success']['paired']['both'] == 1
    assert metrics['arms']['cached']['success']['trials'] == 2


class Links(HTMLParser):
    """Collects what the page loads, and checks that its tags nest."""

    VOID = ('meta', 'img', 'source', 'br')

    def __init__(self) -> None:
        super().__init__()
        self.sources, self.open = [], []

    def handle_starttag(self, tag, attrs):
        self.sources += [value for name, value in attrs if name in ('src', 'srcset', 'href')]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_report_folder_holds_page_video_charts_and_metrics(tmp_path, result):
    write_report(tmp_path, result)
    page = (tmp_path / PAGE).read_text()
    links = Links()
    links.feed(page)
    assert links.open == []
    assert len(links.sources) == 7  # the video and three charts in two themes
    assert all(source.startswith('data:') for source in links.sources)
    assert 'pick up the &lt;cube&gt;' in page
    assert '<cube>' not in page
    assert 'name="viewport"' in page
    assert 'prefers-color-scheme: dark' in page
    assert not re.search(r'https?://', page)
    metrics = json.loads((tmp_path / METRICS).read_text())
    assert metrics['instruction'] == 'pick up the <cube>'
    with av.open(str(tmp_path / VIDEO)) as video:
        stream = video.streams.video[0]
        assert stream.codec_context.name == 'h264'
        assert stream.codec_context.pix_fmt == 'yuv420p'
        frames = sum(1 for _ in video.decode(stream))
    shown = result.best_pair()
    assert frames == max(len(shown.dense.frames), len(shown.cached.frames)) + 20


def test_report_of_a_simulator_that_never_started(tmp_path):
    def nothing(cache):
        spec = EpisodeSpec('libero_object', 0, 0, cache)
        return DemoEpisode(spec, 'simulator_error', 0, 0.0, (), note='no EGL')

    metrics = write_report(tmp_path, make_result(DemoPair(nothing('off'), nothing('safe'))))
    assert metrics['speed_up']['policy_step'] is None
    assert 'simulator_error' in (tmp_path / PAGE).read_text()
    assert not (tmp_path / VIDEO).exists()
