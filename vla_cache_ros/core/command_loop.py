"""One command per control step: the executor proposes, the guard disposes, and holds have a veto.

Nothing here knows of topics or threads; time comes in with every call. A hold (emergency stop,
policy lost, instruction not confirmed) makes every command the null action. Whatever ends a hold,
no action from before it runs: chunks of observations up to that moment are refused.
"""

from collections import Counter
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vla_cache_ros.core.execution_base import ChunkExecution, DueAction
from vla_cache_ros.core.guard import CommandGuard, GuardedCommand
from vla_cache_ros.core.policy_watch import PolicyWatch
from vla_cache_ros.core.types import ActionChunk

_LOCKSTEP_FUTURE_NS = 60_000_000_000


@dataclass(frozen=True)
class LoopConfig:
    """How the loop is run.

    Attributes:
        lockstep: Whether a simulator asks for each command and waits for it.
        instruction_timeout_s: Time after which an instruction must be given again; 0: never.
    """

    lockstep: bool = False
    instruction_timeout_s: float = 0.0


@dataclass(frozen=True)
class StepCommand:
    """The command of one control step.

    Attributes:
        step_ns: The control step that it is meant for.
        guarded: What may be sent, and why it is not what was asked.
        due: The action that it was made from; None where none was due.
        degradation: 'nominal', 'on_chunk' or 'hold'; see `chunk_execution`.
    """

    step_ns: int
    guarded: GuardedCommand
    due: DueAction | None
    degradation: str


@dataclass(frozen=True)
class Committed:
    """The actions that run next unless a newer chunk takes over.

    Attributes:
        actions: [n, 7]; n = 0: nothing is committed.
        step_ns: When the first one is due, nanoseconds.
        instruction: The task that they were computed for.
    """

    actions: NDArray[np.float32]
    step_ns: int
    instruction: str


