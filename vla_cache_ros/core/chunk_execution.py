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

import math
from abc import ABC, abstractmethod
from collections import deque
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vla_cache_ros.core.errors import ConfigError, UnknownNameError
from vla_cache_ros.core.types import ActionChunk

MODES = ('open_loop', 'ensemble', 'prefix')
_REMEMBERED_CHUNKS = 256


@dataclass(frozen=True)
class ExecutionConfig:
    """How chunks are executed.

    Attributes:
        mode: One of `MODES`.
        period_s: Time p from one control step to the next, seconds.
        actions_per_chunk: n, actions of a chunk until the next one is late; in prefix and ensemble
            counted from the observation, so refresh period plus inference time.
        run_on_steps: Actions executed beyond them at most while the next chunk is late.
        delay_steps: d, where a simulator in lockstep stands in for the inference's time: a chunk
            takes over no sooner than d periods after its stamp, and lasts d steps longer.
        ensemble_decay: m.
        max_age_s: Age of its observation beyond which a chunk no longer counts, seconds.
    """

    mode: str = 'open_loop'
    period_s: float = 0.05
    actions_per_chunk: int = 4
    run_on_steps: int = 0
    delay_steps: int = 0
    ensemble_decay: float = 0.01
    max_age_s: float = math.inf

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            ConfigError: A value is out of its range, or contradicts another one.
        """
        if self.mode not in MODES:
            raise UnknownNameError('chunk execution', self.mode, MODES)
        if self.actions_per_chunk < 1 or self.run_on_steps < 0 or self.delay_steps < 0:
            raise ConfigError(
                f'actions_per_chunk is {self.actions_per_chunk}, run_on_steps '
                f'{self.run_on_steps} and delay_steps {self.delay_steps}; valid: at least 1, 0 '
                'and 0.'
            )
        if not (self.period_s > 0 and self.max_age_s > 0 and math.isfinite(self.ensemble_decay)):
            raise ConfigError(
                f'period_s is {self.period_s}, max_age_s {self.max_age_s} and ensemble_decay '
                f'{self.ensemble_decay}; valid: above 0, above 0, and finite.'
            )
        if self.delay_steps and self.mode == 'open_loop':
            raise ConfigError(
                f'delay_steps is {self.delay_steps} in open_loop, which knows no due times; set '
                'it to 0, or choose prefix or ensemble.'
            )
        last_s = (self.actions_per_chunk - 1) * self.period_s
        if last_s > self.max_age_s:
            raise ConfigError(
                f'the last of {self.actions_per_chunk} actions is due {last_s:g} s after its '
                f'observation, but none may be older than {self.max_age_s:g} s; execute fewer, '
                'command faster, or allow older images.'
            )

    @property
    def nominal_steps(self) -> int:
        """Actions of a chunk until the next one is late."""
        return self.actions_per_chunk + self.delay_steps


@dataclass(frozen=True)
class DueAction:
    """The action of one control step.

    Attributes:
        action: [7] float32; see ActionChunk.
        stamp_ns: Stamp of the newest observation behind it, nanoseconds.
        oldest_stamp_ns: Stamp of the oldest one: the same but in an ensemble.
        index: Its position in the newest chunk, from 0.
        sequence: Number of the action, ascending over the executor's whole life, never reused.
        takes_over: Whether it is the first one of its chunk that is executed.
        instruction: The task that it was computed for.
    """

    action: NDArray[np.float32]
    stamp_ns: int
    oldest_stamp_ns: int
    index: int
    sequence: int
    takes_over: bool
    instruction: str


class ChunkExecution(ABC):
    """Holds chunks and hands out one action per control step, none twice. Not thread-safe."""

    def __init__(self, config: ExecutionConfig) -> None:
        """Start empty."""
        self.config = config
        self.degradation = 'hold'
        self._period_ns = config.period_s * 1e9
        self._sequence = 0
        self.reset()

    @abstractmethod
    def ready(self, step_ns: int) -> bool:
        """Whether an action is due in the control step of this time."""

    @abstractmethod
    def plan(self, step_ns: int) -> NDArray[np.float32]:
        """What is due from this step on as far as is known, [n, 7]; for a policy to continue."""

    @abstractmethod
    def _place(self, chunk: ActionChunk) -> None:
        """Take a chunk in that was not refused."""

    @abstractmethod
    def _drop(self) -> None:
        """Forget every chunk."""

    @abstractmethod
    def _take(self, step_ns: int) -> DueAction | None:
        """The action of a step that was not executed yet; counts it as executed."""

    def load(self, chunk: ActionChunk) -> str:
        """Take in a newer chunk; one without actions revokes what is left.

        Returns:
            Empty; or why the chunk was refused: 'repeated_chunk' (one of its stamp was there: its
            deltas were, or may have been, executed) or 'old_chunk' (a newer one was there, or it
            was revoked before it came).
        """
        if not len(chunk.actions):
            self._drop()
            return ''
        if chunk.stamp_ns in self._seen:
            return 'repeated_chunk'
        if self._barrier_ns is not None and chunk.stamp_ns <= self._barrier_ns:
            return 'old_chunk'
        self._barrier_ns = chunk.stamp_ns
        self._seen.append(chunk.stamp_ns)
        self._place(chunk)
        return ''

    def next(self, step_ns: int) -> DueAction | None:
        """The action of a control step; None where none is due: a null action.

        Args:
            step_ns: Time of the step, nanoseconds of the clock that stamps observations. A step
                that is not after the one before gets nothing.
        """
        due = None
        if self._last_step_ns is None or step_ns > self._last_step_ns:
            due = self._take(step_ns)
        if due is None:
            self.degradation = 'hold'
            return None
        self._last_step_ns = step_ns
        self._sequence += 1
        late = due.index >= self.config.nominal_steps
        self.degradation = 'on_chunk' if late else 'nominal'
        return due

    def revoke(self, until_ns: int | None = None) -> None:
        """Drop what is left at once.

        Args:
            until_ns: Chunks of observations up to this stamp are refused from now on, also those
                that are still on their way; None: those up to the newest one that was loaded.
        """
        self._drop()
        self.degradation = 'hold'
        if until_ns is not None:
            self._barrier_ns = max(until_ns, self._barrier_ns or until_ns)

    def restart(self, now_ns: int) -> None:
        """The clock went back: only observations from now on count, and no chunk a second time."""
        self.revoke()
        self._barrier_ns = now_ns - 1
        self._last_step_ns = None

    def reset(self) -> None:
        """Forget everything but the sequence numbers: a new episode with a clock of its own."""
        self._drop()
        self.degradation = 'hold'
        self._barrier_ns: int | None = None
        self._seen: deque[int] = deque(maxlen=_REMEMBERED_CHUNKS)
        self._last_step_ns: int | None = None

    def _limit(self, chunk: ActionChunk) -> int:
        """Actions of a chunk that may be executed at most."""
        return min(len(chunk.actions), self.config.nominal_steps + self.config.run_on_steps)


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


def make_execution(config: ExecutionConfig) -> ChunkExecution:
    """Make the executor of a mode."""
    return OpenLoop(config) if config.mode == 'open_loop' else TimeAligned(config)
