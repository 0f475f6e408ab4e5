r"""The guard's limits on a displacement, each a pure function of numbers.

With the command period dt, a displacement d in metres or radians is the velocity v = d / dt:

    speed          d' = d min(1, v_max dt / |d|)
    acceleration   d' = d_before + e min(1, a_max dt^2 / |e|),   e = d - d_before
    jump           |d - d_before| <= jump
    workspace      x + d in the box, axis by axis; what leads out of it becomes 0

Speed keeps the direction. Acceleration stays within any convex set that holds both displacements,
so that it never undoes a limit before it. Workspace only ever turns components to 0.
"""

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]


def limit_length(vector: Vector, limit: float) -> tuple[Vector, bool]:
    """Scale a vector down to a length, keeping its direction.

    Returns:
        The vector, and whether it was longer.
    """
    length = float(np.linalg.norm(vector))
    if length <= limit:
        return vector, False
    return vector * (limit / length), True


def limit_change(vector: Vector, before: Vector, limit: float) -> tuple[Vector, bool]:
    """Bring a vector to within a distance of the one before it.

    Returns:
        The vector, and whether it was farther away.
    """
    change, exceeded = limit_length(vector - before, limit)
    return (before + change, True) if exceeded else (vector, False)


def limit_workspace(
    position: Vector, displacement: Vector, lower: Vector, upper: Vector
) -> tuple[Vector, NDArray[np.bool_], bool]:
    """Keep the end effector in its box.

    Args:
        position: Where it was measured, [3].
        displacement: Where it is to go from there, [3].
        lower: Corner of the box, [3].
        upper: The opposite corner, [3].

    Returns:
        The displacement; per axis whether it was stopped; and whether the position is outside the
        box. From outside, only what leads back, and not out on the other side, passes.
    """
    target = position + displacement
    below, above = position < lower, position > upper
    outside = bool(below.any() or above.any())
    leads_out = ((displacement < 0) & (target < lower)) | ((displacement > 0) & (target > upper))
    leads_back = (below & (displacement > 0)) | (above & (displacement < 0))
    allowed = (leads_back & ~_passes_through(target, below, above, lower, upper)) | (
        ~leads_out & (not outside)
    )
    stopped = ~allowed & (displacement != 0)
    return np.where(allowed, displacement, 0.0), stopped, outside


def _passes_through(
    target: Vector,
    below: NDArray[np.bool_],
    above: NDArray[np.bool_],
    lower: Vector,
    upper: Vector,
) -> NDArray[np.bool_]:
    """Per axis, whether the way back in leads out again on the other side."""
    return (below & (target > upper)) | (above & (target < lower))
