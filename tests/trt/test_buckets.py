from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.models.prismatic.conftest import make_observation, moved, tiny_vla
from vla_cache_models.policy import VlaPolicy
from vla_cache_ros.core.errors import ConfigError
from vla_cache_ros.core.plan import LayerGroup
from vla_cache_trt.buckets import (
    DEFAULT_BUCKETS,
    check_buckets,
    choose_buckets,
    default_buckets,
    fit,
    per_layer,
    record_history,
    waste,
)

LONGEST = 24
histories = st.lists(st.integers(1, LONGEST), min_size=1, max_size=12)


def total_cost(history, buckets, cost=float):
    return sum(cost(fit(buckets, tokens)) for tokens in history)


@pytest.mark.parametrize('buckets', [(), (0, 4), (4, 4), (8, 4)])
def test_buckets_that_do_not_increase_are_refused(buckets):
    with pytest.raises(ConfigError, match='bucket'):
        check_buckets(buckets)


def test_a_step_runs_at_the_smallest_bucket_that_holds_it():
    assert [fit((4, 8), tokens) for tokens in (1, 4, 5, 8)] == [4, 4, 8, 8]
    with pytest.raises(ConfigError, match='9 tokens run and the largest bucket holds 8'):
        fit((4, 8), 9)


@given(histories, st.integers(1, 4), st.sampled_from([1, 3, 8]), st.booleans())
def test_no_other_buckets_cost_less(history, count, multiple_of, dear):
    def cost(bucket):
        return bucket**2 + 7.0 if dear else float(bucket)

    chosen = choose_buckets(history, count, LONGEST, multiple_of=multiple_of, cost=cost)
    sizes = [size for size in range(1, LONGEST) if size % multiple_of == 0]
    brute = min(
        total_cost(history, (*subset, LONGEST), cost)
        for taken in range(min(count, len(sizes) + 1))
        for subset in combinations(sizes, taken)
    )
    assert total_cost(history, chosen, cost) == pytest.approx(brute)


@given(histories, st.integers(2, 6), st.sampled_from([1, 4, 16]), st.sampled_from([(), (1,)]))
def test_buckets_hold_every_run_and_keep_what_is_asked_for(history, count, multiple_of, always):
    chosen = choose_buckets(history, count, LONGEST, multiple_of=multiple_of, always=always)
    assert check_buckets(chosen) == chosen
    assert len(chosen) <= count
    assert chosen[-1] == LONGEST
    assert set(always) <= set(chosen)
    assert all(bucket % multiple_of == 0 for bucket in set(chosen) - {LONGEST, *always})
    assert sum(waste(history, chosen).hits.values()) == len(history)


@given(histories)
def test_more_buckets_never_waste_more(history):
    padding = [
        waste(history, choose_buckets(history, count, LONGEST, multiple_of=2)).mean_padding
        for count in range(1, 6)
    ]
    assert padding == sorted(padding, reverse=True)


@pytest.mark.parametrize(
    ('history', 'count', 'always', 'message'),
    [
        ([], 2, (), 'the history holds 0 runs'),
        ([0, 3], 2, (), 'runs of 0 to 3'),
        ([LONGEST + 1], 2, (), 'of 1 to 24 tokens'),
        ([3], 0, (), 'cannot include'),
        ([3], 1, (1,), r'cannot include \[1, 24\]'),
        ([3], 3, (25,), 'cannot include'),
    ],
)
def test_what_cannot_be_chosen_is_refused(history, count, always, message):
    with pytest.raises(ConfigError, match=message):
        choose_buckets(history, count, LONGEST, always=always)


def test_waste_counts_padding_and_hits():
    found = waste([3, 4, 10], (4, 12))
    assert found.mean_padding == 1.0
    assert found.share_of_work == 3 / 20
    assert found.hits == {4: 2, 12: 1}
    with pytest.raises(ConfigError, match='history is empty'):
        waste([], (4,))


def test_history_holds_each_steps_rows_per_group():
    model = tiny_vla('openvla_oft')
    rng = np.random.default_rng(0)
    first = make_observation(rng)
    observations = [first, moved(first, rng), moved(first, rng)]
    policy = VlaPolicy(model, model.preset('paper'))
    history = record_history(policy, observations)
    groups = list(history)
    assert groups[0].start == 0
    assert groups[-1].stop == model.decoder.config.layers
    n = policy.layout.num_tokens
    assert history[groups[0]] == [n, n, n]
    assert history[groups[-1]][0] == n
    assert max(history[groups[-1]][1:]) < n
    assert len(per_layer(history)) == 3 * model.decoder.config.layers


def test_groups_count_by_their_depth():
    assert per_layer({LayerGroup(0, 2): [9], LayerGroup(2, 5): [4]}) == [9, 9, 4, 4, 4]


def test_default_buckets_end_at_the_longest_sequence():
    assert default_buckets('unheard of', 50) == (50,)
    for model, buckets in DEFAULT_BUCKETS.items():
        assert default_buckets(model, buckets[-1] + 1) == (*buckets, buckets[-1] + 1)
        assert default_buckets(model, buckets[0]) == (buckets[0],)
