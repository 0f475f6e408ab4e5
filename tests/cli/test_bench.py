import pytest
from cli_fakes import FakeEnv, FakePolicy

from vla_cache_ros.cli.bench import WARM_UP_FRAMES, summarize, time_policies
from vla_cache_ros.cli.recording import RecordingPolicy
from vla_cache_ros.core.errors import ConfigError
from vla_cache_ros.evaluation.episode import EpisodeSpec
from vla_cache_ros.evaluation.rollout import run_episode


class Timetable(FakePolicy):
    """Writes down who acted when."""

    def __init__(self, cache, calls):
        super().__init__(cache)
        self.calls = calls

    def act(self, observation):
        self.calls.append(self.cache)
        return super().act(observation)


@pytest.fixture
def observations():
    recorder = RecordingPolicy(FakePolicy())
    run_episode(FakeEnv('libero_object', 0, 32), recorder, EpisodeSpec('libero_object', 0, 0))
    return [frame.observation for frame in recorder.frames]


def test_arms_are_interleaved_in_alternating_order(observations):
    calls = []
    result = time_policies(Timetable('off', calls), Timetable('safe', calls), observations, 2)
    pairs = [tuple(calls[i : i + 2]) for i in range(0, len(calls), 2)]
    assert all(set(pair) == {'off', 'safe'} for pair in pairs)
    assert all(a != b for a, b in zip(pairs[: len(observations)], pairs[1:], strict=False))
    assert len(result.dense) == len(result.cached) == 2 * len(observations) - WARM_UP_FRAMES


def test_summary_of_known_stage_times(observations):
    summary = summarize(time_policies(FakePolicy('off'), FakePolicy('safe'), observations, 3))
    assert summary['stage_ms']['dense']['decoder'] == 5.0
    assert summary['stage_ms']['cached']['decoder'] == 2.5
    assert summary['decision_ms'] == pytest.approx(0.5 * (2.0 + 3.0))
    assert summary['modes']['keyframe'] == 2  # one per pass; the first falls to the warm-up
    assert summary['ratio_low'] <= summary['ratio'] <= summary['ratio_high']


def test_too_few_frames_are_refused(observations):
    with pytest.raises(ConfigError, match='more than 3 frames'):
        time_policies(FakePolicy(), FakePolicy('safe'), observations[:3])
