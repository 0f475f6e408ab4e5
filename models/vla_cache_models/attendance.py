"""Which keys the running query rows see, as contiguous blocks, resolved once per layer group."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vla_cache_ros.core.layout import TokenLayout


@dataclass(frozen=True)
class AttentionBlock:
    """Query rows [row_start, row_stop) attend to the keys in slots [key_start, key_stop)."""

    row_start: int
    row_stop: int
    key_start: int
    key_stop: int


@dataclass(frozen=True)
class Attendance:
    """The attention rule of a layout, for the rows that run.

    Attributes:
        blocks: Together they cover all K rows. Splitting by block spares the masked part of the
            score matrix and any mask tensor.
        mask: For causal layouts, which keys each row sees, bool [K, N], or [B, 1, K, N] where the
            rows of a batch run at different slots; else None.
    """

    blocks: tuple[AttentionBlock, ...]
    mask: Tensor | None = None


def resolve_attendance(
    layout: TokenLayout,
    slots: NDArray[np.int64] | None = None,
    device: torch.device | str = 'cpu',
) -> Attendance:
    """Resolve a layout's attention rule for the running rows.

    Args:
        layout: The sequence's layout.
        slots: Ascending slots of the rows that run, [K], or [B, K] with equally many tokens of
            each camera in every batch row; None means all N.
        device: Where the mask goes.

    Returns:
        The blocks, with rows counted among the running ones and keys in slot coordinates.
    """
    edges = [0, *(camera.start for camera in layout), layout.vision[1], layout.num_tokens]
    rows = edges
    if slots is not None:
        one = slots if slots.ndim == 1 else slots[0]
        rows = [int(row) for row in np.searchsorted(one, edges)]
    everything = (0, layout.num_tokens)
    own_keys = {
        'all': lambda camera: everything,
        'vision_isolated': lambda camera: layout.vision,
        'camera_isolated': lambda camera: (camera.start, camera.stop),
    }[layout.attention]
    keys = [everything, *(own_keys(camera) for camera in layout), everything]

    blocks: list[AttentionBlock] = []
    for row_start, row_stop, (key_start, key_stop) in zip(rows, rows[1:], keys, strict=False):
        if row_start == row_stop:
            continue
        if blocks and (blocks[-1].key_start, blocks[-1].key_stop) == (key_start, key_stop):
            row_start = blocks.pop().row_start
        blocks.append(AttentionBlock(row_start, row_stop, key_start, key_stop))

    if not layout.causal:
        return Attendance(tuple(blocks))
    keys_at = torch.arange(layout.num_tokens, device=device)
    rows_at = keys_at if slots is None else torch.from_numpy(slots).to(device)
    if rows_at.ndim == 2:
        rows_at = rows_at[:, None]
    return Attendance(tuple(blocks), keys_at <= rows_at[..., None])


def one_row(slot: int) -> Attendance:
    """A generated token at the end of the sequence: it sees all slots up to its own."""
    return Attendance((AttentionBlock(0, 1, 0, slot + 1),))
