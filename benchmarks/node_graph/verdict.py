"""What a fault did, read from the message stream alone.

Every time is CLOCK_MONOTONIC of one machine, every age a difference of stamps, so that no figure
depends on when the judge itself ran.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Event = Mapping[str, Any]

NORMAL_DROPS = frozenset({'unpaired_image', 'superseded', 'repeated_stamp'})
"""Part of normal running: the next image is on its way."""


@dataclass(frozen=True)
class Verdict:
    """What was seen of one fault.

    Attributes:
        first_null_ms: From the fault to the first null action; None: none before its end.
        first_flag_ms: From the fault to the first drop, flush or refusal that names a reason.
        first_zero_ms: From the fault to the first zero twist of the command sink.
        moving_ms: From the fault to the last twist before its end that moves the arm; None: none.
        silent_ms: The longest time without any command between fault and recovery.
        recovery_ms: From the fault's end to the first action let through whose image was taken
            after the end; None: none was.
        oldest_ms: Greatest age of the image behind a command that moved the arm, by stamps.
        too_old: Commands that moved the arm and were older than the limit.
        repeated: Actions (image, index) that moved the arm more than once.
        not_finite: Commands that held NaN or infinity.
        reasons: Reasons of null actions, drops and flushes while the fault lasted -> count.
        commands: Commands while the fault lasted.
        nulls: Those of them that were the null action.
    """

    first_null_ms: float | None
    first_flag_ms: float | None
    first_zero_ms: float | None
    moving_ms: float | None
    silent_ms: float
    recovery_ms: float | None
    oldest_ms: float
    too_old: int
    repeated: int
    not_finite: int
    reasons: Mapping[str, int]
    commands: int
    nulls: int


def is_motion(command: Event) -> bool:
    """Whether a command moves the arm; the gripper alone does not."""
    return any(value != 0 for value in command['action'][:6])


def judge(events: Sequence[Event], began_ns: int, ended_ns: int, limit_ms: float) -> Verdict:
    """Judge one fault.

    Stamps must be wall time, as on a robot.

    Args:
        events: All events of the run, in order of receipt.
        began_ns: When the fault began.
        ended_ns: When it ended.
        limit_ms: Greatest age that a command may have.
    """
    commands = [event for event in events if event['kind'] == 'command']
    statuses = [event for event in events if event['kind'] == 'status']
    ready = next(event for event in events if event['kind'] == 'ready')
    moving = [event for event in commands if is_motion(event)]
    ages_ms = [(event['stamp_ns'] - event['image_stamp_ns']) / 1e6 for event in moving]
    during = [event for event in commands if began_ns <= event['at_ns'] < ended_ns]
    return Verdict(
        first_null_ms=_first_ms(
            (status['published_ns'] for status in statuses if status['is_null']),
            began_ns,
            ended_ns,
        ),
        first_flag_ms=_first_ms((when for when, _ in _flags(events)), began_ns, ended_ns),
        first_zero_ms=_first_ms(
            (event['at_ns'] for event in events if event['kind'] == 'twist' and event['is_zero']),
            began_ns,
            ended_ns,
        ),
        moving_ms=_last_ms(
            (
                event['at_ns']
                for event in events
                if event['kind'] == 'twist' and not event['is_zero']
            ),
            began_ns,
            ended_ns,
        ),
        silent_ms=_longest_silence_ms(commands, began_ns),
        recovery_ms=_recovery_ms(statuses, ended_ns, ready['wall_ns'] - ready['at_ns']),
        oldest_ms=max(ages_ms, default=0.0),
        too_old=sum(age_ms > limit_ms for age_ms in ages_ms),
        repeated=_repeated(statuses),
        not_finite=sum(not all(map(_finite, event['action'])) for event in commands),
        reasons=_reasons(events, began_ns, ended_ns),
        commands=len(during),
        nulls=sum(not is_motion(event) for event in during),
    )


def _first_ms(moments_ns: Iterable[int], began_ns: int, ended_ns: int) -> float | None:
    during = [moment_ns for moment_ns in moments_ns if began_ns <= moment_ns < ended_ns]
    return (min(during) - began_ns) / 1e6 if during else None


def _last_ms(moments_ns: Iterable[int], began_ns: int, ended_ns: int) -> float | None:
    during = [moment_ns for moment_ns in moments_ns if began_ns <= moment_ns < ended_ns]
    return (max(during) - began_ns) / 1e6 if during else None


def _flags(events: Iterable[Event]) -> list[tuple[int, str]]:
    """When something was said to be wrong, and what."""
    found = []
    for event in events:
        if event['kind'] == 'report':
            reason = event['dropped'] or event['flush_reason']
            if reason and reason not in NORMAL_DROPS:
                found.append((event['published_ns'] or event['at_ns'], reason))
        elif event['kind'] == 'status':
            found += [(event['published_ns'], reason) for reason in event['reasons']]
    return found


def _reasons(events: Iterable[Event], began_ns: int, ended_ns: int) -> dict[str, int]:
    counts: dict[str, int] = {}
    for when, reason in _flags(events):
        if began_ns <= when < ended_ns:
            counts[reason] = counts.get(reason, 0) + 1
    return counts


def _longest_silence_ms(commands: Sequence[Event], began_ns: int) -> float:
    """Longest interval between commands that ends after the fault began."""
    moments = [event['at_ns'] for event in commands]
    gaps = [
        later - max(earlier, began_ns)
        for earlier, later in zip(moments, moments[1:], strict=False)
        if later > began_ns
    ]
    return max(gaps, default=0) / 1e6


def _recovery_ms(statuses: Iterable[Event], ended_ns: int, wall_offset_ns: int) -> float | None:
    """First action let through whose image was taken after the end; stamps are wall time."""
    for status in statuses:
        fresh = status['image_stamp_ns'] >= ended_ns + wall_offset_ns
        if fresh and not status['is_null'] and status['published_ns'] >= ended_ns:
            return (status['published_ns'] - ended_ns) / 1e6
    return None


def _repeated(statuses: Iterable[Event]) -> int:
    moved = [(s['image_stamp_ns'], s['index']) for s in statuses if not s['is_null']]
    return len(moved) - len(set(moved))


def _finite(value: float) -> bool:
    return value - value == 0  # NaN and infinity are no number after subtraction
