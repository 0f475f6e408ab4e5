"""Rows of a batch: which tokens of each session run, and running them group by group.

One session is the batch of one. Sessions whose slots agree share one vector of them, [K], as every
session does at a dense step; otherwise slots are [B, K].
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vla_cache_models.attendance import resolve_attendance
from vla_cache_models.decoder import Decoder
from vla_cache_models.probe import AttentionProbe, StackedProbe
from vla_cache_ros.core.kv_cache import KVCache, StackedCache
from vla_cache_ros.core.layout import TokenLayout
from vla_cache_ros.core.plan import ReusePlan


def merge_slots(slots: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
    """The sessions' slots as one array: [K] where all agree, else [B, K]."""
    first = slots[0]
    if all(own is first or np.array_equal(own, first) for own in slots[1:]):
        return first
    return np.stack(slots)


def take_rows(x: Tensor, rows: Tensor) -> Tensor:
    """Rows of each session.

    Args:
        x: [B, N, D].
        rows: Int64 [K], the same for all, or [B, K].

    Returns:
        [B, K, D].
    """
    if rows.ndim == 1:
        return x[:, rows]
    return x.gather(1, rows[..., None].expand(-1, -1, x.shape[-1]))


def merge_caches(caches: Sequence[KVCache]) -> KVCache:
    """One session's cache as it is, several as one with a row each."""
    return caches[0] if len(caches) == 1 else StackedCache(caches)


def merge_probes(probes: Sequence[AttentionProbe]) -> AttentionProbe:
    """One session's probe as it is, several as one."""
    return probes[0] if len(probes) == 1 else StackedProbe(probes)


def decode(
    decoder: Decoder,
    x: Tensor,
    plans: Sequence[ReusePlan],
    layout: TokenLayout,
    cache: KVCache | None,
    probe: AttentionProbe,
) -> Tensor:
    """Run each layer group on its recomputed tokens; reused ones stay behind.

    Args:
        decoder: The decoder.
        x: Hidden states of the first group's tokens, [B, K, D].
        plans: One per session; per group and camera equally many tokens (`common_plans`).
        layout: Any session's: spans and attention rule are the same for all.
        cache: K/V of all sessions; None attends among the given rows.
        probe: Collects attention statistics on the way.

    Returns:
        [B, K of the last group, D], before the final norm.
    """
    running = [plan.recompute[0] for plan in plans]
    for index, group in enumerate(plans[0].groups):
        chosen = [plan.recompute[index] for plan in plans]
        if len(chosen[0]) < len(running[0]):
            kept = merge_slots(
                [np.searchsorted(had, own) for had, own in zip(running, chosen, strict=True)]
            )
            x, running = take_rows(x, torch.from_numpy(kept).to(x.device)), chosen
        slots = merge_slots(chosen)
        x = decoder(
            x,
            torch.from_numpy(slots).to(x.device),
            resolve_attendance(layout, slots, x.device),
            cache,
            group.start,
            group.stop,
            probe,
        )
    return x
