import numpy as np
import pytest
from cli_fakes import FakeEnv, FakePolicy

from vla_cache_ros.cli.recording import (
    RecordingPolicy,
    load_observations,
    record_episode,
    recording_path,
    save_observations,
)
from vla_cache_ros.core.errors import ConfigError
from vla_cache_ros.evaluation.episode import EpisodeSpec
from vla_cache_ros.evaluation.rollout import run_episode


@pytest.fixture
def frames():
    recorder = RecordingPolicy(FakePolicy())
    run_episode(FakeEnv('libero_object', 0, 32), recorder, EpisodeSpec('libero_object', 0, 1))
    return recorder.frames


def test_recorder_keeps_every_step_and_passes_everything_on():
    policy = FakePolicy('safe')
    seen = []
    recorder = RecordingPolicy(policy, seen.append)
    row = run_episode(
        FakeEnv('libero_object', 0, 32), recorder, EpisodeSpec('libero_object', 0, 1, 'safe')
    )
    assert recorder.execute_steps == policy.execute_steps
    assert len(recorder.frames) == len(seen) == row.summary.policy_steps == policy.step
    recorder.reset()
    assert recorder.frames == []
    assert policy.step == 0


def test_observations_come_back_bit_for_bit(tmp_path, frames):
    path = tmp_path / 'frames.npz'
    save_observations(path, [frame.observation for frame in frames], 'a test')
    loaded, about = load_observations(path)
    assert about == 'a test'
    assert len(loaded) == len(frames)
    for before, after in zip(frames, loaded, strict=True):
        assert list(after.images) == list(before.observation.images)
        for camera, image in after.images.items():
            assert np.array_equal(image, before.observation.images[camera])
        assert after.instruction == before.observation.instruction
        assert after.stamp_ns == before.observation.stamp_ns
        assert np.array_equal(
            after.proprioception.ee_quaternion_xyzw,
            before.observation.proprioception.ee_quaternion_xyzw,
        )


def test_an_episode_is_recorded_at_the_size_asked_for(tmp_path):
    spec = EpisodeSpec('libero_object', 3, 1)
    path = record_episode(FakePolicy(), spec, tmp_path, image_size_px=48, make_env=FakeEnv)
    assert path == recording_path(tmp_path, spec, 48)
    observations, about = load_observations(path)
    assert observations[0].images['wrist'].shape == (48, 48, 3)
    assert about == 'libero_object/3, initial state 1, dense policy (success)'


def test_what_is_no_recording_is_refused(tmp_path):
    with pytest.raises(ConfigError, match='does not exist'):
        load_observations(tmp_path / 'missing.npz')
    (tmp_path / 'text.npz').write_text('no archive')
    with pytest.raises(ConfigError, match='no recorded frames'):
        load_observations(tmp_path / 'text.npz')
    np.savez(tmp_path / 'other.npz', x=np.zeros(3))
    with pytest.raises(ConfigError, match='no recorded frames'):
        load_observations(tmp_path / 'other.npz')
    with pytest.raises(ConfigError, match='no observations'):
        save_observations(tmp_path / 'empty.npz', [])
