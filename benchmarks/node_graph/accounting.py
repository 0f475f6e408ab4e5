"""What became of every frame, and how long it took, from the message stream of a long run.

    frames sent = frames processed + frames reported dropped + frames lost in transport

A frame is one pair of images of one stamp. Lost in transport: the policy node never saw it (best
effort, keep last 1), so it could not report it; the sum holds by counting stamps, not by trust.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from node_graph.verdict import Event

IN_FLIGHT_NS = 2_000_000_000
"""Frames sent within so long before the end may still be on their way: they are not counted."""


@dataclass
class Accounts:
    """Sums over a run; events come in order of receipt."""

    sent: dict[int, int] = field(default_factory=dict)
    """Stamp -> CLOCK_MONOTONIC of its capture."""
    processed: set[int] = field(default_factory=set)
    dropped: dict[int, str] = field(default_factory=dict)
    commanded: dict[int, int] = field(default_factory=dict)
    """Stamp of an image -> CLOCK_MONOTONIC of the first command made from it."""
    nulls: Counter[str] = field(default_factory=Counter)
    """Reason -> null actions."""
    episodes: Counter[str] = field(default_factory=Counter)
    """How they ended -> count."""
    passed: int = 0
    """Actions that the guard let through."""
    last_ns: int = 0

    def add(self, event: Event) -> None:
        """Book one event."""
        self.last_ns = max(self.last_ns, event['at_ns'])
        if event['kind'] == 'frame':
            self.sent[event['stamp_ns']] = event['captured_ns']
        elif event['kind'] == 'report' and event['dropped']:
            self.dropped.setdefault(event['stamp_ns'], event['dropped'])
        elif event['kind'] == 'report':
            self.processed.add(event['stamp_ns'])
        elif event['kind'] == 'status' and event['is_null']:
            self.nulls.update(event['reasons'][:1] or ['unnamed'])
        elif event['kind'] == 'status':
            self.passed += 1
            self.commanded.setdefault(event['image_stamp_ns'], event['published_ns'])
        elif event['kind'] == 'episode' and event['event'] == 'end':
            self.episodes[event['reason']] += 1

    def frames(self) -> dict[str, Any]:
        """Sent, processed, dropped by reason, and lost."""
        settled = {
            stamp
            for stamp, captured_ns in self.sent.items()
            if captured_ns < self.last_ns - IN_FLIGHT_NS
        }
        processed = settled & self.processed
        dropped = {s: r for s, r in self.dropped.items() if s in settled - processed}
        return {
            'sent': len(settled),
            'processed': len(processed),
            'dropped': dict(Counter(dropped.values())),
            'lost_in_transport': len(settled) - len(processed) - len(dropped),
        }

    def latencies_ms(self) -> np.ndarray:
        """Capture and image-to-command time, [N, 2]: seconds of CLOCK_MONOTONIC, milliseconds."""
        rows = [
            (self.sent[stamp] / 1e9, (published_ns - self.sent[stamp]) / 1e6)
            for stamp, published_ns in self.commanded.items()
            if stamp in self.sent
        ]
        return np.array(sorted(rows), float).reshape(-1, 2)


def growth(samples: list[Mapping[str, Any]], key: str, from_s: float) -> dict[str, Any]:
    """How a figure of one process grew: medians of the first and the last third after `from_s`.

    Args:
        samples: Of one process, each with `at_s`, in order.
        key: The figure.
        from_s: What came before belongs to the start-up.
    """
    settled = [sample for sample in samples if sample['at_s'] >= from_s] or samples[-1:]
    third = max(1, len(settled) // 3)
    first = float(np.median([sample[key] for sample in settled[:third]]))
    last = float(np.median([sample[key] for sample in settled[-third:]]))
    return {'first': first, 'last': last, 'growth': (last - first) / first if first else 0.0}
