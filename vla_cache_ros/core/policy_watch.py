"""Whether the policy lives, by its heartbeats.

    lost = no heartbeat that says 'active' for a timeout, or one that says anything else

The watch looks several times per timeout and declares the loss one look early, so that it is never
noticed late. It must have looked a few times since the last heartbeat: a watcher that was stalled
itself first reads what has come in meanwhile.
"""

_LOOKS_PER_TIMEOUT = 8
_LOOKS_BEFORE_LOSS = 4
_LEAST_PERIOD_S = 0.0005


class PolicyWatch:
    """Watches one policy; what has never shown a sign of life is lost."""

    def __init__(self, timeout_s: float) -> None:
        """Start without a sign of life.

        Args:
            timeout_s: Greatest time between two heartbeats; 0: never lost.
        """
        self._timeout_s = timeout_s
        self._lost = timeout_s > 0
        self._beat_s = 0.0
        self._looks = 0

    @property
    def lost(self) -> bool:
        """Whether the policy is lost, as of the last look or heartbeat."""
        return self._lost

    @property
    def period_s(self) -> float:
        """Time from one look to the next; 0: there is nothing to watch."""
        if not self._timeout_s:
            return 0.0
        return max(self._timeout_s / _LOOKS_PER_TIMEOUT, _LEAST_PERIOD_S)

    def beat(self, state: str, now_s: float) -> bool:
        """Take in a heartbeat.

        Args:
            state: The sender's lifecycle state.
            now_s: The time on a clock that never jumps.

        Returns:
            Whether the policy was lost by it: it lives, but says that it does not act.
        """
        if not self._timeout_s:
            return False
        was_lost, self._lost = self._lost, state != 'active'
        self._beat_s, self._looks = now_s, 0
        return self._lost and not was_lost

    def look(self, now_s: float) -> bool:
        """Look at the time; to be called every `period_s`.

        Returns:
            Whether the policy was lost just now.
        """
        self._looks += 1
        silent_s = now_s - self._beat_s
        if self._lost or self._looks < _LOOKS_BEFORE_LOSS or not self._timeout_s:
            return False
        self._lost = silent_s > self._timeout_s - self.period_s
        return self._lost
