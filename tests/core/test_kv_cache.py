import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vla_cache_ros.core.errors import ConfigError
from vla_cache_ros.core.kv_cache import KVCache, StackedCache

LAYERS, BATCH, HEADS, TOKENS, WIDTH = 2, 2, 3, 7, 4


def make_cache() -> KVCache:
    return KVCache(LAYERS, HEADS, TOKENS, WIDTH, batch=BATCH, dtype=torch.float64)


@given(
    st.integers(0, LAYERS - 1),
    st.lists(st.integers(0, TOKENS - 1), unique=True),
    st.integers(0, 2**31),
)
def test_write_touches_the_given_slots_of_the_given_layer_alone(layer, slots, seed):
    generator = torch.Generator().manual_seed(seed)
    cache = make_cache()
    cache.k.normal_(generator=generator)
    cache.v.normal_(generator=generator)
    expected_k, expected_v = cache.k.clone(), cache.v.clone()
    shape = (BATCH, HEADS, len(slots), WIDTH)
    k = torch.randn(shape, generator=generator, dtype=torch.float64)
    v = torch.randn(shape, generator=generator, dtype=torch.float64)
    for row, slot in enumerate(slots):
        expected_k[layer, :, :, slot] = k[:, :, row]
        expected_v[layer, :, :, slot] = v[:, :, row]

    cache.write(layer, torch.tensor(slots, dtype=torch.int64), k, v)

    assert torch.equal(cache.k, expected_k)
    assert torch.equal(cache.v, expected_v)


def test_write_without_slots_fills_every_slot_in_place():
    cache = make_cache()
    memory = cache.k.data_ptr()
    k = torch.randn(BATCH, HEADS, TOKENS, WIDTH, dtype=torch.float64)
    cache.write(1, None, k, 2 * k)
    cached_k, cached_v = cache.layer(1)
    assert torch.equal(cached_k, k)
    assert torch.equal(cached_v, 2 * k)
    assert not cache.k[0].any()
    assert cache.k.data_ptr() == memory


def test_layer_is_a_view_and_nbytes_counts_both_tensors():
    cache = make_cache()
    cache.layer(0)[0].fill_(3)
    assert (cache.k[0] == 3).all()
    assert cache.nbytes == 2 * LAYERS * BATCH * HEADS * TOKENS * WIDTH * 8


def test_rows_of_another_precision_are_stored_in_the_cache_s():
    cache = KVCache(1, 1, 2, 2, dtype=torch.bfloat16)
    cache.write(0, torch.tensor([1]), torch.ones(1, 1, 1, 2), torch.ones(1, 1, 1, 2))
    assert cache.k.dtype == torch.bfloat16
    assert cache.k[0, 0, 0, 1].tolist() == [1, 1]


def test_a_size_of_zero_is_refused():
    with pytest.raises(ConfigError, match=r'\[L, B, Akv, N, d\]'):
        KVCache(1, 1, 0, 4)


@given(st.integers(0, LAYERS - 1), st.integers(0, 2**31))
def test_a_stack_writes_each_row_into_its_own_cache_and_reads_them_all(layer, seed):
    generator = torch.Generator().manual_seed(seed)
    caches = [KVCache(LAYERS, HEADS, TOKENS, WIDTH) for _ in range(3)]
    alone = [KVCache(LAYERS, HEADS, TOKENS, WIDTH) for _ in range(3)]
    slots = torch.stack([torch.randperm(TOKENS, generator=generator)[:4] for _ in caches])
    k = torch.randn((3, HEADS, 4, WIDTH), generator=generator)

    stack = StackedCache(caches)
    stack.write(layer, slots, k, -k)
    for row, cache in enumerate(alone):
        cache.write(layer, slots[row], k[row : row + 1], -k[row : row + 1])

    for cache, expected in zip(caches, alone, strict=True):
        assert torch.equal(cache.k, expected.k)
        assert torch.equal(cache.v, expected.v)
    read_k, read_v = stack.layer(layer)
    assert torch.equal(read_k, torch.cat([cache.k[layer] for cache in alone]))
    assert torch.equal(read_v, torch.cat([cache.v[layer] for cache in alone]))
    assert stack.num_tokens == TOKENS
    assert stack.nbytes == 3 * alone[0].nbytes


def test_a_stack_takes_slots_that_all_share():
    caches = [KVCache(LAYERS, HEADS, TOKENS, WIDTH) for _ in range(2)]
    k = torch.randn(2, HEADS, 2, WIDTH)
    StackedCache(caches).write(0, torch.tensor([5, 1]), k, k)
    assert torch.equal(caches[1].k[0, 0, :, 1], k[1, :, 1])
    assert not caches[1].k[0, 0, :, 0].any()
