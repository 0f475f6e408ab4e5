"""Actions at their due times: the executors of prefix and ensemble; see `chunk_execution`."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vla_cache_ros.core.execution_base import ChunkExecution, DueAction, ExecutionConfig
from vla_cache_ros.core.types import ActionChunk

_JITTER_STEPS = 2  # by which executed indices may lag behind the time


@dataclass(eq=False)
class _Placed:
    """A chunk on the grid of control steps: action `index` belongs to step number `step`.

    Both are None until the chunk is first executed; from then on its index follows the steps'
    numbers, so that a timer's jitter neither repeats nor skips an action.
    """

    chunk: ActionChunk
    step: int | None = None
    index: int = 0


class TimeAligned(ChunkExecution):
    """Every action at its due time: prefix (the newest chunk) and ensemble (all that cover)."""

    def __init__(self, config: ExecutionConfig) -> None:
        """Start empty."""
        self._origin_ns: int | None = None  # time of step number _origin
        self._origin = self._last_number = 0
        super().__init__(config)

    def ready(self, step_ns: int) -> bool:
        """Whether a chunk covers this step."""
        number = self._number(step_ns)
        return number is not None and bool(self._covering(step_ns, number))

    def plan(self, step_ns: int) -> NDArray[np.float32]:
        """What is left of the newest chunk, its action for this step first."""
        number = self._last_number
        covering = self._covering(step_ns, number)
        if self.config.mode != 'prefix' or not covering:
            return np.empty((0, 7), np.float32)
        chunk = covering[-1].chunk
        return chunk.actions[self._index(covering[-1], step_ns, number) : self._limit(chunk)]

    def _place(self, chunk: ActionChunk) -> None:
        """Keep it, and forget what was over when it was observed: during a hold nobody asks."""
        self._placed = [
            placed
            for placed in self._placed
            if self._periods(chunk.stamp_ns - placed.chunk.stamp_ns)
            <= self._limit(placed.chunk) + _JITTER_STEPS
        ]
        self._placed.append(_Placed(chunk))

    def _drop(self) -> None:
        self._placed: list[_Placed] = []

    def _take(self, step_ns: int) -> DueAction | None:
        number = self._number(step_ns)
        if number is None:
            return None
        covering = self._covering(step_ns, number)
        if not covering:
            return None
        newest = covering[-1]
        takes_over = newest.step is None
        for placed in covering:
            if placed.step is None:
                placed.index = self._index(placed, step_ns, number)
                placed.step = number
        if takes_over:
            self._origin_ns, self._origin = step_ns, number
        self._last_number = number
        self._forget(newest, step_ns, number)
        return DueAction(
            self._mean(covering, step_ns, number),
            newest.chunk.stamp_ns,
            covering[0].chunk.stamp_ns,
            self._index(newest, step_ns, number),
            self._sequence,
            takes_over,
            newest.chunk.instruction,
        )

    def _number(self, step_ns: int) -> int | None:
        """Number of a control step; None where it is one that was executed already.

        The next number is granted half a period early, against jitter, once and not again until
        time has caught up: actions never run ahead of their due times by more than a period.
        """
        if self._origin_ns is None or self._last_step_ns is None:
            return self._last_number + 1
        number = self._origin + self._periods(step_ns - self._origin_ns)
        if number > self._last_number:
            return number
        early = step_ns - self._last_step_ns < self._period_ns / 2
        return None if early or number < self._last_number else self._last_number + 1

    def _covering(self, step_ns: int, number: int) -> list[_Placed]:
        """The chunks that an action of this step is made from, oldest first."""
        covering = [
            placed
            for placed in self._placed
            if 0 <= self._index(placed, step_ns, number) < self._limit(placed.chunk)
        ]
        due = [
            placed
            for placed in covering
            if placed.step is not None
            or self._index(placed, step_ns, number) >= self.config.delay_steps
        ]
        covering = due or covering
        if self.config.mode == 'prefix':
            return covering[-1:]
        oldest_ns = step_ns - self.config.max_age_s * 1e9
        return [p for p in covering if p.chunk.stamp_ns >= oldest_ns] or covering[-1:]

    def _forget(self, newest: _Placed, step_ns: int, number: int) -> None:
        """Drop what will never be due again; in prefix also what a newer chunk took over from."""
        kept = self._placed
        if self.config.mode == 'prefix':
            kept = kept[kept.index(newest) :]
        self._placed = [
            placed
            for placed in kept
            if self._index(placed, step_ns, number) < self._limit(placed.chunk)
        ]

    def _mean(self, covering: list[_Placed], step_ns: int, number: int) -> NDArray[np.float32]:
        """See the module: one chunk's action, or the ensemble's."""
        actions = np.stack(
            [placed.chunk.actions[self._index(placed, step_ns, number)] for placed in covering]
        )
        if len(actions) == 1:
            return actions[0]
        exponent = -self.config.ensemble_decay * np.arange(len(actions))
        weight = np.exp(exponent - exponent.max())  # the greatest is 1: no overflow
        mean = (weight[:, None] * actions).sum(axis=0) / weight.sum()
        mean[-1] = actions[-1, -1]
        return mean.astype(np.float32)

    def _index(self, placed: _Placed, step_ns: int, number: int) -> int:
        if placed.step is not None:
            return placed.index + number - placed.step
        return self._periods(step_ns - placed.chunk.stamp_ns)

    def _periods(self, duration_ns: int) -> int:
        """A duration in periods, rounded to the nearest; halves up."""
        return math.floor(duration_ns / self._period_ns + 0.5)
