"""Reports of guard and shadow mode <-> vla_cache_interfaces/GuardStatus and ShadowReport.

The readers trust nothing: a report with NaN or an unknown word is refused, and counted by who
reads it. The policy's own reports are in step_messages.py.
"""

import array
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from vla_cache_interfaces.msg import GuardStatus, ShadowReport

from vla_cache_ros.core.errors import ObservationError
from vla_cache_ros.nodes.conversions import ns_to_stamp, stamp_to_ns
from vla_cache_ros.nodes.report_checks import (
    counts_to_message,
    message_to_counts,
    need_amount,
    need_few,
    need_word,
)

DEGRADATIONS = ('nominal', 'on_chunk', 'hold')
"""What the guard runs on, from best to worst."""


@dataclass(frozen=True)
class CommandReport:
    """What the guard sent.

    Attributes:
        step_ns: The control step that was answered.
        published_ns: CLOCK_MONOTONIC after it was published.
        action: The command, [7].
        is_null: Whether it is the null action.
        image_stamp_ns: The observation behind it; None: no action was there.
        index: The action's index in its chunk; None: no action was there.
        reasons: Why it differs from what was asked.
        degradation: One of `DEGRADATIONS`.
        dry_run: Whether it was shown only.
        e_stop: Whether the emergency stop is latched.
        counts: Commands by reason, and chunks refused, since the start.
    """

    step_ns: int
    published_ns: int
    action: NDArray[np.float32] = field(compare=False)
    is_null: bool
    image_stamp_ns: int | None = None
    index: int | None = None
    reasons: tuple[str, ...] = ()
    degradation: str = 'nominal'
    dry_run: bool = False
    e_stop: bool = False
    counts: Mapping[str, int] = field(default_factory=dict[str, int])


@dataclass(frozen=True)
class ShadowResult:
    """Cached actions beside dense ones, as vla_cache_interfaces/ShadowReport explains."""

    stamp_ns: int
    mean_difference: float
    max_difference: float
    gripper_flips: int
    alarm_budget: float
    off_budget: float
    alarm: bool
    switched_off: bool
    dense_ms: float
    cached_ms: float


def guard_to_message(report: CommandReport) -> GuardStatus:
    """Report one command of the guard."""
    message = GuardStatus()
    message.header.stamp = ns_to_stamp(report.step_ns)
    message.published_ns = report.published_ns
    message.image_stamp = ns_to_stamp(report.image_stamp_ns or 0)
    message.index = -1 if report.index is None else report.index
    message.action = array.array('f', np.ascontiguousarray(report.action, np.float32).tobytes())
    message.is_null = report.is_null
    message.reasons = list(report.reasons)
    message.degradation = report.degradation
    message.dry_run = report.dry_run
    message.e_stop = report.e_stop
    message.counts = counts_to_message(report.counts)
    return message


def message_to_guard(message: GuardStatus) -> CommandReport:
    """Read the report of a command.

    Raises:
        ObservationError: The report contradicts itself.
    """
    action = np.array(message.action, np.float32)
    if not np.isfinite(action).all():
        raise ObservationError(f'the guard reports a command {action.tolist()}; valid: finite.')
    if message.published_ns < 0 or message.index < -1:
        raise ObservationError(
            f'published at {message.published_ns} ns with index {message.index}; valid: 0 or '
            'more, -1 or more.'
        )
    need_word('degradation', message.degradation, DEGRADATIONS)
    need_few('reasons', message.reasons)
    has_action = message.index >= 0
    return CommandReport(
        step_ns=stamp_to_ns(message.header.stamp),
        published_ns=message.published_ns,
        action=action,
        is_null=message.is_null,
        image_stamp_ns=stamp_to_ns(message.image_stamp) if has_action else None,
        index=message.index if has_action else None,
        reasons=tuple(message.reasons),
        degradation=message.degradation,
        dry_run=message.dry_run,
        e_stop=message.e_stop,
        counts=message_to_counts(message.counts),
    )


# Shadow mode

_SHADOW_NUMBERS = (
    'mean_difference',
    'max_difference',
    'alarm_budget',
    'off_budget',
    'dense_ms',
    'cached_ms',
)
_SHADOW_REST = ('gripper_flips', 'alarm', 'switched_off')


def shadow_to_message(result: ShadowResult) -> ShadowReport:
    """Report one comparison."""
    numbers = {name: float(getattr(result, name)) for name in _SHADOW_NUMBERS}
    message = ShadowReport(**numbers, **{name: getattr(result, name) for name in _SHADOW_REST})
    message.header.stamp = ns_to_stamp(result.stamp_ns)
    return message


def message_to_shadow(message: ShadowReport) -> ShadowResult:
    """Read a comparison.

    Raises:
        ObservationError: A number is negative, NaN or infinite.
    """
    fields: dict[str, Any] = {}
    for name in _SHADOW_NUMBERS:
        fields[name] = need_amount(name, getattr(message, name))
    fields |= {name: getattr(message, name) for name in _SHADOW_REST}
    return ShadowResult(stamp_ns=stamp_to_ns(message.header.stamp), **fields)
