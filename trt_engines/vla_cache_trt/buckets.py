"""Buckets: the few sizes of K, the number of tokens that run, that an engine is compiled for.

A step of K tokens runs at the smallest bucket that holds them, so it pays for bucket - K rows that
nobody needs. Which buckets waste least depends on the K's that occur: `choose_buckets` finds them
exactly, by dynamic programming over a recorded history,

    best(1, i) = n(0, i) cost(b_i)
    best(j, i) = min over h < i of best(j - 1, h) + n(h, i) cost(b_i)

with b_0 < b_1 < .. the possible buckets and n(h, i) the number of steps with b_h < K <= b_i.
"""

import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from vla_cache_ros.core.errors import ConfigError
from vla_cache_ros.core.plan import LayerGroup
from vla_cache_ros.core.protocols import Policy
from vla_cache_ros.core.types import Observation

DEFAULT_BUCKETS: Mapping[str, tuple[int, ...]] = {
    'small': (192, 240, 320, 336, 368, 400, 432),
    'openvla': (1, 208, 224, 240, 256, 272, 288),
    'openvla_oft': (416, 432, 464, 512, 528, 544, 608),
    'cogact': (192, 208, 224, 240, 256, 272, 288),
}
"""Model -> its buckets without the last one, which is its longest sequence. Chosen from recorded
histories by benchmarks/bucket_waste.py."""


@dataclass(frozen=True)
class BucketWaste:
    """What rounding up costs over a history.

    Attributes:
        mean_padding: Rows of padding per run, mean.
        share_of_work: Rows of padding as a share of all rows that run, padding included, [0, 1).
        hits: Bucket -> runs at it.
    """

    mean_padding: float
    share_of_work: float
    hits: Mapping[int, int]


def check_buckets(buckets: Sequence[int]) -> tuple[int, ...]:
    """The buckets as they are, checked.

    Raises:
        ConfigError: There is none, one is below 1, or they do not increase.
    """
    if not buckets:
        raise ConfigError('the list of buckets is empty; give at least one number of tokens.')
    if buckets[0] < 1 or any(b <= a for a, b in zip(buckets, buckets[1:], strict=False)):
        raise ConfigError(
            f'buckets {list(buckets)} do not increase from 1 or more; sort them and drop repeats.'
        )
    return tuple(buckets)


def fit(buckets: Sequence[int], tokens: int) -> int:
    """The smallest bucket that holds so many tokens.

    Args:
        buckets: Ascending, as `check_buckets` returns them.
        tokens: K, tokens that run.

    Raises:
        ConfigError: K is above the last bucket.
    """
    index = bisect_left(buckets, tokens)
    if index == len(buckets):
        raise ConfigError(
            f'{tokens} tokens run and the largest bucket holds {buckets[-1]}; build the engines '
            'with a bucket that holds the longest sequence.'
        )
    return buckets[index]


def default_buckets(model: str, longest: int) -> tuple[int, ...]:
    """A model's buckets where none were asked for.

    Args:
        model: Its name, as presets name it.
        longest: N of the longest sequence that it can be given.
    """
    shorter = (bucket for bucket in DEFAULT_BUCKETS.get(model, ()) if bucket < longest)
    return (*shorter, longest)


def choose_buckets(
    history: Sequence[int],
    count: int,
    longest: int,
    *,
    multiple_of: int = 16,
    always: Iterable[int] = (),
    cost: Callable[[int], float] = float,
) -> tuple[int, ...]:
    """The buckets that cost least over a history.

    Args:
        history: K of each run, in any order.
        count: At most so many buckets.
        longest: N of the longest sequence that the model can be given; the last bucket.
        multiple_of: The others are multiples of this: kernels work on tiles.
        always: Buckets that are chosen in any case, e.g. 1 for a model that generates.
        cost: Bucket -> cost of one run at it; default: its rows.

    Returns:
        Ascending; fewer than count where more of them would save nothing.

    Raises:
        ConfigError: The history is empty, a K in it is not in 1..longest, or count is too small.
    """
    runs = Counter(history)
    if not runs or min(runs) < 1 or max(runs) > longest:
        raise ConfigError(
            f'the history holds {len(history)} runs of {min(runs, default=0)} to '
            f'{max(runs, default=0)} tokens; valid: at least one run, of 1 to {longest} tokens.'
        )
    forced = {longest, *always}
    if count < len(forced) or multiple_of < 1 or min(forced) < 1 or max(forced) > longest:
        raise ConfigError(
            f'{count} buckets, multiples of {multiple_of}, cannot include {sorted(forced)}; '
            f'valid: at least {len(forced)} buckets, multiples of 1 or more, each of 1 to '
            f'{longest}.'
        )
    rounded = {min(longest, math.ceil(tokens / multiple_of) * multiple_of) for tokens in runs}
    sizes = sorted(rounded | forced)
    held = [sum(runs[tokens] for tokens in runs if tokens <= size) for size in sizes]
    skippable = [size not in forced for size in sizes]

    # best[i]: least cost of the runs up to sizes[i], and the buckets, the last of which it is.
    best: list[tuple[float, tuple[int, ...]]] = [
        (held[i] * cost(size), (size,)) if all(skippable[:i]) else (math.inf, ())
        for i, size in enumerate(sizes)
    ]
    chosen = best[-1]
    for _ in range(count - 1):
        best = [
            min(
                (
                    (best[h][0] + (held[i] - held[h]) * cost(size), (*best[h][1], size))
                    for h in range(i)
                    if all(skippable[h + 1 : i])
                ),
                default=(math.inf, ()),
            )
            for i, size in enumerate(sizes)
        ]
        chosen = min(chosen, best[-1], key=lambda found: found[0])
    return chosen[1]


def waste(history: Sequence[int], buckets: Sequence[int]) -> BucketWaste:
    """What rounding up to these buckets costs over a history.

    Raises:
        ConfigError: The history is empty, the buckets do not increase or a K is above the last.
    """
    if not history:
        raise ConfigError('the history is empty; record at least one step.')
    buckets = check_buckets(buckets)
    hits = dict.fromkeys(buckets, 0)
    for tokens in history:
        hits[fit(buckets, tokens)] += 1
    rows = sum(bucket * times for bucket, times in hits.items())
    padding = rows - sum(history)
    return BucketWaste(padding / len(history), padding / rows, hits)


def record_history(
    policy: Policy, observations: Iterable[Observation]
) -> dict[LayerGroup, list[int]]:
    """K of each policy step of an episode, per layer group.

    Args:
        policy: One that reports its plans; it is reset first.
        observations: Frames in order.

    Raises:
        ConfigError: The policy reports no plans.
    """
    policy.reset('recording of buckets')
    history: dict[LayerGroup, list[int]] = {}
    for observation in observations:
        report = policy.act(observation).report
        if report is None:
            raise ConfigError(f'{type(policy).__name__} reports no plans; nothing to record.')
        for group, slots in zip(report.plan.groups, report.plan.recompute, strict=True):
            history.setdefault(group, []).append(len(slots))
    return history


def per_layer(history: Mapping[LayerGroup, Sequence[int]]) -> list[int]:
    """Every K once per layer that ran it: the groups weighted by their depth."""
    return [
        tokens
        for group, counts in history.items()
        for tokens in counts
        for _ in range(group.start, group.stop)
    ]
