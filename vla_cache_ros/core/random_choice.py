"""The baseline of every selection: as many tokens reused as the rule would reuse, but any ones.

    recompute_g = the rule's recompute_g, its vision tokens permuted at random          (1)

One permutation holds for all groups, so that the plan stays nested and each group runs as many
tokens as under the rule. The rule's own references and ages go on as though its plan had run: were
it judged by the stale tokens that chance leaves behind, it would find ever fewer candidates, and
the ratio would no longer be the rule's.
"""

import zlib
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from vla_cache_ros.core.layout import TokenLayout
from vla_cache_ros.core.patches import PatchFrame
from vla_cache_ros.core.plan import PatchStatus, ReusePlan


def draw_plan(
    rule: ReusePlan, layout: TokenLayout, age: NDArray[np.int32], key: Sequence[int]
) -> ReusePlan:
    """Permute the vision tokens of a plan, equation (1).

    Args:
        rule: The plan that says how many tokens each group runs.
        layout: Its token layout.
        age: Steps since each vision token's K/V was really computed, int32 [V].
        key: Names the draw, integers >= 0: the same key, the same permutation.
    """
    start, stop = layout.vision
    moved = np.arange(layout.num_tokens, dtype=np.int64)
    np.random.default_rng(list(key)).shuffle(moved[start:stop])
    recompute = tuple(np.sort(moved[slots]) for slots in rule.recompute)
    status = np.full(layout.num_vision, PatchStatus.REUSED, dtype=np.uint8)
    status[computed_vision(recompute[-1], layout)] = PatchStatus.REFRESHED
    return replace(rule, recompute=recompute, status=status, age=age.copy())


def computed_vision(slots: NDArray[np.int64], layout: TokenLayout) -> NDArray[np.bool_]:
    """Which vision tokens are among the slots, bool [V]."""
    start, stop = layout.vision
    computed = np.zeros(layout.num_tokens, dtype=np.bool_)
    computed[slots] = True
    return computed[start:stop]


class RandomChoice:
    """What the draws depend on, and what they left behind.

    Draws are named by the seed, the pixels of the last keyframe and the steps since: the same
    episode gives the same draws, another one others.

    Attributes:
        age: Steps since each vision token's K/V was really computed, int32 [V].
    """

    def __init__(self, seed: int, layout: TokenLayout) -> None:
        """Wait for the first keyframe.

        Args:
            seed: Another seed, other draws.
            layout: The token layout; its vision spans are all that counts.
        """
        self._seed = seed
        self._keyframe = 0
        self._steps = 0
        self.age = np.zeros(layout.num_vision, dtype=np.int32)

    def restart(self, frame: PatchFrame) -> None:
        """Take note of a keyframe: every token was computed from this frame."""
        self._keyframe = zlib.crc32(frame.energy.tobytes())
        self._steps = 0
        self.age = np.zeros_like(self.age)

    def draw(self, rule: ReusePlan, layout: TokenLayout) -> ReusePlan:
        """Draw the tokens of the next step; the state is unchanged."""
        return draw_plan(rule, layout, self.age, (self._seed, self._keyframe, self._steps))

    def ran(self, plan: ReusePlan, layout: TokenLayout) -> None:
        """Take note that a drawn plan ran."""
        self._steps += 1
        self.age += 1
        self.age[computed_vision(plan.recompute[-1], layout)] = 0
