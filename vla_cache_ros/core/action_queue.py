"""Open-loop execution of an action chunk: n actions, one per control step, then plan again."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vla_cache_ros.core.errors import ConfigError
from vla_cache_ros.core.types import ActionChunk


@dataclass(frozen=True)
class QueuedAction:
    """One action of a chunk.

    Attributes:
        action: [7] float32; see ActionChunk.
        stamp_ns: Stamp of the observation that the chunk was computed from, nanoseconds.
        index: Position in the chunk, from 0.
        sequence: Number of the action, ascending over the queue's whole life, never reused.
    """

    action: NDArray[np.float32]
    stamp_ns: int
    index: int
    sequence: int


class ActionQueue:
    """Holds the current chunk and hands out each of its actions at most once. Not thread-safe."""

    def __init__(self, execute_steps: int) -> None:
        """Start empty.

        Args:
            execute_steps: Actions executed from each chunk before planning again; a chunk with
                fewer actions is executed whole.

        Raises:
            ConfigError: It is not positive.
        """
        if execute_steps < 1:
            raise ConfigError(f'execute_steps must be at least 1; got {execute_steps}.')
        self.execute_steps = execute_steps
        self._chunk: ActionChunk | None = None
        self._newest_stamp_ns = 0
        self._index = 0
        self._sequence = 0

    @property
    def remaining(self) -> int:
        """Actions left to execute."""
        if self._chunk is None:
            return 0
        return min(self.execute_steps, len(self._chunk.actions)) - self._index

    @property
    def needs_replan(self) -> bool:
        """Whether nothing is left to execute."""
        return self.remaining == 0

    @property
    def stamp_ns(self) -> int | None:
        """Stamp of the current chunk's observation, nanoseconds; None while there is no chunk."""
        return None if self._chunk is None else self._chunk.stamp_ns

    def age_ns(self, now_ns: int) -> int | None:
        """Time since the current chunk's observation, nanoseconds; None while there is no chunk.

        Args:
            now_ns: Nanoseconds of the clock that stamped the observation.
        """
        return None if self._chunk is None else now_ns - self._chunk.stamp_ns

    def load(self, chunk: ActionChunk) -> bool:
        """Replace what is left by a newer chunk.

        Args:
            chunk: Actions; its stamp must be newer than that of every chunk loaded since the last
                clear(). Stamp 0 means unstamped; then only the same object again is refused. A
                chunk without actions revokes what is left and is never refused.

        Returns:
            False where the chunk was refused because its deltas were, or may have been, executed.
        """
        if len(chunk.actions) and (
            chunk is self._chunk or 0 < chunk.stamp_ns <= self._newest_stamp_ns
        ):
            return False
        self._newest_stamp_ns = max(self._newest_stamp_ns, chunk.stamp_ns)
        self._chunk = chunk
        self._index = 0
        return True

    def pop(self) -> QueuedAction | None:
        """The next action; None when the chunk is exhausted: a null action is due."""
        if self._chunk is None or self.remaining == 0:
            return None
        action = QueuedAction(
            self._chunk.actions[self._index], self._chunk.stamp_ns, self._index, self._sequence
        )
        self._index += 1
        self._sequence += 1
        return action

    def clear(self) -> None:
        """Drop what is left, on reset, fault or a restarted clock; sequence numbers go on."""
        self._chunk = None
        self._newest_stamp_ns = 0
        self._index = 0
