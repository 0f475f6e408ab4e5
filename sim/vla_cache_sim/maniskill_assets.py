"""ManiSkill's tasks as data, the files that they need, and all that precedes its import.

ManiSkill asks on stdin whether to download what is missing. Here the files are looked for first,
and the message says what is missing and how to get it.
"""

import importlib
import importlib.util
import logging
import os
import sys
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from vla_cache_ros.core.errors import SimulatorError, UnknownNameError
from vla_cache_sim.suites import find_suite
from vla_cache_sim.vulkan import prepare_driver

INSTALL_COMMAND = 'pip install mani-skill==3.0.1  (in the source tree: make setup-simpler)'
BRIDGE_FOLDER = Path('tasks', 'bridge_v2_real2sim_dataset')
MESH_NAMES = ('textured.obj', 'textured.dae', 'textured.glb')


@dataclass(frozen=True)
class BridgeScene:
    """What SIMPLER's WidowX stands at: files below BRIDGE_FOLDER.

    Attributes:
        stage: The table's or sink's mesh.
        photograph: The real background that is drawn over the rendered one.
        furniture: Models that belong to it.
    """

    stage: str
    photograph: str
    furniture: tuple[str, ...] = ()


TABLE = BridgeScene('bridge_table_1_v1.glb', 'bridge_real_eval_1.png')
SINK = BridgeScene('bridge_table_1_v2.glb', 'bridge_sink.png', ('sink',))


@dataclass(frozen=True)
class ManiSkillTask:
    """One task.

    Attributes:
        env_id: ManiSkill's name of it.
        step_limit: Control steps before an episode is truncated.
        init_states: Initial states that exist.
        judged_at_end: Whether only the state after the last step counts, as SIMPLER's published
            evaluation judges; else an episode ends with its first success.
        scene: Bridge's scene; None: everything that the task needs is in ManiSkill's package.
        catalogue: Name of the file that holds the models' sizes.
        models: The objects, folders of models.
    """

    env_id: str
    step_limit: int
    init_states: int
    judged_at_end: bool = False
    scene: BridgeScene | None = None
    catalogue: str = 'info_bridge_custom_v0.json'
    models: tuple[str, ...] = ()


# Seeds serve as initial states of ManiSkill's own tasks.
_SEEDS = 2**31

TASKS: dict[str, tuple[ManiSkillTask, ...]] = {
    'simpler_bridge': (
        ManiSkillTask(
            'PutCarrotOnPlateInScene-v1',
            step_limit=60,
            init_states=24,
            judged_at_end=True,
            scene=TABLE,
            models=('bridge_carrot_generated_modified', 'bridge_plate_objaverse_larger'),
        ),
        ManiSkillTask(
            'PutSpoonOnTableClothInScene-v1',
            step_limit=60,
            init_states=24,
            judged_at_end=True,
            scene=TABLE,
            models=('bridge_spoon_generated_modified', 'table_cloth_generated_shorter'),
        ),
        ManiSkillTask(
            'StackGreenCubeOnYellowCubeBakedTexInScene-v1',
            step_limit=60,
            init_states=24,
            judged_at_end=True,
            scene=TABLE,
            catalogue='info_bridge_custom_baked_tex_v0.json',
            models=('baked_green_cube_3cm', 'baked_yellow_cube_3cm'),
        ),
        ManiSkillTask(
            'PutEggplantInBasketScene-v1',
            step_limit=120,
            init_states=64,
            judged_at_end=True,
            scene=SINK,
            models=('eggplant', 'dummy_sink_target_plane'),
        ),
    ),
    'maniskill': (
        ManiSkillTask('PickCube-v1', step_limit=150, init_states=_SEEDS),
        ManiSkillTask('StackCube-v1', step_limit=150, init_states=_SEEDS),
    ),
}


def find_task(suite: str, index: int) -> ManiSkillTask:
    """Look up a task.

    Raises:
        UnknownNameError: ManiSkill runs no such suite, or it has no task of that index.
    """
    tasks = TASKS[find_suite(suite, 'maniskill').name]
    if not 0 <= index < len(tasks):
        raise UnknownNameError(f'task of {suite}', index, range(len(tasks)))
    return tasks[index]


def asset_folder() -> Path:
    """Where ManiSkill looks for its data."""
    return Path(os.environ.get('MS_ASSET_DIR') or Path.home() / '.maniskill') / 'data'


def check_assets(task: ManiSkillTask) -> None:
    """Make sure of ManiSkill and of a task's files; imports nothing.

    Raises:
        SimulatorError: Some are missing; the message names them and the commands that get them.
    """
    _check_installed()
    if missing := missing_assets(task):
        files = ', '.join(str(path) for paths in missing.values() for path in paths)
        raise SimulatorError(
            f'{task.env_id} lacks files below {asset_folder()}: {files}. Get them with: '
            f'{download_command(missing)} (or set MS_ASSET_DIR to the folder whose subfolder '
            'data/ holds them)'
        )


def missing_assets(task: ManiSkillTask) -> dict[str, list[Path]]:
    """ManiSkill's name of a download -> the files of it that a task needs and that are missing."""
    if task.scene is None:
        return {}
    missing = {
        'bridge_v2_real2sim': list(_missing_scene_files(task, task.scene)),
        'widowx250s': list(_missing([Path('robots', 'widowx', 'wx250s.urdf')])),
    }
    return {name: paths for name, paths in missing.items() if paths}


def download_command(names: Iterable[str]) -> str:
    """The command that gets downloads by ManiSkill's names for them."""
    return ' && '.join(
        f'{sys.executable} -m mani_skill.utils.download_asset {name} -y' for name in names
    )


@cache
def prepare_import() -> None:
    """Make `import mani_skill.envs` silent and renderable.

    Raises:
        SimulatorError: ManiSkill or a Vulkan driver is missing; the message holds the command
            that gets it.
    """
    _check_installed()
    prepare_driver()
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # SAPIEN's own copy of Vulkan's loader will do
        importlib.import_module('mani_skill.envs')
    # Every build of an environment would warn of ManiSkill's own settings.
    logging.getLogger('mani_skill ').setLevel(logging.ERROR)


def _check_installed() -> None:
    if importlib.util.find_spec('mani_skill') is None:
        raise SimulatorError(f'ManiSkill is not installed; get it with: {INSTALL_COMMAND}')


def _missing_scene_files(task: ManiSkillTask, scene: BridgeScene) -> Iterator[Path]:
    custom = BRIDGE_FOLDER / 'custom'
    yield from _missing(
        [
            custom / task.catalogue,
            BRIDGE_FOLDER / 'stages' / scene.stage,
            BRIDGE_FOLDER / 'real_inpainting' / scene.photograph,
        ]
    )
    for model in (*task.models, *scene.furniture):
        folder = custom / 'models' / model
        yield from _missing([folder / 'collision.obj'])
        if not any((asset_folder() / folder / name).is_file() for name in MESH_NAMES):
            yield folder / 'textured.{obj,dae,glb}'


def _missing(paths: list[Path]) -> Iterator[Path]:
    return (path for path in paths if not (asset_folder() / path).is_file())
