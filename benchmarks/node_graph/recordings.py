"""What a recording holds of what was sent."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from node_graph.verdict import Event
from vla_cache_ros.recording.reader import Recording

COMMANDS = '/vla/action'


@dataclass(frozen=True)
class Recorded:
    """Commands that were sent beside commands that were recorded.

    Attributes:
        sent: Commands sent while the recorder ran.
        recorded: Those of them that the recording holds.
        missing_between: Sent between the first and the last recorded one, and not recorded.
        missing_at_end: Sent after the last recorded one.
        messages: Messages of all topics that could be read.
        losses: What the reader could not read, in words.
    """

    sent: int
    recorded: int
    missing_between: int
    missing_at_end: int
    messages: int
    losses: tuple[str, ...]


def compare(folder: Path, events: Sequence[Event], until_ns: int) -> Recorded:
    """Compare a recording with what the observer received.

    Args:
        folder: Of the recording.
        events: What was received.
        until_ns: When the recorder ended, CLOCK_MONOTONIC; what came later counts not as sent.
    """
    recording = Recording(folder)
    stamps = {_stamp_ns(message.value()) for message in recording.messages({COMMANDS})}
    sent = [
        event['stamp_ns']
        for event in events
        if event['kind'] == 'command' and event['at_ns'] < until_ns
    ]
    within = [stamp for stamp in sent if stamps and stamp >= min(stamps)]
    last_ns = max(stamps, default=0)
    missing = [stamp for stamp in within if stamp not in stamps]
    return Recorded(
        sent=len(within),
        recorded=len(within) - len(missing),
        missing_between=sum(stamp < last_ns for stamp in missing),
        missing_at_end=sum(stamp > last_ns for stamp in missing),
        messages=sum(recording.counts.values()),
        losses=tuple(str(loss) for loss in recording.losses),
    )


def _stamp_ns(message: object) -> int:
    stamp = message.header.stamp  # type: ignore[attr-defined]  # as its definition says
    return stamp.sec * 1_000_000_000 + stamp.nanosec
