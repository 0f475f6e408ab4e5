import json
import os
import subprocess
from pathlib import Path

import pytest

from vla_cache_ros.core.errors import SimulatorError
from vla_cache_ros.resources import SOURCE_ROOT
from vla_cache_sim import vulkan
from vla_cache_sim.vulkan import cache_folder, find_drivers, prepare_driver


@pytest.fixture(autouse=True)
def empty_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    monkeypatch.setattr(vulkan, 'SYSTEM_FOLDERS', (tmp_path / 'etc', tmp_path / 'usr'))
    monkeypatch.setattr(find_drivers, '__defaults__', (vulkan.SYSTEM_FOLDERS,))
    for name in vulkan.SELECTING_VARIABLES:
        monkeypatch.delenv(name, raising=False)


def manifest(path: Path, api_version: str | None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({'ICD': {'api_version': api_version, 'library_path': 'x.so'}}))
    return path


def test_without_a_driver_the_message_holds_the_command():
    with pytest.raises(SimulatorError, match=r'Vulkan driver.*lavapipe.*bash .*vulkan\.sh'):
        prepare_driver()


def test_the_drivers_own_folder_comes_before_the_systems(tmp_path: Path):
    manifest(tmp_path / 'usr/lvp_icd.json', '1.4.305')
    ours = manifest(cache_folder() / 'lvp_icd.json', '1.4.305')
    assert find_drivers() == [ours]


@pytest.mark.parametrize('version', ['1.3.230', 'new', None])
def test_an_old_or_unreadable_lavapipe_of_the_system_is_left_alone(
    tmp_path: Path, version: str | None
):
    manifest(tmp_path / 'usr/lvp_icd.x86_64.json', version)
    assert find_drivers() == []


def test_a_recent_lavapipe_of_the_system_is_taken(monkeypatch, tmp_path: Path):
    path = manifest(tmp_path / 'usr/lvp_icd.x86_64.json', '1.4.305')
    monkeypatch.setenv('VK_ICD_FILENAMES', '')
    prepare_driver()
    assert os.environ['VK_ICD_FILENAMES'] == str(path)


def test_nvidias_driver_comes_first(tmp_path: Path):
    nvidia = manifest(tmp_path / 'etc/nvidia_icd.json', '1.4.300')
    lavapipe = manifest(tmp_path / 'usr/lvp_icd.json', '1.4.305')
    assert find_drivers() == [nvidia, lavapipe]


@pytest.mark.parametrize('name', vulkan.SELECTING_VARIABLES)
def test_the_users_choice_is_kept(monkeypatch: pytest.MonkeyPatch, name: str):
    monkeypatch.setenv(name, '/opt/driver.json')
    before = dict(os.environ)
    prepare_driver()
    assert dict(os.environ) == before


def test_the_script_does_nothing_where_the_driver_is(tmp_path: Path):
    manifest(cache_folder() / 'lvp_icd.json', '1.4.305')
    before = sorted(tmp_path.rglob('*'))
    result = _run_script(PATH='/nowhere')
    assert (result.returncode, result.stdout) == (0, '')
    assert sorted(tmp_path.rglob('*')) == before


def test_the_script_says_what_to_do_where_there_is_no_apt(tmp_path: Path):
    result = _run_script(PATH=str(tmp_path))
    assert result.returncode == 1
    assert 'There is no apt-get here' in result.stdout
    assert 'VK_ICD_FILENAMES' in result.stdout


def _run_script(**environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ['/bin/bash', str(SOURCE_ROOT / 'requirements' / 'vulkan.sh')],
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
