import re
from dataclasses import dataclass, replace

import av
import cv2
import numpy as np
import pytest
from cli_fakes import FakeEnvs, FakePolicies, FakePolicy

from tests.evaluation.synthetic_rows import make_row, make_rows
from vla_cache_ros.cli.report.evaluation_charts import course, draw_success_against_time
from vla_cache_ros.cli.report.evaluation_page import (
    PAGE,
    video_path,
    worst_divergences,
    write_evaluation_report,
)
from vla_cache_ros.cli.report.evaluation_videos import FINAL_FRAMES, record_worst
from vla_cache_ros.evaluation.episode import EpisodeSpec
from vla_cache_ros.evaluation.runner import EpisodeRunner, Job
from vla_cache_ros.evaluation.statistics import wilson_rate
from vla_cache_ros.evaluation.summary import Interval, summarise

SETTINGS = {'policy': 'small', 'unnorm_key': '', 'machine': {'cpu': 'a processor'}}


def test_page_states_the_claim_first_and_needs_nothing_beside_it(tmp_path):
    rows = make_rows(arms=('off', 'safe', 'paper'), tasks=2, init_states=12)
    page = write_evaluation_report(
        tmp_path, rows, SETTINGS, command='vla-cache eval libero_object --out x', margin=0.05
    )
    assert page == tmp_path / PAGE
    text = page.read_text(encoding='utf-8')
    for pair in summarise(rows, 0.05).paired:
        assert 0 < text.index(pair.in_words()) < text.index('<table>')
    sources = re.findall(r'(?:src|srcset|href)="([^"]*)"', text)
    assert len(sources) >= 10
    assert all(source.startswith('data:image/png;base64,') for source in sources)
    assert 'http' not in text
    assert 'prefers-color-scheme: dark' in text
    assert '@media print' in text
    assert 'vla-cache eval libero_object --out x' in text
    assert '<dt>cpu</dt><dd>a processor</dd>' in text
    assert 'unnorm_key' not in text  # an empty setting says nothing
    assert 'margin of 5 points with 80 %' in text


def test_page_lists_what_the_simulator_failed_apart(tmp_path):
    rows = make_rows(tasks=1, init_states=4)
    failed = make_row(rows[1].spec, 'simulator_error', note='silent for 120 s in <advance>')
    text = write_evaluation_report(tmp_path, [*rows[:1], failed, *rows[2:]], {}).read_text()
    after = text[text.index('Simulator failures') :]
    assert 'silent for 120 s in &lt;advance&gt;' in after


def test_page_names_the_episodes_that_one_arm_alone_solved(tmp_path):
    rows = [
        make_row(EpisodeSpec('libero_goal', 4, 9, arm), outcome)
        for arm, outcome in (('off', 'success'), ('safe', 'failure'))
    ]
    text = write_evaluation_report(tmp_path, rows, {}).read_text(encoding='utf-8')
    after = text[text.index('one arm alone solved') :]
    assert 'libero_goal/4, initial state 9' in after
    assert re.search(r'<td><span[^>]*></span>off</td></tr>', after)


@pytest.mark.parametrize(
    'rows',
    [
        [],
        [make_row(EpisodeSpec('s', 0, 0, 'safe'), 'simulator_error')],
        [make_row(EpisodeSpec('s', 0, 0, 'safe'))],
        [make_row(EpisodeSpec('s', 0, 0, 'off'), policy_steps=1)],
        make_rows(arms=('off', 'off@6'), tasks=1, init_states=3),
        make_rows(arms=('off', 'safe'), tasks=1, conditions=('noise', 'delay_10ms')),
    ],
    ids=['nothing', 'all failed', 'no dense', 'one step', 'no divergence', 'only disturbed'],
)
def test_page_of_every_kind_of_run(tmp_path, rows):
    text = write_evaluation_report(tmp_path, rows, {}).read_text(encoding='utf-8')
    assert 'How it was made' in text
    assert 'nan' not in re.sub(r'data:image/png;base64,[\w+/=]*', '', text)