class CommandLoop:
    """Executor, guard and holds together. Not thread-safe.

    Attributes:
        guard: The guard.
        watch: The policy's heartbeats.
        committed: What a policy may continue; a new object at every change.
        e_stopped: Whether the emergency stop is latched.
    """

    def __init__(
        self,
        execution: ChunkExecution,
        guard: CommandGuard,
        watch: PolicyWatch,
        config: LoopConfig,
        *,
        e_stopped: bool = False,
    ) -> None:
        """Start without a chunk.

        Args:
            execution: Says which action is due.
            guard: Says what of it may be sent.
            watch: Says whether the policy lives.
            config: How the loop is run.
            e_stopped: Whether the emergency stop was latched before.
        """
        self._execution = execution
        self.guard = guard
        self.watch = watch
        self.config = config
        self.e_stopped = e_stopped
        self.committed = _nothing(0)
        self._refused: Counter[str] = Counter()
        self._instruction: str | None = None
        self._instruction_ns = 0
        self._task: str | None = None  # what the chunks at hand were computed for
        self._last_step_ns: int | None = None
        self._starved = True
        self._null_left = 0  # lockstep: null actions that stand in for a chunk that was revoked

    @property
    def counts(self) -> dict[str, int]:
        """Reason -> commands changed or chunks refused; 'passed' -> commands let through."""
        return dict(self.guard.counts) | dict(self._refused)

    @property
    def instruction(self) -> str | None:
        """The task in force; None before there was one."""
        return self._instruction

    @property
    def last_step_ns(self) -> int | None:
        """The newest control step; None before there was one."""
        return self._last_step_ns

    @property
    def starved(self) -> bool:
        """Whether the newest step found no action."""
        return self._starved

    @property
    def starts_at_once(self) -> bool:
        """Whether a chunk that ends a wait is begun now, not in the next period: open loop."""
        return self._execution.config.mode == 'open_loop' and not self.e_stopped

    def count(self, reason: str, times: int = 1) -> None:
        """Count something that is none of the loop's own doing."""
        self._refused[reason] += times

    def holds(self, now_ns: int) -> list[str]:
        """Why nothing may move: e_stop, policy_lost, instruction_timeout."""
        reasons: list[str] = []
        if self.e_stopped:
            reasons.append('e_stop')
        if self.watch.lost:
            reasons.append('policy_lost')
        timeout_ns = self.config.instruction_timeout_s * 1e9
        # A clock that went back leaves an age that is no age: the operator must confirm anew.
        if timeout_ns and not (
            self._instruction is not None and 0 <= now_ns - self._instruction_ns <= timeout_ns
        ):
            reasons.append('instruction_timeout')
        return reasons

    # Inputs

    def give_instruction(self, instruction: str, now_ns: int) -> None:
        """Set the task in force; what was computed for another one is revoked."""
        instruction = instruction.strip()
        if 'instruction_timeout' in self.holds(now_ns):
            self.revoke(now_ns)
        if self._task not in (None, instruction):
            self.revoke()
        self._instruction, self._instruction_ns = instruction, now_ns

    def give_chunk(self, chunk: ActionChunk, now_ns: int | None) -> str:
        """Take in a chunk; one without actions revokes what is left.

        Args:
            chunk: The chunk.
            now_ns: The time; None where only states tell it, and none has come yet.

        Returns:
            Empty, or why it was refused: e_stop, policy_lost, other_instruction, future_chunk,
            repeated_chunk, old_chunk. Another task's chunk also revokes the present one.
        """
        if not len(chunk.actions):
            self.revoke(chunk.stamp_ns if now_ns is None else min(chunk.stamp_ns, now_ns))
            return ''
        refusal = self._refusal(chunk, now_ns)
        if refusal == 'other_instruction' or self._task not in (None, chunk.instruction.strip()):
            self.revoke()
        refusal = refusal or self._execution.load(chunk)
        if refusal:
            self._refused[refusal] += 1
            return refusal
        self._task = chunk.instruction.strip()
        self._null_left = 0
        return ''

    def give_bad_chunk(self) -> None:
        """A chunk came that cannot be read: whatever it was to say, the present one is over."""
        self._refused['bad_chunk'] += 1
        self.revoke()

    def revoke(self, until_ns: int | None = None) -> None:
        """Drop what is left at once; chunks of observations up to this stamp are refused."""
        self._execution.revoke(until_ns)
        self._task = None
        self._null_left = self._execution.config.actions_per_chunk
        if len(self.committed.actions):
            self.committed = _nothing(self.committed.step_ns)

    def reset(self, until_ns: int | None = None) -> None:
        """Forget chunk, clock and numbers; not the emergency stop, the gripper, the instruction.

        Args:
            until_ns: As in `revoke`; None where the clock may begin anew.
        """
        self._execution.reset()
        self.revoke(until_ns)
        self.guard.reset()
        self._last_step_ns = None
        self._null_left = 0

    # Commands

    def can_answer(self, step_ns: int) -> bool:
        """Lockstep: whether a step is answered now, and not when the next chunk is there."""
        return bool(
            self._null_left or self._execution.ready(step_ns) or self.holds(step_ns)
        ) or self._goes_back(step_ns)

    def step(self, step_ns: int) -> StepCommand:
        """Make the command of a control step."""
        if self._goes_back(step_ns):
            self.revoke()
            self._execution.restart(step_ns)
        self._last_step_ns = step_ns
        holds = self.holds(step_ns)
        due = None if holds else self._execution.next(step_ns)
        self._starved = due is None
        if due is None:
            self._null_left = max(0, self._null_left - 1)
            guarded = self.guard.check(None, step_ns, step_ns, forbidden=holds)
        else:
            guarded = self.guard.check(due.action, due.oldest_stamp_ns, step_ns, due.sequence)
            if due.takes_over:
                plan = self._execution.plan(step_ns)
                self.committed = Committed(plan, step_ns, due.instruction)
        degradation = 'hold' if due is None else self._execution.degradation
        return StepCommand(step_ns, guarded, due, degradation)

    def _goes_back(self, step_ns: int) -> bool:
        return self._last_step_ns is not None and step_ns < self._last_step_ns

    def _refusal(self, chunk: ActionChunk, now_ns: int | None) -> str:
        if self.e_stopped:
            return 'e_stop'
        if self.watch.lost:
            return 'policy_lost'
        if self._instruction is not None and chunk.instruction.strip() != self._instruction:
            return 'other_instruction'
        # A stamp from the future would make every later chunk an old one.
        ahead_ns = self.guard.config.max_future_ms * 1e6
        if self.config.lockstep:
            ahead_ns = _LOCKSTEP_FUTURE_NS
        if now_ns is not None and chunk.stamp_ns - now_ns > ahead_ns:
            return 'future_chunk'
        return ''


def _nothing(step_ns: int) -> Committed:
    return Committed(np.empty((0, 7), np.float32), step_ns, '')
