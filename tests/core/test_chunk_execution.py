import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from vla_cache_ros.core.action_queue import ActionQueue

from vla_cache_ros.core.errors import ConfigError
from vla_cache_ros.core.types import ActionChunk


def make_chunk(stamp_ns: int, size: int = 4) -> ActionChunk:
    actions = np.full((size, 7), float(stamp_ns), np.float32)
    actions[:, 0] = np.arange(size)
    return ActionChunk(actions, stamp_ns)


def test_n_actions_are_executed_open_loop_then_it_asks_for_a_replan():
    queue = ActionQueue(execute_steps=2)
    assert queue.needs_replan
    assert queue.pop() is None
    assert queue.load(make_chunk(10))
    first, second = queue.pop(), queue.pop()
    assert first is not None
    assert second is not None
    assert (first.index, second.index) == (0, 1)
    assert (first.action[0], second.action[0]) == (0, 1)
    assert (first.sequence, second.sequence) == (0, 1)
    assert queue.needs_replan
    assert queue.pop() is None


def test_a_short_chunk_is_executed_whole():
    queue = ActionQueue(execute_steps=8)
    queue.load(make_chunk(10, size=3))
    assert queue.remaining == 3


def test_stamp_and_age_are_those_of_the_observation():
    queue = ActionQueue(2)
    assert queue.stamp_ns is None
    assert queue.age_ns(5) is None
    queue.load(make_chunk(10))
    assert queue.stamp_ns == 10
    assert queue.age_ns(25) == 15


def test_a_newer_chunk_replaces_the_rest_and_an_old_one_is_refused():
    queue = ActionQueue(4)
    queue.load(make_chunk(10))
    queue.pop()
    assert queue.load(make_chunk(20))
    assert not queue.load(make_chunk(10))
    assert not queue.load(make_chunk(20))
    action = queue.pop()
    assert action is not None
    assert (action.stamp_ns, action.index) == (20, 0)


def test_a_chunk_without_actions_revokes_the_rest_whatever_its_stamp():
    queue = ActionQueue(4)
    queue.load(make_chunk(10))
    assert queue.load(make_chunk(5, size=0))
    assert queue.pop() is None
    assert not queue.load(make_chunk(10))


def test_after_clear_a_restarted_clock_is_accepted_and_numbers_go_on():
    queue = ActionQueue(4)
    queue.load(make_chunk(10))
    queue.pop()
    queue.clear()
    assert queue.needs_replan
    assert queue.load(make_chunk(3))
    action = queue.pop()
    assert action is not None
    assert action.sequence == 1


def test_the_same_unstamped_chunk_is_refused_and_another_is_not():
    queue = ActionQueue(4)
    chunk = make_chunk(0)
    assert queue.load(chunk)
    assert not queue.load(chunk)
    assert queue.load(make_chunk(0))


operations = st.lists(
    st.one_of(st.just('pop'), st.just('clear'), st.tuples(st.integers(0, 9), st.integers(0, 5))),
    max_size=60,
)


@given(operations, st.integers(1, 5))
def test_no_action_is_handed_out_twice(ops, execute_steps):
    queue = ActionQueue(execute_steps)
    handed, sequences = set(), []
    chunks = []  # kept alive, so that ids stay unique
    for op in ops:
        if op == 'pop':
            action = queue.pop()
            if action is not None:
                key = (id(queue._chunk), action.index)
                assert key not in handed
                assert action.index < execute_steps
                handed.add(key)
                sequences.append(action.sequence)
        elif op == 'clear':
            queue.clear()
        else:
            chunk = make_chunk(*op)
            chunks.append(chunk)
            queue.load(chunk)
            assert not queue.load(chunk) or not len(chunk.actions)
    assert sequences == sorted(set(sequences))


def test_execute_steps_must_be_positive():
    with pytest.raises(ConfigError, match='at least 1'):
        ActionQueue(0)
