"""The LIBERO suites that this package offers, as data."""

from dataclasses import dataclass

from vla_cache_ros.core.errors import UnknownNameError

WAITING_STEPS = 10
"""Steps with the null action after every reset, so that the objects come to rest (official)."""

CONTROL_FREQUENCY_HZ = 20.0
"""Actions per second of simulated time in every LIBERO suite."""

EVALUATION_STATES = 50
"""Official initial states per task."""


@dataclass(frozen=True)
class Suite:
    """One LIBERO suite of ten tasks."""

    name: str
    """LIBERO's own name, e.g. 'libero_object'."""
    gym_id: str
    """The registered gymnasium id."""
    step_limit: int
    """Control steps after the waiting steps before an episode is truncated (published limits)."""
    tasks: int = 10
    """Number of tasks."""


SUITES: dict[str, Suite] = {
    suite.name: suite
    for suite in (
        Suite('libero_spatial', 'vla_cache_sim/LiberoSpatial-v0', step_limit=220),
        Suite('libero_object', 'vla_cache_sim/LiberoObject-v0', step_limit=280),
        Suite('libero_goal', 'vla_cache_sim/LiberoGoal-v0', step_limit=300),
        Suite('libero_10', 'vla_cache_sim/Libero10-v0', step_limit=520),
    )
}


def find_suite(name: str) -> Suite:
    """Look a suite up by LIBERO's name.

    Raises:
        UnknownNameError: There is no such suite.
    """
    if name not in SUITES:
        raise UnknownNameError('suite', name, SUITES)
    return SUITES[name]
