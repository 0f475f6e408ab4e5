"""SIMPLER's Google robot, on the older SimplerEnv in a Python environment of the user's own."""

import os
from collections.abc import Sequence

from vla_cache_ros.core.errors import SimulatorError, UnknownNameError
from vla_cache_sim.remote.client import RemoteEnvironment
from vla_cache_sim.remote.process import package_versions, python_worker
from vla_cache_sim.suites import find_suite

PYTHON_VARIABLE = 'VLA_CACHE_GOOGLE_ROBOT_PYTHON'
IMAGE_HEIGHT_PX = 512
PACKAGES = ('mani-skill2-real2sim', 'sapien', 'numpy')
HINT = (
    "SIMPLER's Google robot needs SAPIEN 2 and an NVIDIA GPU: install "
    'github.com/simpler-env/ManiSkill2_real2sim in a Python environment of its own (3.10 or 3.11; '
    'docs/remote_environments.md has the commands) and name its interpreter: '
    f'export {PYTHON_VARIABLE}=/path/to/python'
)


def google_robot_python() -> str:
    """The interpreter that $VLA_CACHE_GOOGLE_ROBOT_PYTHON names.

    Raises:
        SimulatorError: It names none.
    """
    python = os.environ.get(PYTHON_VARIABLE, '')
    if not python:
        raise SimulatorError(HINT)
    return python


def make_env(
    suite: str,
    task: int = 0,
    image_size_px: int = IMAGE_HEIGHT_PX,
    cameras: Sequence[str] | None = None,
) -> RemoteEnvironment:
    """Start the Google robot.

    Args:
        suite: One of its suites.
        task: Task index in the suite.
        image_size_px: Not used: images are 512 x 640, the published camera; checkpoints resize
            them by themselves.
        cameras: Cameras that somebody counts on; it always shows all that it has.

    Raises:
        UnknownNameError: There is no such suite or camera.
        ConfigError: There is no such task.
        SimulatorError: The environment is not there, or cannot render.
    """
    env = RemoteEnvironment(
        python_worker(google_robot_python(), 'google_robot.py:make'),
        {'suite': find_suite(suite, 'google_robot').name, 'task': task},
        hint=HINT,
    )
    for camera in cameras or ():
        if camera not in env.cameras:
            env.close()
            raise UnknownNameError('camera', camera, env.cameras)
    return env


def versions() -> dict[str, str]:
    """Package -> version in the user's environment."""
    return package_versions(google_robot_python(), PACKAGES, HINT)
