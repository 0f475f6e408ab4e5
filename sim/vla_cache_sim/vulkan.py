"""A Vulkan driver for SAPIEN, ManiSkill's renderer, with or without a GPU.

Without a GPU Mesa's lavapipe draws on the CPU. SAPIEN needs a recent one: Mesa 22.3 (Debian 12)
fails, 25.0 works. It is looked for in this order:

    $VK_ICD_FILENAMES, $VK_DRIVER_FILES         whoever sets them knows better
    ~/.cache/vla_cache_ros/vulkan               where requirements/vulkan.sh puts it
    /etc/vulkan/icd.d, /usr/share/vulkan/icd.d  the system's, if recent enough

NVIDIA's driver is taken beside it where there is one, and preferred.
"""

import ctypes
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vla_cache_ros.core.errors import ConfigError, SimulatorError
from vla_cache_ros.resources import resource_folder

SYSTEM_FOLDERS = (Path('/etc/vulkan/icd.d'), Path('/usr/share/vulkan/icd.d'))
SELECTING_VARIABLES = ('VK_ICD_FILENAMES', 'VK_DRIVER_FILES')
OLDEST_API = (1, 3, 250)
"""Oldest Vulkan version of a lavapipe that is tried; Mesa 22.3 has 1.3.230, Mesa 25.0 1.4.305."""
CPU_DEVICE = 'pci:0000:00:00.0'
"""How SAPIEN calls lavapipe's device."""


def cache_folder() -> Path:
    """Where requirements/vulkan.sh puts the driver."""
    base = Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache')
    return base / 'vla_cache_ros' / 'vulkan'


def install_command() -> str:
    """The command that gets lavapipe."""
    try:
        return f'bash {resource_folder("requirements") / "vulkan.sh"}'
    except ConfigError:
        return 'apt-get install mesa-vulkan-drivers (Mesa 24 or later)'


def find_drivers(system: Sequence[Path] = SYSTEM_FOLDERS) -> list[Path]:
    """Driver manifests (ICD files) to offer SAPIEN: NVIDIA's, then one lavapipe.

    Args:
        system: The system's folders of manifests.
    """
    nvidia = [path for folder in system for path in sorted(folder.glob('nvidia*.json'))]
    candidates = [
        path
        for folder in (cache_folder(), *system)
        for path in sorted(folder.glob('lvp_icd*.json'))
    ]
    recent = [path for path in candidates if _api_version(path) >= OLDEST_API]
    return [*nvidia, *recent[:1]]


def prepare_driver() -> None:
    """Choose the driver for this process; to be called before SAPIEN first renders.

    Raises:
        SimulatorError: There is none; the message holds the command that gets one.
    """
    if any(os.environ.get(name) for name in SELECTING_VARIABLES):
        return
    drivers = find_drivers()
    if not drivers:
        raise SimulatorError(
            "SAPIEN needs a Vulkan driver and there is none: neither NVIDIA's nor Mesa's "
            f'lavapipe of Mesa 24 or later (looked in {cache_folder()}, '
            f'{", ".join(map(str, SYSTEM_FOLDERS))}). Get lavapipe with: {install_command()}'
        )
    os.environ['VK_ICD_FILENAMES'] = os.pathsep.join(map(str, drivers))
    if drivers[-1].is_relative_to(cache_folder()):
        _preload(cache_folder())


def render_device() -> Any:
    """The device that SAPIEN draws on: the first GPU of NVIDIA's, else the CPU.

    Returns:
        A sapien.Device.

    Raises:
        SimulatorError: None of them can draw.
    """
    import sapien

    for name in ('cuda', CPU_DEVICE):
        try:
            device = sapien.Device(name)
        except RuntimeError:
            continue
        if device.can_render():
            return device
    drivers = next((os.environ[name] for name in SELECTING_VARIABLES if name in os.environ), '')
    raise SimulatorError(
        f'no Vulkan device can draw with the driver {drivers or "of the system"}. '
        f'Unset {" and ".join(SELECTING_VARIABLES)}, or get a working driver with: '
        f'{install_command()}'
    )


def _api_version(manifest: Path) -> tuple[int, ...]:
    """The Vulkan version that a manifest states; (0,) where it states none."""
    try:
        icd = json.loads(manifest.read_text(encoding='utf-8'))['ICD']
        return tuple(int(part) for part in str(icd['api_version']).split('.'))
    except (OSError, ValueError, KeyError, TypeError):
        return (0,)


def _preload(folder: Path) -> None:
    """Load the libraries that came with the driver, so that it finds them by their names.

    They depend on one another: each pass loads those whose needs are met.
    """
    waiting = sorted(folder.rglob('*.so.*'))
    while waiting:
        failed = [library for library in waiting if not _loads(library)]
        if len(failed) == len(waiting):
            return
        waiting = failed


def _loads(library: Path) -> bool:
    try:
        ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
    except OSError:
        return False
    return True
