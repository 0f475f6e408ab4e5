"""The recorder, on a point robot that needs no simulator, and once on LIBERO itself."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vla_cache_ros.core.errors import ConfigError, SimulatorError
from vla_cache_ros.core.types import ActionChunk, Observation
from vla_cache_ros.dataset import DatasetSpec, DemonstrationDataset, EpisodeInfo
from vla_cache_sim.demonstrations import (
    ActionNoise,
    DaggerDriver,
    ExpertDriver,
    NoiseConfig,
    RecordingConfig,
    record_demonstrations,
    rollout_episode,
)

SPEC = DatasetSpec(image_size_px=32, relevance_rows=4)
QUIET = NoiseConfig(max_std=0.0, burst_probability=0.0)


class PointRobot:
    """Moves 2 cm per action unit towards a goal at the origin; task 2 cannot be done."""

    cameras = SPEC.cameras
    step_limit = 60

    def __init__(self, task: int = 0) -> None:
        self.task = task
        self.instruction = f'go home {task}'
        self.scene = self
        self.renders = 0

    def start(self, seed: int, options: dict[str, Any]) -> None:
        assert options['init_state'] == 'random'
        self.position = np.random.default_rng(seed).uniform(0.3, 0.5, 3)
        self.steps = 0

    def close(self) -> None:
        pass

    def advance(self, action: np.ndarray) -> tuple[float, bool, bool, dict[str, Any]]:
        self.position = self.position + 0.02 * action[:3]
        self.steps += 1
        success = bool(np.abs(self.position).max() < 0.03) and self.task != 2
        return float(success), success, self.steps >= self.step_limit, {}

    def observe(self) -> dict[str, np.ndarray]:
        self.renders += 1
        image = np.full((32, 32, 3), self.steps, dtype=np.uint8)
        return {
            'agentview': image,
            'wrist': image + 100,
            'ee_position_m': self.position.astype(np.float32),
            'ee_quaternion_xyzw': np.array([0, 0, 0, 1], dtype=np.float32),
            'gripper_position_m': np.zeros(2, dtype=np.float32),
            'joint_position_rad': np.zeros(7, dtype=np.float32),
        }

    def target_position_m(self) -> np.ndarray:
        return self.position + 1

    def goal_position_m(self) -> np.ndarray:
        return np.zeros(3)

    def relevance_masks(self, camera: str, rows: int, cols: int) -> SimpleNamespace:
        masks = np.zeros((3, rows, cols), dtype=bool)
        masks[0, 0, 0] = masks[1, :, 1] = True
        masks[2, 0, 0] = camera == 'wrist'
        return SimpleNamespace(target=masks[0], goal=masks[1], gripper=masks[2])


class PointExpert:
    def __init__(self, env: PointRobot) -> None:
        self.env = env

    def act(self) -> np.ndarray:
        action = np.zeros(7, dtype=np.float32)
        action[:3] = np.clip(-self.env.position / 0.02, -1, 1)
        action[6] = self.env.steps / 100  # a label tells its control step
        return action


class PointPolicy:
    """Always moves along +x; counts its calls."""

    chunk_size = 8

    def __init__(self) -> None:
        self.calls = 0

    def reset(self, reason: str = 'reset') -> None:
        del reason

    def act(self, observation: Observation) -> ActionChunk:
        self.calls += 1
        assert set(observation.images) == set(SPEC.cameras)
        actions = np.zeros((8, 7), dtype=np.float32)
        actions[:, 0] = 3.0  # out of limits: the driver clips
        return ActionChunk(actions, observation.stamp_ns)


def point_factory(suite: str, task: int, image_size_px: int) -> tuple[Any, Any]:
    assert (suite, image_size_px) == ('points', 32)
    return PointRobot(task), PointExpert


def crashing_factory(suite: str, task: int, image_size_px: int) -> tuple[Any, Any]:
    import os

    os._exit(1)


def roll(driver: Any, seed: int = 0) -> tuple[Any, PointRobot]:
    env = PointRobot()
    env.start(seed, {'init_state': 'random'})
    rng = np.random.default_rng(seed)
    episode = rollout_episode(env, PointExpert(env), driver, rng, SPEC, EpisodeInfo('go home'))
    return episode, env


@given(seed=st.integers(0, 1000), std=st.floats(0, 0.5))
def test_labels_are_the_experts_at_the_visited_states(seed: int, std: float) -> None:
    """Frame f shows control step 2 f; its chunk holds the labels of steps 2 f .. 2 f + 7."""
    episode, env = roll(ExpertDriver(NoiseConfig(max_std=std, burst_probability=0.1)), seed)
    episode.check(SPEC)
    steps = env.steps
    assert episode.info.control_steps == steps
    assert len(episode) == env.renders == -(-steps // 2)
    for frame in range(len(episode)):
        valid = np.arange(2 * frame, 2 * frame + 8) < steps
        np.testing.assert_array_equal(episode.label_valid[frame], valid)
        chunk_steps = episode.label_chunk[frame, valid, 6] * 100
        np.testing.assert_allclose(chunk_steps, 2 * frame + np.arange(valid.sum()))
        assert episode.images['agentview'][frame, 0, 0, 0] == 2 * frame
        assert episode.images['wrist'][frame, 0, 0, 0] == 2 * frame + 100
        expected = np.clip(-episode.state[frame, :3] / 0.02, -1, 1)
        np.testing.assert_allclose(episode.action[frame, :3], expected, atol=1e-4)
    np.testing.assert_array_equal(episode.action, episode.label_chunk[:, 0])


def test_relevance_bits_and_positions() -> None:
    episode, _ = roll(ExpertDriver(QUIET))
    first = episode.relevance[0]
    assert first[0, 0].tolist() == [1, 2, 0, 0]
    assert first[1, 0].tolist() == [5, 2, 0, 0]
    np.testing.assert_allclose(episode.target_position_m, episode.state[:, :3] + 1, atol=1e-6)


def test_without_noise_the_label_is_executed() -> None:
    episode, _ = roll(ExpertDriver(QUIET))
    np.testing.assert_array_equal(episode.executed_action, episode.action)
    assert not episode.policy_drives.any()


@given(seed=st.integers(0, 10_000))
def test_noise_stays_within_limits_and_is_reproducible(seed: int) -> None:
    config = NoiseConfig(max_std=1.0, burst_probability=0.3, slip_probability=0.5)
    label = np.array([1, -1, 0.5, 0, 0, 0, 1], dtype=np.float32)
    noises = [ActionNoise(config, np.random.default_rng(seed)) for _ in range(2)]
    runs = [np.stack([noise.apply(label) for _ in range(40)]) for noise in noises]
    np.testing.assert_array_equal(*runs)
    assert np.abs(runs[0]).max() <= 1
    assert set(np.unique(runs[0][:, 6])) <= {-1.0, 1.0}


def test_noise_is_correlated_with_the_stated_deviation() -> None:
    config = NoiseConfig(max_std=0.2, correlation=0.8, burst_probability=0.0)
    series = []
    for seed in range(3000):
        noise = ActionNoise(config, np.random.default_rng(seed))
        series.append([noise.apply(np.zeros(7, dtype=np.float32))[:3] for _ in range(8)])
    values = np.array(series)
    # E[sigma^2] of sigma uniform in [0, 0.2] is 0.2^2 / 3.
    assert values.var() == pytest.approx(0.04 / 3, rel=0.1)
    correlation = (values[:, 1:] * values[:, :-1]).mean() / values.var()
    assert correlation == pytest.approx(0.8, abs=0.05)


def test_dagger_marks_who_drives_and_the_label_stays_the_experts() -> None:
    policy = PointPolicy()
    driver = DaggerDriver(
        policy,  # type: ignore[arg-type]
        policy_stretch=(6, 12),
        expert_stretch=(6, 12),
        policy_share_of_steps=30,
        noise=QUIET,
    )
    episode, env = roll(driver, seed=3)
    by_policy = episode.policy_drives
    assert 0 < by_policy.sum() < len(episode)
    assert not by_policy[15:].any(), 'after step 30 the expert drives'
    assert (episode.executed_action[by_policy, 0] == 1).all()
    np.testing.assert_array_equal(episode.executed_action[~by_policy], episode.action[~by_policy])
    np.testing.assert_allclose(episode.action[by_policy, 0], -1)
    assert episode.info.success
    # Chunks of 4 steps begin at even control steps: no frame is rendered for the policy alone.
    assert env.renders == len(episode)
    assert policy.calls == pytest.approx(by_policy.sum() / 2, abs=4)


def test_dagger_refuses_a_replan_beyond_the_chunk() -> None:
    with pytest.raises(ConfigError, match=r'valid: 1..8'):
        DaggerDriver(PointPolicy(), replan_steps=9)  # type: ignore[arg-type]


@pytest.fixture
def config(tmp_path: Path) -> RecordingConfig:
    return RecordingConfig(
        output=tmp_path / 'demos',
        tasks=(('points', 0), ('points', 1)),
        episodes_per_task=2,
        noise=NoiseConfig(max_std=0.2),
        spec=SPEC,
    )


def test_recording_resumes_and_repeats_nothing(config: RecordingConfig) -> None:
    outcomes: list[Any] = []
    report: Callable[..., None] = lambda outcome, tallies: outcomes.append(outcome)  # noqa: E731
    record_demonstrations(
        replace(config, episodes_per_task=1), report=report, env_factory=point_factory
    )
    result = record_demonstrations(config, report=report, env_factory=point_factory)
    assert [(o.attempt.task, o.attempt.number) for o in outcomes] == [
        (0, 0),
        (1, 0),
        (0, 1),
        (1, 1),
    ]
    assert len({outcome.attempt.seed for outcome in outcomes}) == 4
    assert all(tally.stored == 2 for tally in result.tallies.values())
    dataset = DemonstrationDataset.open(config.output)
    assert len(dataset) == 4
    starts = [episode.state[0, :3].tolist() for episode in dataset.load_episodes()]
    assert len({tuple(start) for start in starts}) == 4
    again = record_demonstrations(config, report=report, env_factory=point_factory)
    assert len(outcomes) == 4
    assert not again.interrupted


def test_two_processes_record_the_same_episodes_as_one(
    config: RecordingConfig, tmp_path: Path
) -> None:
    one = replace(config, output=tmp_path / 'one')
    two = replace(config, output=tmp_path / 'two', processes=2)
    contents = []
    for variant in (one, two):
        record_demonstrations(variant, env_factory=point_factory)
        episodes = DemonstrationDataset.open(variant.output).load_episodes()
        contents.append(
            sorted((e.info.task, e.info.attempt, e.executed_action.tobytes()) for e in episodes)
        )
    assert contents[0] == contents[1]


def test_failures_are_counted_not_stored_and_the_task_is_given_up(
    config: RecordingConfig,
) -> None:
    config = replace(config, tasks=(('points', 0), ('points', 2)), max_failures=3)
    result = record_demonstrations(config, env_factory=point_factory)
    failing = result.tallies['points', 2]
    assert (failing.attempts, failing.successes, failing.stored) == (3, 0, 0)
    assert result.given_up(config) == [('points', 2)]
    assert result.tallies['points', 0].stored == 2
    kept = replace(config, tasks=(('points', 2),), keep_failures=True, source='dagger-1')
    record_demonstrations(kept, env_factory=point_factory)
    failed = DemonstrationDataset.open(config.output).select(successful=False)
    assert [entry.info.source for entry in failed] == ['dagger-1'] * 2


def test_interrupt_keeps_what_was_running(config: RecordingConfig) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    config = replace(config, processes=2)
    result = record_demonstrations(config, report=interrupt, env_factory=point_factory)
    assert result.interrupted
    assert 1 <= sum(tally.stored for tally in result.tallies.values()) <= 2
    stored = len(DemonstrationDataset.open(config.output))
    assert stored == sum(tally.stored for tally in result.tallies.values())


def test_dead_process_is_a_clear_error(config: RecordingConfig) -> None:
    with pytest.raises(SimulatorError, match='Run the same command again'):
        record_demonstrations(config, env_factory=crashing_factory)


def test_bad_configuration_is_named(tmp_path: Path) -> None:
    for fields, message in (
        ({'tasks': ()}, 'at least one'),
        ({'tasks': (('points', 0),) * 2}, 'once'),
        ({'tasks': (('points', 0),), 'processes': 0}, 'processes is 0'),
    ):
        with pytest.raises(ConfigError, match=message):
            RecordingConfig(output=tmp_path, **fields)  # type: ignore[arg-type]


def test_namespace_is_not_an_environment() -> None:
    """`rollout_episode` needs nothing beyond the documented interface."""
    allowed = {'cameras', 'instruction', 'scene', 'observe', 'advance'}
    env = PointRobot()
    env.start(0, {'init_state': 'random'})
    bare = SimpleNamespace(**{name: getattr(env, name) for name in allowed})
    episode = rollout_episode(
        bare,
        PointExpert(env),
        ExpertDriver(QUIET),
        np.random.default_rng(0),
        SPEC,
        EpisodeInfo('go home'),
    )
    assert episode.info.success
