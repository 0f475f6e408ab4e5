"""Which module builds the simulator of a suite; each is imported when it is asked for."""

import importlib
from typing import Any

from vla_cache_sim.suites import find_suite

# Simulator -> the module whose make_env builds it.
_MODULES = {
    'libero': 'vla_cache_sim.libero',
    'maniskill': 'vla_cache_sim.maniskill',
    'google_robot': 'vla_cache_sim.google_robot',
}
# What the published stack runs elsewhere than the current one.
_PUBLISHED = {'libero': 'vla_cache_sim.published'}


def simulator_module(suite: str, published: bool = False) -> Any:
    """The module that builds a suite's simulator: its `make_env(suite, task, ..)`.

    Args:
        suite: Name of the suite.
        published: Whether the versions that papers' figures come from are wanted.

    Raises:
        UnknownNameError: There is no such suite.
    """
    simulator = find_suite(suite).simulator
    elsewhere = _PUBLISHED.get(simulator) if published else None
    return importlib.import_module(elsewhere or _MODULES[simulator])
