import os
import sys

import pytest

from vla_cache_ros.core.errors import ConfigError, UnknownNameError
from vla_cache_ros.resources import (
    MARKER,
    SOURCE_FOLDERS,
    SOURCE_ROOT,
    find_resource,
    install_command,
    resource_folder,
    share_folder,
)


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """An ament prefix with the package's marker and one configuration."""
    prefix = tmp_path / 'prefix'
    (prefix / MARKER).parent.mkdir(parents=True)
    (prefix / MARKER).touch()
    config = prefix / 'share' / 'vla_cache_ros' / 'config'
    config.mkdir(parents=True)
    (config / 'installed.yaml').touch()
    monkeypatch.setenv('AMENT_PREFIX_PATH', os.pathsep.join([str(tmp_path / 'none'), str(prefix)]))
    return prefix


@pytest.fixture
def source_only(monkeypatch, tmp_path):
    """No prefix carries the package: an editable install."""
    monkeypatch.setenv('AMENT_PREFIX_PATH', '')
    monkeypatch.setattr(sys, 'prefix', str(tmp_path))


def test_ament_index_comes_first(installed):
    assert share_folder() == installed / 'share' / 'vla_cache_ros'
    assert find_resource('config', 'installed.yaml').parent == resource_folder('config')
    assert installed in resource_folder('config').parents


def test_folder_missing_from_the_share_falls_back_to_the_source_tree(installed):
    assert resource_folder('requirements') == SOURCE_ROOT / 'requirements'


@pytest.mark.usefixtures('source_only')
@pytest.mark.parametrize('kind', SOURCE_FOLDERS)
def test_source_tree_serves_an_editable_install(kind):
    assert share_folder() is None
    assert resource_folder(kind) == SOURCE_ROOT / SOURCE_FOLDERS[kind]


def test_unknown_file_lists_those_that_exist(installed):
    with pytest.raises(UnknownNameError, match=r"'absent.yaml'; valid: installed\.yaml"):
        find_resource('config', 'absent.yaml')


def test_unknown_kind_lists_the_kinds():
    with pytest.raises(UnknownNameError, match='valid: config, launch, requirements, weights'):
        resource_folder('videos')


@pytest.mark.usefixtures('source_only')
def test_missing_folder_says_where_it_looked(monkeypatch, tmp_path):
    monkeypatch.setattr('vla_cache_ros.resources.SOURCE_ROOT', tmp_path)
    with pytest.raises(ConfigError, match=str(tmp_path)):
        resource_folder('config')


@pytest.mark.usefixtures('source_only')
def test_install_command_names_an_existing_file():
    command = install_command('libero')
    assert command.startswith(f'{sys.executable} -m pip install -r ')
    assert (SOURCE_ROOT / 'requirements' / 'libero.txt').samefile(command.split()[-1])
