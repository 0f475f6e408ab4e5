import importlib
from pathlib import Path

import numpy as np
import pytest

from vla_cache_models.prismatic.layouts import oft_layout
from vla_cache_models.prismatic.prompt import LlamaPrompt, StandInTokenizer
from vla_cache_ros.core.patches import PatchChange
from vla_cache_ros.core.planner import PlanInputs, make_plan

FOLDER = Path(__file__).parents[2] / 'benchmarks'


@pytest.fixture
def oft_300m(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module('oft_300m')


@pytest.fixture
def layout(oft_300m):
    prompt = LlamaPrompt(StandInTokenizer())(oft_300m.INSTRUCTION)
    return oft_layout(('agentview', 'wrist'), oft_300m.GRID, len(prompt), 56)


def test_the_model_has_the_size_and_the_shares_that_it_claims(oft_300m, layout):
    found = oft_300m.describe(layout)
    assert layout.num_tokens == oft_300m.TOKENS == 605
    assert 0.28e9 < found['parameters'] < 0.35e9
    dense, cached = sum(found['dense'].values()), sum(found['cached'].values())
    assert found['dense']['vision'] / dense == pytest.approx(0.08, abs=0.01)
    assert found['cached']['vision'] == found['dense']['vision']
    assert dense / cached > dense / sum(found['cached_published_layers'].values()) > 1.7


@pytest.mark.parametrize('layers', [(0,), (1, 4, 6, 7)])
def test_every_step_reuses_60_percent_of_the_vision_tokens_whatever_changed(
    oft_300m, layout, layers
):
    rng = np.random.default_rng(0)
    vision = layout.num_vision
    change = PatchChange(
        similarity=rng.random(vision, dtype=np.float32),
        difference=rng.random(vision, dtype=np.float32),
    )
    inputs = PlanInputs(
        change,
        age=rng.integers(0, 500, vision).astype(np.int32),
        relevance=rng.random(vision, dtype=np.float32),
    )
    config = oft_300m.forced_reuse(layers, 10, layout)
    plan = make_plan(inputs, config, layout, oft_300m.CONFIG.decoder.layers)
    assert layout.num_tokens - len(plan.recompute[-1]) == round(0.6 * vision)
    assert [group.start for group in plan.groups if group.start] == [x for x in layers if x]
