"""Stage times of a step, latency percentiles over a window, measured rates."""

import time
from collections import deque
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from vla_cache_ros.core.errors import ConfigError


class StageClock:
    """Times the named stages of one step."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        """Start with no stage.

        Args:
            clock: Seconds, monotonic; injected in tests. On a GPU it must wait for the device.
        """
        self._clock = clock
        self._ms: dict[str, float] = {}

    @property
    def stage_ms(self) -> dict[str, float]:
        """Stage name -> milliseconds, in the order of first execution."""
        return dict(self._ms)

    @contextmanager
    def __call__(self, name: str) -> Generator[None, None, None]:
        """Time the block under `name`, also where it raises; a repeated name adds up."""
        started = self._clock()
        try:
            yield
        finally:
            self.add(name, (self._clock() - started) * 1e3)

    def add(self, name: str, ms: float) -> None:
        """Add a time that was measured elsewhere."""
        self._ms[name] = self._ms.get(name, 0.0) + ms

    def reset(self) -> None:
        """Forget all stages, for the next step."""
        self._ms.clear()


@dataclass(frozen=True)
class LatencySummary:
    """Statistics of one window; all of them over the same values.

    Attributes:
        count: Values in the window.
        mean_ms: Mean, milliseconds.
        p50_ms: Median, milliseconds.
        p95_ms: 95th percentile, linearly interpolated, milliseconds.
        p99_ms: 99th percentile, linearly interpolated, milliseconds.
        max_ms: Greatest, milliseconds.
    """

    count: int
    mean_ms: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    max_ms: float


class LatencyWindow:
    """The last `size` latencies."""

    def __init__(self, size: int = 1000) -> None:
        """Start empty.

        Args:
            size: Values kept; older ones are forgotten.

        Raises:
            ConfigError: The size is not positive.
        """
        if size < 1:
            raise ConfigError(f'a latency window holds at least 1 value; got size {size}.')
        self._values: deque[float] = deque(maxlen=size)

    def __len__(self) -> int:
        return len(self._values)

    def add(self, ms: float) -> None:
        """Add one latency, milliseconds."""
        self._values.append(ms)

    @property
    def values(self) -> tuple[float, ...]:
        """The window's latencies, oldest first, milliseconds."""
        return tuple(self._values)

    def summary(self) -> LatencySummary | None:
        """Statistics of the window; None while it is empty."""
        if not self._values:
            return None
        values = np.array(self._values)
        p50, p95, p99 = (float(p) for p in np.percentile(values, (50, 95, 99)))
        return LatencySummary(
            len(values), float(values.mean()), p50, p95, p99, float(values.max())
        )


class RateMeter:
    """Measured rate of a periodic event, and how often it was late.

    Attributes:
        ticks: Events since construction.
        deadline_misses: Intervals longer than the deadline since construction.
        clock_jumps: Times at which a stamp was not newer than the one before; the window then
            starts anew (simulated clocks restart on reset).
    """

    def __init__(self, window: int = 100, deadline_ms: float | None = None) -> None:
        """Start with no event.

        Args:
            window: Intervals over which the rate is measured.
            deadline_ms: Greatest interval that is in time, milliseconds; None: no deadline.

        Raises:
            ConfigError: The window or the deadline is not positive.
        """
        if window < 1:
            raise ConfigError(f'a rate needs a window of at least 1 interval; got {window}.')
        if deadline_ms is not None and not deadline_ms > 0:
            raise ConfigError(f'the deadline must be greater than 0 ms; got {deadline_ms}.')
        self.ticks = 0
        self.deadline_misses = 0
        self.clock_jumps = 0
        self._deadline_ms = deadline_ms
        self._stamps_ns: deque[int] = deque(maxlen=window + 1)

    def tick(self, stamp_ns: int) -> None:
        """Count one event.

        Args:
            stamp_ns: When it happened, nanoseconds of any one clock.
        """
        self.ticks += 1
        if self._stamps_ns:
            interval_ms = (stamp_ns - self._stamps_ns[-1]) / 1e6
            if interval_ms <= 0:
                self.clock_jumps += 1
                self._stamps_ns.clear()
            elif self._deadline_ms is not None and interval_ms > self._deadline_ms:
                self.deadline_misses += 1
        self._stamps_ns.append(stamp_ns)

    def hz(self, now_ns: int | None = None) -> float:
        """Measured rate over the window; 0 before the second event.

        Args:
            now_ns: If given, the time since the last event counts once it exceeds the mean
                interval, so the rate of a stalled stream falls.
        """
        intervals = len(self._stamps_ns) - 1
        if intervals < 1:
            return 0.0
        span_ns = self._stamps_ns[-1] - self._stamps_ns[0]
        if now_ns is not None:
            silence_ns = now_ns - self._stamps_ns[-1]
            span_ns += max(0, silence_ns - span_ns / intervals)
        return intervals / span_ns * 1e9
