r"""Which action of which chunk is due in a control step: open loop, ensemble, or hard prefix.

A chunk holds the actions a_0 .. a_(T-1) for the control steps that follow an observation of stamp
s. With the control period p, in the control step of time t:

    open_loop   a_0, a_1, .. of the newest chunk, one a step from the step on that finds it
    prefix      k(t) = round((t - s) / p), of the newest chunk
    ensemble    a(t) = sum_i w_i a_(i, k_i(t)) / sum_i w_i,   w_i = exp(-m i),   over all chunks i
                that cover t, i = 0 the oldest (temporal ensembling, ACT); the gripper is the
                newest chunk's, because opening and closing have no mean

Prefix is the schedule of real-time chunking with a hard prefix: while an inference of d periods
runs, the old chunk goes on; the new one takes over at the step due now, and its first d actions
are skipped, because those steps were executed from the old chunk. A policy that was given these
steps (`Observation.committed`) continues them, so the arm sees no seam. With d = 0 it equals open
loop.

Actions are deltas. A mean of deltas is the mean displacement that the chunks foresee for this one
step: a mean of velocities, not of targets. It is still executed once, and each chunk's share in it
is used up. m < 0 favours the newest chunk.

When the next chunk is late, the present one goes on beyond its n actions ('on_chunk'), and when it
has ended nothing is due ('hold', a null action).
"""

import numpy as np
from numpy.typing import NDArray

from vla_cache_ros.core.execution_base import ChunkExecution, DueAction, ExecutionConfig
from vla_cache_ros.core.time_aligned import TimeAligned
from vla_cache_ros.core.types import ActionChunk


class OpenLoop(ChunkExecution):
    """The newest chunk from its first action on, whenever it came."""

    def ready(self, step_ns: int) -> bool:
        """Whether an action is left."""
        return self._chunk is not None and self._index < self._limit(self._chunk)

    def plan(self, step_ns: int) -> NDArray[np.float32]:
        """Nothing: what is left is replaced by whatever chunk comes next."""
        return np.empty((0, 7), np.float32)

    def _place(self, chunk: ActionChunk) -> None:
        self._chunk, self._index = chunk, 0

    def _drop(self) -> None:
        self._chunk: ActionChunk | None = None
        self._index = 0

    def _take(self, step_ns: int) -> DueAction | None:
        chunk, index = self._chunk, self._index
        if chunk is None or not self.ready(step_ns):
            return None
        self._index += 1
        return DueAction(
            chunk.actions[index],
            chunk.stamp_ns,
            chunk.stamp_ns,
            index,
            self._sequence,
            takes_over=index == 0,
            instruction=chunk.instruction,
        )


def make_execution(config: ExecutionConfig) -> ChunkExecution:
    """Make the executor of a mode."""
    return OpenLoop(config) if config.mode == 'open_loop' else TimeAligned(config)
