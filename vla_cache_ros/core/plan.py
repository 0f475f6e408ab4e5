"""The reuse plan: frozen data that says, per layer group, which tokens are recomputed.

It is made by core, executed by the models and engines, and can be logged, replayed, drawn and
tested alone.
"""

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray


class PatchStatus(IntEnum):
    """Why a vision token was, or was not, recomputed in this step (the overlay's colours)."""

    REUSED = 0
    """Its K/V rows were kept in at least one group: static, not task-relevant and young enough,
    unless the choice is 'random'."""
    CHANGED = 1
    """Its pixels differ from those its K/V was computed from."""
    PROTECTED = 2
    """Static, but task-relevant: recomputed."""
    EXPIRED = 3
    """Static, but its age reached the limit: recomputed."""
    REFRESHED = 4
    """Static and reusable, but the schedule or a keyframe had it recomputed; or chance did."""


@dataclass(frozen=True)
class LayerGroup:
    """A run of decoder layers [start, stop) that share one set of recomputed tokens."""

    start: int
    stop: int


@dataclass(frozen=True)
class ReusePlan:
    """Which tokens run in which layers.

    Attributes:
        num_tokens: N.
        groups: The layer groups, contiguous from layer 0.
        recompute: Per group, the ascending slots of the tokens that run, int64 [K_g]. Nested:
            recompute[g + 1] is a subset of recompute[g].
        status: PatchStatus per vision token, uint8 [sum of P], cameras in layout order.
        age: Steps since each vision token's K/V was computed in every group, before this step
            ran; int32 [sum of P].
    """

    num_tokens: int
    groups: tuple[LayerGroup, ...]
    recompute: tuple[NDArray[np.int64], ...]
    status: NDArray[np.uint8]
    age: NDArray[np.int32]

    @property
    def is_dense(self) -> bool:
        """Whether every token runs in every group (the reuse set is empty)."""
        return all(len(slots) == self.num_tokens for slots in self.recompute)

    @property
    def recompute_ratio(self) -> float:
        """Recomputed token-layers as a share of all token-layers."""
        layers = sum(group.stop - group.start for group in self.groups)
        done = sum(
            len(slots) * (group.stop - group.start)
            for group, slots in zip(self.groups, self.recompute, strict=True)
        )
        return done / (layers * self.num_tokens)

    @property
    def vision_recompute_ratio(self) -> float:
        """The same of vision tokens alone: the others always run."""
        others = self.num_tokens - len(self.status)
        layers = sum(group.stop - group.start for group in self.groups)
        done = sum(
            (len(slots) - others) * (group.stop - group.start)
            for group, slots in zip(self.groups, self.recompute, strict=True)
        )
        return done / (layers * len(self.status))
