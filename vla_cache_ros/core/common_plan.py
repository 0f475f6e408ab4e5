r"""Plans of equal shape for sessions that run together in one batch.

A batch is a rectangle: in each group every session runs equally many tokens of each camera c. A
session that would reuse more than another recomputes some of those tokens all the same, which
costs work and never accuracy.

    depth_t       = groups in which token t runs by the session's own plan
    K_gc          = max over sessions of |recompute_g of camera c|
    recompute'_gc = the first K_gc tokens of camera c by (depth, age), both descending, then index

The session's own recompute_gc is such a prefix, too, so nothing that had to run is left out; and
as K_gc falls with g, the new plans are nested like the old ones.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from vla_cache_ros.core.errors import ConfigError
from vla_cache_ros.core.layout import TokenLayout
from vla_cache_ros.core.plan import PatchStatus, ReusePlan


def common_plans(plans: Sequence[ReusePlan], layout: TokenLayout) -> tuple[ReusePlan, ...]:
    """Plans that run equally many tokens per group and camera.

    Args:
        plans: One per session, with the same layer groups.
        layout: Has the camera spans and the length that all of them share.

    Returns:
        Each plan recomputes at least what the given one did; equal plans come back as they are.

    Raises:
        ConfigError: The plans differ in their layer groups or in their number of tokens.
    """
    first = plans[0]
    for plan in plans:
        if (plan.groups, plan.num_tokens) != (first.groups, layout.num_tokens):
            raise ConfigError(
                f'plans of one batch need the same layer groups and {layout.num_tokens} tokens; '
                f'got {plan.groups} with {plan.num_tokens} and {first.groups}.'
            )
    runs = [_runs(plan) for plan in plans]  # per session: bool [G, N]
    wider = [own.copy() for own in runs]
    for camera in layout:
        span = slice(camera.start, camera.stop)
        counts = np.max([own[:, span].sum(axis=1) for own in runs], axis=0)
        for plan, own, new in zip(plans, runs, wider, strict=True):
            order = camera.start + _order(own[:, span], _ages(plan, layout, span))
            for group, count in enumerate(counts):
                new[group, order[:count]] = True
    return tuple(
        plan if np.array_equal(own, new) else _with_runs(plan, new, layout)
        for plan, own, new in zip(plans, runs, wider, strict=True)
    )


def _runs(plan: ReusePlan) -> NDArray[np.bool_]:
    """Which token runs in which group, [G, N]."""
    runs = np.zeros((len(plan.groups), plan.num_tokens), dtype=np.bool_)
    for group, slots in enumerate(plan.recompute):
        runs[group, slots] = True
    return runs


def _ages(plan: ReusePlan, layout: TokenLayout, span: slice) -> NDArray[np.int32]:
    """The ages of one camera's tokens."""
    first = layout.vision[0]
    return plan.age[span.start - first : span.stop - first]


def _order(runs: NDArray[np.bool_], age: NDArray[np.int32]) -> NDArray[np.intp]:
    """One camera's tokens, deepest and then oldest first."""
    return np.lexsort((-age, -runs.sum(axis=0)))


def _with_runs(plan: ReusePlan, runs: NDArray[np.bool_], layout: TokenLayout) -> ReusePlan:
    """The plan with other tokens running; what now runs in every group is not reused."""
    status = plan.status.copy()
    everywhere = runs[-1, slice(*layout.vision)]
    status[everywhere & (status == PatchStatus.REUSED)] = PatchStatus.REFRESHED
    recompute = tuple(np.flatnonzero(group) for group in runs)
    return replace(plan, recompute=recompute, status=status)
