"""Action chunks and guarded commands <-> vla_cache_interfaces/ActionChunk.

A chunk carries the stamp of the observation behind it, twice. A command is a chunk of one action
whose header holds the control step that it is meant for; image_stamp is still the observation.

Reading goes by the fields alone: a recording is read by the same functions, without ROS.
"""

import array
import math
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from vla_cache_ros.core.errors import ObservationError
from vla_cache_ros.core.types import ActionChunk
from vla_cache_ros.nodes.conversions import ns_to_stamp, stamp_to_ns

if TYPE_CHECKING:
    from vla_cache_interfaces.msg import ActionChunk as ActionChunkMessage

AXES = ('ee_x', 'ee_y', 'ee_z', 'ee_rx', 'ee_ry', 'ee_rz', 'gripper')
"""What the seven numbers of an action are called."""

MAX_STEPS = 1000
"""Actions that one message may hold: far more than any policy makes."""


def empty_chunk(stamp_ns: int, instruction: str = '') -> ActionChunk:
    """The chunk that says: no action follows from the observation of this stamp."""
    return ActionChunk(np.empty((0, len(AXES)), np.float32), stamp_ns, instruction=instruction)


def chunk_to_message(
    chunk: ActionChunk, control_frequency_hz: float, step_ns: int | None = None
) -> 'ActionChunkMessage':
    """Build the message of a chunk or of one command.

    Args:
        chunk: Actions [T, 7]; T = 0 says "no action follows from this observation".
        control_frequency_hz: Action k is due k periods after the header's stamp.
        step_ns: The control step that the first action is meant for; default: the observation's
            own stamp, as in a chunk.
    """
    from vla_cache_interfaces.msg import ActionChunk as ActionChunkMessage

    message = ActionChunkMessage()
    message.header.stamp = ns_to_stamp(chunk.stamp_ns if step_ns is None else step_ns)
    message.image_stamp = ns_to_stamp(chunk.stamp_ns)
    message.instruction = chunk.instruction
    message.axes = list(AXES)
    message.control_frequency_hz = float(control_frequency_hz)
    message.prefix_steps = chunk.prefix_steps
    # rclpy takes an array.array as it is; a list it checks number by number.
    numbers = np.ascontiguousarray(chunk.actions, np.float32)
    message.actions = array.array('f', numbers.tobytes())
    return message


def message_to_chunk(message: 'ActionChunkMessage') -> ActionChunk:
    """Read a chunk or a command; its own stamp is the observation's.

    NaN among the actions passes: the guard, which counts and reports it, is the one to refuse it.

    Returns:
        The chunk, actions [T, 7], T = 0 for an empty message.

    Raises:
        ObservationError: The axes are not `AXES`, the numbers are no whole rows or too many, the
            prefix is longer than the chunk, or the rate is no positive number.
    """
    if tuple(message.axes) != AXES:
        raise ObservationError(f'action axes {list(message.axes)[:10]}; valid: {", ".join(AXES)}.')
    count = len(message.actions)
    if count % len(AXES) or count > MAX_STEPS * len(AXES):
        raise ObservationError(
            f'a chunk holds {count} numbers; valid: {len(AXES)} for each of at most {MAX_STEPS} '
            'steps.'
        )
    steps = count // len(AXES)
    if message.prefix_steps > steps:
        raise ObservationError(
            f'prefix of {message.prefix_steps} steps in a chunk of {steps}; valid: at most as '
            'many.'
        )
    rate_hz = message.control_frequency_hz
    if steps and not (math.isfinite(rate_hz) and rate_hz > 0):
        raise ObservationError(f'control_frequency_hz is {rate_hz}; valid: above 0.')
    return ActionChunk(
        np.array(message.actions, np.float32).reshape(steps, len(AXES)),
        stamp_to_ns(message.image_stamp),
        instruction=message.instruction,
        prefix_steps=message.prefix_steps,
    )


def message_to_command(message: 'ActionChunkMessage') -> NDArray[np.float32]:
    """Read the guarded command: exactly one action of finite numbers.

    Returns:
        The action, [7]. What it is meant for is header.stamp.

    Raises:
        ObservationError: It is no chunk, holds another number of actions, or NaN or infinity.
    """
    actions = message_to_chunk(message).actions
    if actions.shape[0] != 1 or not np.isfinite(actions).all():
        raise ObservationError(
            f'a command is one action of finite numbers; got {actions[:2].tolist()}.'
        )
    return actions[0]
