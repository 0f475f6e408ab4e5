"""Where the three models' tokens sit."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vla_cache_models.prismatic.layouts import (
    cogact_layout,
    oft_layout,
    oft_readout,
    openvla_layout,
)

PROMPTS = st.integers(2, 128)
GRIDS = st.integers(1, 16)


def test_published_token_counts() -> None:
    # 285 and 605 tokens stand behind the published FLOPs: prompts of 29 and 35 ids.
    assert openvla_layout(['agentview'], 16, 29).num_tokens == 285
    assert oft_layout(['agentview', 'wrist'], 16, 35, 56).num_tokens == 605


@given(prompt=PROMPTS, grid=GRIDS)
def test_spans_follow_one_another(prompt: int, grid: int) -> None:
    cameras = ['agentview', 'wrist']
    openvla = openvla_layout(cameras[:1], grid, prompt)
    assert openvla.causal
    assert openvla.vision == (1, 1 + grid * grid)
    assert openvla.text == (openvla.vision[1], openvla.num_tokens)
    assert openvla.num_tokens == prompt + grid * grid

    oft = oft_layout(cameras, grid, prompt, 56)
    assert not oft.causal
    assert oft.vision == (1, 1 + 2 * grid * grid)
    assert oft.text[0] == oft.vision[1] + 1  # proprioception between
    assert oft.actions == (oft.text[1], oft.text[1] + 56)
    assert oft.num_tokens == oft.actions[1] + 1  # </s> behind
    assert oft.num_tokens == prompt + 2 * grid * grid + 1 + 56 + 1

    cogact = cogact_layout(cameras[:1], grid, prompt)
    assert cogact.causal
    assert cogact.actions == (cogact.num_tokens - 1, cogact.num_tokens)
    assert cogact.num_tokens == prompt + grid * grid


@given(prompt=PROMPTS, grid=GRIDS)
def test_oft_reads_where_the_next_token_is_an_action_slot(prompt: int, grid: int) -> None:
    layout = oft_layout(['agentview', 'wrist'], grid, prompt, 56)
    is_slot = [layout.actions[0] <= slot < layout.actions[1] for slot in range(layout.num_tokens)]
    predicts_slot = [slot for slot in range(layout.num_tokens - 1) if is_slot[slot + 1]]
    assert predicts_slot == list(range(*oft_readout(layout)))


@pytest.mark.parametrize('layout', [openvla_layout(['a'], 4, 9), cogact_layout(['a'], 4, 9)])
def test_nothing_but_vision_may_be_reused(layout) -> None:
    assert list(layout.always_recomputed) == [0, *range(17, layout.num_tokens)]
