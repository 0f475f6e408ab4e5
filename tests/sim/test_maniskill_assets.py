import subprocess
import sys
from pathlib import Path

import pytest

from vla_cache_ros.core.errors import SimulatorError, UnknownNameError
from vla_cache_sim import maniskill_assets
from vla_cache_sim.maniskill_assets import (
    BRIDGE_FOLDER,
    TASKS,
    ManiSkillTask,
    check_assets,
    find_task,
    prepare_import,
)
from vla_cache_sim.suites import suites_of

CARROT, _, _, EGGPLANT = TASKS['simpler_bridge']


@pytest.fixture
def assets(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Everything that the carrot's task needs, as empty files; returns the dataset's folder."""
    monkeypatch.setenv('MS_ASSET_DIR', str(tmp_path))
    dataset = tmp_path / 'data' / BRIDGE_FOLDER
    names = [
        'custom/info_bridge_custom_v0.json',
        'stages/bridge_table_1_v1.glb',
        'real_inpainting/bridge_real_eval_1.png',
        *(f'custom/models/{model}/collision.obj' for model in CARROT.models),
        *(f'custom/models/{model}/textured.dae' for model in CARROT.models),
        '../../robots/widowx/wx250s.urdf',
    ]
    for name in names:
        path = Path(dataset, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return dataset


def test_the_tasks_are_those_of_the_suites():
    suites = suites_of('maniskill')
    assert suites.keys() == TASKS.keys()
    for name, suite in suites.items():
        assert len(TASKS[name]) == suite.tasks == len(suite.instructions)
        assert max(task.step_limit for task in TASKS[name]) == suite.step_limit
        assert all(task.init_states >= suite.init_states for task in TASKS[name])


def test_what_is_there_is_not_complained_about(assets: Path):
    check_assets(CARROT)


@pytest.mark.parametrize('task', TASKS['maniskill'])
def test_manisksills_own_tasks_need_no_files(
    task: ManiSkillTask, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setenv('MS_ASSET_DIR', str(tmp_path))
    check_assets(task)


def test_missing_models_are_named_with_the_command(assets: Path):
    with pytest.raises(SimulatorError) as caught:
        check_assets(EGGPLANT)
    message = str(caught.value)
    for name in ('PutEggplantInBasketScene-v1', 'models/eggplant/collision.obj', 'models/sink'):
        assert name in message
    assert 'mani_skill.utils.download_asset bridge_v2_real2sim -y' in message
    assert 'widowx250s' not in message  # the robot is there


def test_a_missing_robot_has_a_command_of_its_own(assets: Path):
    (assets / '../../robots/widowx/wx250s.urdf').resolve().unlink()
    with pytest.raises(SimulatorError, match='download_asset widowx250s -y') as caught:
        check_assets(CARROT)
    assert 'bridge_v2_real2sim -y' not in str(caught.value)


def test_without_any_file_both_commands_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.delenv('MS_ASSET_DIR', raising=False)
    monkeypatch.setenv('HOME', str(tmp_path))
    with pytest.raises(SimulatorError, match=r'bridge_v2_real2sim -y && .*widowx250s -y'):
        check_assets(CARROT)


def test_unknown_tasks_and_suites_are_refused_with_the_valid_ones():
    with pytest.raises(UnknownNameError, match='valid: 0, 1, 2, 3'):
        find_task('simpler_bridge', 4)
    with pytest.raises(UnknownNameError, match='simpler_bridge, maniskill'):
        find_task('libero_goal', 0)


def test_without_maniskill_the_message_holds_the_command(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(maniskill_assets.importlib.util, 'find_spec', lambda name: None)
    with pytest.raises(SimulatorError, match=r'pip install mani-skill==3\.0\.1'):
        prepare_import.__wrapped__()


@pytest.mark.simpler
@pytest.mark.slow
def test_missing_files_end_in_an_error_not_in_a_question(tmp_path: Path):
    code = 'from vla_cache_sim.maniskill import make_env; make_env("simpler_bridge", 3).reset()'
    result = subprocess.run(
        [sys.executable, '-c', code],
        env={'MS_ASSET_DIR': str(tmp_path), 'HOME': str(tmp_path)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 1
    assert result.stdout == ''
    assert 'SimulatorError: PutEggplantInBasketScene-v1 lacks files' in result.stderr
