import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tests.sim.demonstrations.points import QUIET, SPEC, roll
from vla_cache_sim.demonstrations.drivers import ExpertDriver, NoiseConfig


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
