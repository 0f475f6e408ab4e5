"""Chunks and commands as messages: what comes back, and what is refused."""

import contextlib
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from rclpy.serialization import deserialize_message, serialize_message
from vla_cache_interfaces.msg import ActionChunk as ActionChunkMessage

from vla_cache_ros.core.errors import ObservationError
from vla_cache_ros.core.types import ActionChunk
from vla_cache_ros.nodes.chunk_messages import (
    AXES,
    MAX_STEPS,
    chunk_to_message,
    empty_chunk,
    message_to_chunk,
    message_to_command,
)
from vla_cache_ros.nodes.conversions import stamp_to_ns

pytestmark = pytest.mark.ros

STAMPS_NS = st.integers(0, 2**31 * 10**9 - 1)
FLOATS = st.floats(width=32)


@given(
    actions=arrays.arrays(np.float32, st.tuples(st.integers(0, 9), st.just(7)), elements=FLOATS),
    stamp_ns=STAMPS_NS,
    step_ns=STAMPS_NS,
    instruction=st.text(st.characters(exclude_categories=['Cs'], exclude_characters='\0')),
)
def test_a_chunk_comes_back_through_the_wire_bit_for_bit(actions, stamp_ns, step_ns, instruction):
    chunk = ActionChunk(actions, stamp_ns, instruction=instruction, prefix_steps=len(actions) // 2)
    wire = serialize_message(chunk_to_message(chunk, 20.0, step_ns))
    message = deserialize_message(wire, ActionChunkMessage)
    after = message_to_chunk(message)
    np.testing.assert_array_equal(after.actions.view(np.uint32), actions.view(np.uint32))
    assert (after.stamp_ns, after.instruction) == (stamp_ns, instruction)
    assert after.prefix_steps == chunk.prefix_steps
    assert stamp_to_ns(message.header.stamp) == step_ns


def test_without_a_step_the_header_holds_the_observation():
    message = chunk_to_message(empty_chunk(12, 'push'), 20.0)
    assert message.header.stamp == message.image_stamp
    assert message_to_chunk(message).actions.shape == (0, 7)
    assert message_to_chunk(message).instruction == 'push'


@given(
    axes=st.lists(st.sampled_from([*AXES, 'x', '']), max_size=8),
    numbers=st.lists(FLOATS, max_size=30),
    prefix_steps=st.integers(0, 2**32 - 1),
    rate_hz=st.floats(),
    fits=st.booleans(),
)
def test_any_message_is_read_or_refused(axes, numbers, prefix_steps, rate_hz, fits):
    message = ActionChunkMessage(
        axes=list(AXES) if fits else axes,
        actions=numbers,
        prefix_steps=prefix_steps,
        control_frequency_hz=rate_hz,
    )
    with contextlib.suppress(ObservationError):  # any other error would be the node's death
        chunk = message_to_chunk(message)
        assert chunk.actions.size == len(numbers)
        assert chunk.prefix_steps <= len(chunk.actions)


@pytest.mark.parametrize(
    ('changes', 'said'),
    [
        ({'axes': ['x'] * 7}, 'valid: ee_x, ee_y'),
        ({'axes': []}, 'action axes'),
        ({'actions': [0.0] * 13}, '13 numbers'),
        ({'actions': [0.0] * 7 * (MAX_STEPS + 1)}, f'at most {MAX_STEPS} steps'),
        ({'prefix_steps': 3}, 'prefix of 3 steps in a chunk of 2'),
        ({'control_frequency_hz': 0.0}, 'above 0'),
        ({'control_frequency_hz': math.nan}, 'above 0'),
        ({'control_frequency_hz': math.inf}, 'above 0'),
    ],
)
def test_what_does_not_fit_is_refused_by_name(changes, said):
    message = chunk_to_message(ActionChunk(np.zeros((2, 7), np.float32), 5), 20.0)
    for name, value in changes.items():
        setattr(message, name, value)
    with pytest.raises(ObservationError, match=said):
        message_to_chunk(message)


def test_a_command_is_one_action_of_finite_numbers():
    actions = np.arange(14, dtype=np.float32).reshape(2, 7)
    message = chunk_to_message(ActionChunk(actions[1:], 5), 20.0, step_ns=9)
    np.testing.assert_array_equal(message_to_command(message), actions[1])
    for wrong in (actions, actions[:0], np.full((1, 7), np.nan, np.float32)):
        with pytest.raises(ObservationError, match='one action of finite numbers'):
            message_to_command(chunk_to_message(ActionChunk(wrong, 5), 20.0))
