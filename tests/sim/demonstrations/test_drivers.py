import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.sim.demonstrations.points import QUIET, PointPolicy, roll
from vla_cache_ros.core.errors import ConfigError
from vla_cache_sim.demonstrations.drivers import ActionNoise, DaggerDriver, NoiseConfig


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
