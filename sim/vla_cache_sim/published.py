"""LIBERO in the versions of the published evaluations, in a Python environment of its own.

MuJoCo 3.3.3 and later render LIBERO's scenes darker than the images that published checkpoints
were trained on (the mean pixel of libero_object by 36 of 255), so figures that are to be compared
with papers come from here.
"""

import os
import sys
from pathlib import Path

from vla_cache_ros.core.errors import ConfigError
from vla_cache_sim.remote.client import RemoteEnvironment
from vla_cache_sim.remote.process import package_versions, python_worker
from vla_cache_sim.suites import find_suite

PYTHON_VARIABLE = 'VLA_CACHE_PUBLISHED_PYTHON'
PACKAGES = ('mujoco', 'numpy')
HINT = f'Set it up with: make setup-published, or name its Python in {PYTHON_VARIABLE}.'


def published_python() -> Path:
    """The environment's interpreter: $VLA_CACHE_PUBLISHED_PYTHON, else beside this one."""
    named = os.environ.get(PYTHON_VARIABLE)
    return Path(named or Path(sys.prefix).parent / '.venv-published' / 'bin' / 'python')


def make_env(suite: str, task: int, image_size_px: int) -> RemoteEnvironment:
    """Start LIBERO as published.

    Args:
        suite: One of LIBERO's.
        task: Task index in the suite.
        image_size_px: Side of the square images.

    Raises:
        UnknownNameError: There is no such suite.
        ConfigError: There is no such task.
        SimulatorError: The environment is not set up; the message holds the command.
    """
    name = find_suite(suite, 'libero').name
    if image_size_px < 16:
        raise ConfigError(f'image_size_px must be 16 or more, not {image_size_px}')
    return RemoteEnvironment(
        python_worker(published_python(), 'published_libero.py:make'),
        {'suite': name, 'task': task, 'image_size_px': image_size_px},
        environ={'MUJOCO_GL': os.environ.get('MUJOCO_GL', 'egl')},
        hint=HINT,
    )


def versions() -> dict[str, str]:
    """Package -> version, of those that are not this environment's own."""
    return package_versions(published_python(), PACKAGES, HINT)
