"""Find the package's own files: configurations, launch files, weights, pinned requirements.

An installed package keeps them in share/vla_cache_ros, found through the ament index as ROS 2
prescribes (or below the Python prefix, after a plain pip install). An editable install has no
share folder: there the source tree serves.
"""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

from vla_cache_ros.core.errors import ConfigError, UnknownNameError

PACKAGE = 'vla_cache_ros'
MARKER = Path('share', 'ament_index', 'resource_index', 'packages', PACKAGE)
SOURCE_ROOT = Path(__file__).resolve().parents[1]
# Kind -> folder in the source tree; in a share folder it is called after its kind.
SOURCE_FOLDERS = {
    'config': 'config',
    'launch': 'launch',
    'requirements': 'requirements',
    'weights': 'models/weights',
}


def share_folder() -> Path | None:
    """Return the installed share/vla_cache_ros, or None where there is none.

    The first prefix on AMENT_PREFIX_PATH that carries the package's marker wins, as in the ament
    index; then the prefix of the running Python.
    """
    prefixes = os.environ.get('AMENT_PREFIX_PATH', '').split(os.pathsep)
    for prefix in [*filter(None, prefixes), sys.prefix]:
        if (Path(prefix) / MARKER).is_file():
            return Path(prefix) / 'share' / PACKAGE
    return None


def resource_folder(kind: str) -> Path:
    """Return the folder that holds the files of one kind.

    Args:
        kind: 'config', 'launch', 'requirements' or 'weights'.

    Raises:
        UnknownNameError: There is no such kind.
        ConfigError: Neither the installed package nor the source tree has that folder.
    """
    if kind not in SOURCE_FOLDERS:
        raise UnknownNameError('kind of resource', kind, SOURCE_FOLDERS)
    candidates = list(_candidates(kind))
    for folder in candidates:
        if folder.is_dir():
            return folder
    raise ConfigError(
        f'the {kind} folder of {PACKAGE} is missing; looked in '
        f'{", ".join(str(folder) for folder in candidates)}. Install the package again.'
    )


def find_resource(kind: str, name: str) -> Path:
    """Return the path of one of the package's files.

    Args:
        kind: 'config', 'launch', 'requirements' or 'weights'.
        name: The file's name inside its folder.

    Raises:
        UnknownNameError: There is no such kind or file; the message lists those that exist.
        ConfigError: The whole folder is missing.
    """
    folder = resource_folder(kind)
    path = folder / name
    if not path.is_file():
        present = sorted(entry.name for entry in folder.iterdir() if entry.is_file())
        raise UnknownNameError(f'{kind} file', name, present, f'Looked in {folder}.')
    return path


def install_command(layer: str) -> str:
    """Return the command that installs one layer of requirements into the running Python.

    Args:
        layer: A file of the requirements folder without its ending, e.g. 'libero'.

    Raises:
        UnknownNameError: There is no such layer.
    """
    return f'{sys.executable} -m pip install -r {find_resource("requirements", f"{layer}.txt")}'


def _candidates(kind: str) -> Iterator[Path]:
    share = share_folder()
    if share is not None:
        yield share / kind
    yield SOURCE_ROOT / SOURCE_FOLDERS[kind]
