"""What the readers of all reports check, and counts by reason."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from vla_cache_interfaces.msg import Count

from vla_cache_ros.core.errors import ObservationError

MAX_NAMES = 256
"""Entries that a report's lists by name may hold."""


def counts_to_message(counts: Mapping[str, int]) -> list[Count]:
    """Counts by reason, in their order."""
    return [Count(reason=reason, count=count) for reason, count in counts.items()]


def message_to_counts(counts: Iterable[Count]) -> dict[str, int]:
    """Read counts by reason.

    Raises:
        ObservationError: There are more than `MAX_NAMES`.
    """
    entries = list(counts)
    need_few('counts', entries)
    return {entry.reason: entry.count for entry in entries}


def need_amount(name: str, value: float) -> float:
    """Refuse NaN, infinity and what is below 0."""
    if not (math.isfinite(value) and value >= 0):
        raise ObservationError(f'{name} is {value}; valid: a finite number from 0.')
    return value


def need_word(name: str, value: str, valid: Sequence[str]) -> None:
    """Refuse a word that is not one of the valid ones."""
    if value not in valid:
        words = ', '.join(word or 'nothing' for word in valid)
        raise ObservationError(f'{name} is {value[:40]!r}; valid: {words}.')


def need_few(name: str, values: Any) -> None:
    """Refuse a list that no honest sender makes."""
    if len(values) > MAX_NAMES:
        raise ObservationError(f'{len(values)} {name}; valid: at most {MAX_NAMES}.')
