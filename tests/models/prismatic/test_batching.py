"""The OpenVLA family's sessions in one forward against the same sessions alone."""

import numpy as np
import pytest

from tests.models.prismatic.conftest import MODELS, make_observation, moved, tiny_vla
from vla_cache_models.batching import act_together
from vla_cache_models.policy import make_policy, run_steps
from vla_cache_ros.core.types import ActionChunk


@pytest.mark.parametrize('name', MODELS)
@pytest.mark.parametrize('preset', ['off', 'safe', 'paper'])
def test_a_batch_computes_what_each_session_computes_alone_under_its_plan(
    name: str, preset: str, rng: np.random.Generator
) -> None:
    model = tiny_vla(name)
    together = [make_policy(model, preset, auto_off=False) for _ in range(3)]
    alone = [make_policy(model, preset, auto_off=False) for _ in range(3)]
    seen = [make_observation(rng) for _ in together]
    sizes: list[int] = []
    for _ in range(4):
        results = act_together(together, seen, sizes.append)
        for result, twin, observation in zip(results, alone, seen, strict=True):
            assert isinstance(result, ActionChunk), result
            assert result.report is not None
            step = twin.begin(observation)
            twin.widen(step, result.report.plan)
            (actions,) = run_steps((step,))
            expected = twin.finish(step, actions)
            np.testing.assert_allclose(result.actions, expected.actions, atol=1e-4)
        seen = [moved(observation, rng) for observation in seen]
    assert max(sizes) == 3


@pytest.mark.parametrize('name', MODELS)
def test_prompts_of_other_lengths_run_apart(name: str, rng: np.random.Generator) -> None:
    model = tiny_vla(name)
    policies = [make_policy(model, 'off') for _ in range(2)]
    seen = [make_observation(rng), make_observation(rng, 'open the top drawer of the cabinet now')]
    lengths = {
        policy.begin(own).layout.num_tokens for policy, own in zip(policies, seen, strict=True)
    }
    assert len(lengths) == 2
    sizes: list[int] = []
    results = act_together(policies, seen, sizes.append)
    assert sizes == [1, 1]
    assert all(isinstance(result, ActionChunk) for result in results)
