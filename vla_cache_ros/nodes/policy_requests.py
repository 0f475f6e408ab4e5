"""What the executor's thread hands to the inference thread: observations, and orders."""

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass

from vla_cache_ros.core.errors import VlaCacheError
from vla_cache_ros.core.protocols import Policy, ReuseControl
from vla_cache_ros.nodes.pairing import PairedInputs


class RefusedError(VlaCacheError):
    """An observation gives no chunk.

    Attributes:
        reason: What it is counted as.
        flushes: Whether the cache may be damaged.
    """

    def __init__(self, reason: str, detail: str, flushes: bool = False) -> None:
        """Name the reason, and say what would have been valid."""
        super().__init__(detail)
        self.reason = reason
        self.flushes = flushes


@dataclass(frozen=True)
class Request:
    """One observation on its way to the worker.

    Attributes:
        inputs: Paired; images are messages still.
        instruction: The task in words.
        epoch: Resets before it was paired; what is older than the newest reset is void.
        received_ns: CLOCK_MONOTONIC at receipt of the last input.
        age_ms: Age of the oldest image then, by the node's clock.
    """

    inputs: PairedInputs
    instruction: str
    epoch: int
    received_ns: int
    age_ms: float


class Orders:
    """Orders to the policy, carried out by the worker between two steps. Thread-safe.

    A policy is no place for two threads: whoever wants it reset or its reuse switched says so
    here.
    """

    def __init__(self) -> None:
        """Start with nothing ordered."""
        self._lock = threading.Lock()
        self._epoch = 0
        self._reset_reason = ''
        self._forgives = False
        self._off_by_hand = ''
        self._off_by_shadow = ''
        self._switched = False

    @property
    def epoch(self) -> int:
        """Resets so far."""
        with self._lock:
            return self._epoch

    @contextlib.contextmanager
    def hold(self) -> Iterator[int]:
        """Give the epoch, which cannot change inside the with block."""
        with self._lock:
            yield self._epoch

    def reset(self, reason: str, forgives: bool = False) -> None:
        """Have the policy reset before its next step; what is in work is void.

        Args:
            reason: Appears in the next step's report.
            forgives: Whether a reuse that shadow mode switched off is on again.
        """
        with self._lock:
            self._epoch += 1
            self._reset_reason = reason
            if forgives:
                self._forgive()

    def switch(self, on: bool) -> None:
        """Switch the reuse by hand; on also takes back what shadow mode switched off."""
        with self._lock:
            self._off_by_hand = '' if on else 'switched off by hand'
            self._switched = True
            if on:
                self._forgive()

    def switch_off(self, reason: str) -> None:
        """Have shadow mode switch the reuse off until it is forgiven."""
        with self._lock:
            self._off_by_shadow = reason
            self._switched = True

    def carry_out(self, policy: Policy) -> bool:
        """Do what was ordered; the worker's thread.

        Returns:
            Whether shadow mode is to forget what it has seen.
        """
        with self._lock:
            reason, self._reset_reason = self._reset_reason, ''
            forgives, self._forgives = self._forgives, False
            switched, self._switched = self._switched, False
            off_reason = self._off_by_hand or self._off_by_shadow
        if reason:
            policy.reset(reason)
        if switched and isinstance(policy, ReuseControl):
            if off_reason:
                policy.switch_off(off_reason)
            else:
                policy.switch_on()
        return forgives

    def _forgive(self) -> None:
        self._off_by_shadow = ''
        self._switched = True
        self._forgives = True