def test_charts_are_drawn_for_light_and_dark_pages(tmp_path):
    write_evaluation_report(tmp_path, make_rows(conditions=('none', 'noise')), {})
    rates = {'off': wilson_rate(9, 10), 'off@6': wilson_rate(5, 10)}
    times = {'off': Interval(4.0, 3.9, 4.1), 'off@6': Interval(2.0, 1.9, 2.2)}
    draw_success_against_time(tmp_path / 'charts' / 'against_time.png', rates, times)
    names = ('success', 'differences', 'conditions', 'times', 'reuse', 'divergence')
    for name in (*names, 'against_time'):
        light, dark = (
            cv2.imread(str(tmp_path / 'charts' / f'{name}{suffix}.png'))
            for suffix in ('', '-dark')
        )
        assert light.shape == dark.shape
        assert light.mean() > 180 > 100 > dark.mean(), name


def test_a_course_is_over_the_episodes_that_are_still_running():
    rows = [make_row(EpisodeSpec('s', 0, i, 'safe'), policy_steps=4 + i) for i in range(4)]
    line = course(rows, lambda step: float(step.control_step or 0))
    assert line is not None
    assert line.steps.tolist() == [0, 4, 8, 12, 16]  # at 20 only two still run
    assert line.mean.tolist() == line.low.tolist() == line.high.tolist() == line.steps.tolist()
    assert course(rows, lambda step: None) is None


def test_worst_divergences_are_those_of_one_step():
    rows = make_rows(arms=('off', 'safe'), tasks=1, init_states=6)
    worst = worst_divergences(rows, 3)
    means = [
        max(step.divergence.mean for step in row.trace if step.divergence)
        for row in rows
        if row.spec.arm == 'safe'
    ]
    assert [each.mean for each in worst] == sorted(means, reverse=True)[:3]
    assert worst_divergences(rows, 0) == []


@dataclass
class DriftingPolicy(FakePolicy):
    """Drifts off the dense policy, the further the longer."""

    def act(self, observation):
        chunk = super().act(observation)
        drift = 0.0 if self.cache == 'off' else 0.01 * self.step
        return replace(chunk, actions=chunk.actions + np.float32(drift))


def drifting(preset):
    return DriftingPolicy(preset)


JOB = Job(drifting, FakeEnvs())


def run(job, arms=('off', 'safe'), init_states=(1, 2, 3)):
    runner = EpisodeRunner(job)
    return [
        runner.run(EpisodeSpec('libero_object', 0, state, arm))
        for state in init_states
        for arm in arms
    ]


def test_worst_episodes_become_videos_and_part_of_the_page(tmp_path):
    rows = run(JOB)
    paths = record_worst(tmp_path, rows, JOB, 2)
    # Initial state 3 fails: it runs longest and drifts furthest.
    assert paths[0] == video_path(tmp_path, EpisodeSpec('libero_object', 0, 3, 'safe'))
    assert len(paths) == 2
    with av.open(str(paths[0])) as video:
        frames = [frame.to_ndarray(format='rgb24') for frame in video.decode(video=0)]
    assert len(frames) == len(rows[-1].trace) + FINAL_FRAMES
    assert np.abs(frames[0].astype(int) - frames[-1]).mean() > 1.0
    text = write_evaluation_report(tmp_path, rows, {}).read_text(encoding='utf-8')
    assert text.count('src="data:video/mp4;base64,') == 2


def test_videos_that_are_there_are_not_made_again(tmp_path):
    rows = run(JOB)
    (first,) = record_worst(tmp_path, rows, JOB, 1)
    before = first.stat().st_mtime_ns
    broken = Job(FakePolicies('refuses'), FakeEnvs('unbuildable'))
    assert record_worst(tmp_path, rows, broken, 1) == [first]
    assert first.stat().st_mtime_ns == before


def test_a_simulator_that_fails_now_leaves_no_video(tmp_path):
    rows = run(JOB)
    assert record_worst(tmp_path, rows, Job(drifting, FakeEnvs('broken')), 2) == []
    assert list(tmp_path.rglob('*.mp4')) == []


def test_rows_without_divergence_have_no_videos(tmp_path):
    rows = run(replace(JOB, divergence=False))
    assert all(step.divergence is None for row in rows for step in row.trace)
    assert record_worst(tmp_path, rows, JOB, 3) == []
