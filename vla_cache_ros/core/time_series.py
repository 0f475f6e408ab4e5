"""Values by stamp: a short history, found by bisection."""

from bisect import bisect_left, insort
from typing import Generic, TypeVar

ValueT = TypeVar('ValueT')

MOST_VALUES = 4096
"""Kept at most, whatever the horizon: four seconds at 1000 Hz."""


class TimeSeries(Generic[ValueT]):
    """A history by time, of bounded size; stamps may come out of order within its horizon."""

    def __init__(self, horizon_ns: int, most: int = MOST_VALUES) -> None:
        """Start empty.

        Args:
            horizon_ns: Values this much older than the newest one may be forgotten; those
                younger are kept, up to `most`.
            most: Values kept at most.
        """
        self._horizon_ns = horizon_ns
        self._most = most
        self._entries: list[tuple[int, int, ValueT]] = []  # stamp, order of arrival, value
        self._arrivals = 0

    def __len__(self) -> int:
        """Values kept."""
        return len(self._entries)

    def clear(self) -> None:
        """Forget all values."""
        self._entries.clear()

    def add(self, stamp_ns: int, value: ValueT) -> None:
        """Keep a value; one that is older than the horizon says that the clock was set back."""
        entries = self._entries
        if entries and stamp_ns < entries[-1][0] - self._horizon_ns:
            entries.clear()
        self._arrivals += 1
        entry = (stamp_ns, self._arrivals, value)
        if not entries or stamp_ns >= entries[-1][0]:
            entries.append(entry)
        else:
            insort(entries, entry, key=lambda kept: kept[:2])
        self._forget(entries[-1][0])

    def nearest(self, stamp_ns: int, tolerance_ns: int) -> ValueT | None:
        """The value nearest to a stamp, or None when none is within the tolerance."""
        at = bisect_left(self._entries, stamp_ns, key=lambda kept: kept[0])
        near = self._entries[max(0, at - 1) : at + 1]
        if not near:
            return None
        nearest_ns, _, value = min(near, key=lambda kept: abs(kept[0] - stamp_ns))
        return value if abs(nearest_ns - stamp_ns) <= tolerance_ns else None

    def _forget(self, newest_ns: int) -> None:
        """Drop what is too old, many at a time: the cost of one is shared by all."""
        entries = self._entries
        if len(entries) > self._most:
            del entries[: len(entries) - self._most // 2]
        if newest_ns - entries[0][0] > 2 * self._horizon_ns:
            del entries[: bisect_left(entries, newest_ns - self._horizon_ns, key=lambda e: e[0])]
