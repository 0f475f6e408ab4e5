"""A checkpoint of the public layout drives SIMPLER's robot: cameras, units and gripper fit."""

import numpy as np
import pytest

from tests.models.tiny_checkpoints import write_tiny_cogact
from vla_cache_models.policy import load_policy
from vla_cache_ros.cli.environments import make_env
from vla_cache_ros.evaluation.episode import EpisodeSpec
from vla_cache_ros.evaluation.rollout import run_episode


@pytest.mark.simpler_assets
@pytest.mark.slow
def test_a_bridge_checkpoint_finishes_an_episode_in_metres_and_radians(tmp_path, monkeypatch):
    policy = load_policy(
        write_tiny_cogact(tmp_path / 'cogact'), 'safe', unnorm_key='bridge_orig', auto_off=False
    )
    env = make_env('simpler_bridge', 0, policy.image_size_px)
    sent, advance = [], env.advance
    monkeypatch.setattr(env, 'advance', lambda action: sent.append(action) or advance(action))
    monkeypatch.setattr(type(env), 'step_limit', 12)
    row = run_episode(env, policy, EpisodeSpec('simpler_bridge', 0, 3, 'safe@1'))
    env.close()
    assert (row.outcome, row.steps) == ('failure', 12)
    assert row.summary.modes['cached'] > 0
    actions = np.stack(sent)
    assert set(np.unique(actions[:, 6])) <= {-1.0, 1.0}
    assert all(env.action_space.contains(action.astype(np.float32)) for action in actions)
