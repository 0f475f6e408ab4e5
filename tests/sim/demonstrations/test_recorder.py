from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests.sim.demonstrations.points import (
    QUIET,
    SPEC,
    PointExpert,
    PointRobot,
    crashing_factory,
    point_factory,
)
from vla_cache_ros.core.errors import ConfigError, SimulatorError
from vla_cache_ros.dataset import DemonstrationDataset, EpisodeInfo
from vla_cache_sim.demonstrations.drivers import ExpertDriver, NoiseConfig
from vla_cache_sim.demonstrations.recorder import RecordingConfig, record_demonstrations
from vla_cache_sim.demonstrations.rollout import rollout_episode


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
