r"""Which of the actions that the guard has committed run while an observation is worked on.

With the first committed action due at t0, one each period, an observation of stamp s and an
inference that is expected to take L:

    first = round((s - t0) / period),    d = ceil(L / period)
    committed = actions[first : first + d]

so that action 0 of the result is due with the observation, as a chunk's own action 0 is.
"""

import math

import numpy as np
from numpy.typing import NDArray


def committed_actions(
    actions: NDArray[np.float32],
    first_due_ns: int,
    period_ns: int,
    stamp_ns: int,
    expected_ns: int,
) -> NDArray[np.float32] | None:
    """Cut out the actions that run from an observation to the chunk that follows from it.

    Args:
        actions: What runs next, [n, 7].
        first_due_ns: t0, when the first of them is due.
        period_ns: Time from one action to the next, > 0.
        stamp_ns: s, the observation's stamp.
        expected_ns: L, the expected time from the stamp to the next chunk.

    Returns:
        [d, 7], fewer where fewer are committed; None where nothing is committed at the
        observation's stamp, or what is holds NaN or infinity.
    """
    first = round((stamp_ns - first_due_ns) / period_ns)
    if first < 0:
        return None
    chosen = actions[first : first + math.ceil(expected_ns / period_ns)]
    return chosen if len(chosen) and np.isfinite(chosen).all() else None
