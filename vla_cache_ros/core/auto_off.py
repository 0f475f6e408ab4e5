"""Whether reuse pays: running medians of dense and cached step times, switch off, probe again.

Reuse pays when cached < (1 - margin) dense. Keyframes do not enter the comparison: with one in p
steps the mean step takes ((p - 1) cached + dense) / p, less than dense exactly when cached is.
A keyframe that also computes attention entropies takes longer than a plain dense step; under an
entropy schedule the judgement is lenient by that much.
"""

from collections import deque
from statistics import median

from vla_cache_ros.core.config import ReuseConfig


class AutoOff:
    """Judge of the reuse, deterministic in the times that it is given.

    Attributes:
        reason: Why reuse is off; empty while it is on.
        probing: Whether reuse was switched on again and has not been judged since.
    """

    def __init__(self, config: ReuseConfig) -> None:
        """Start with reuse on.

        Args:
            config: Its auto_off settings are used.
        """
        self.reason = ''
        self.probing = False
        self._config = config
        self._dense_ms: deque[float] = deque(maxlen=config.auto_off_window_steps)
        self._cached_ms: deque[float] = deque(maxlen=config.auto_off_window_steps)
        self._dense_steps_left = 0

    def record(self, cached: bool, step_ms: float) -> None:
        """Take one step's time into account.

        Args:
            cached: Whether the step reused K/V; otherwise everything was recomputed.
            step_ms: Time of the whole step, decision overhead included, milliseconds.
        """
        if not self._config.auto_off:
            return
        (self._cached_ms if cached else self._dense_ms).append(step_ms)
        if self.reason:
            self._count_down()
        elif min(len(self._dense_ms), len(self._cached_ms)) >= self._config.auto_off_min_steps:
            self._judge()

    def _judge(self) -> None:
        dense, cached = median(self._dense_ms), median(self._cached_ms)
        self.probing = False
        if cached >= (1 - self._config.auto_off_margin) * dense:
            self.reason = f'does not pay: cached {cached:.2f} ms, dense {dense:.2f} ms'
            self._dense_steps_left = self._config.auto_off_probe_steps

    def _count_down(self) -> None:
        self._dense_steps_left -= 1
        if self._dense_steps_left <= 0:
            self.reason = ''
            self.probing = True
            self._cached_ms.clear()
