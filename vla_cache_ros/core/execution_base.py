"""What every way of executing chunks has in common: configuration, refusal, revocation, order."""

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
