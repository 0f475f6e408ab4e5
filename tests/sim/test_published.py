import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from vla_cache_ros.cli.environments import environment_factory, simulator_versions
from vla_cache_ros.core.errors import ConfigError, SimulatorError, UnknownNameError
from vla_cache_sim.libero import LiberoEnv, make_env
from vla_cache_sim.published import PYTHON_VARIABLE
from vla_cache_sim.suites import suites_of


def test_without_its_environment_the_command_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setenv(PYTHON_VARIABLE, str(tmp_path / 'python'))
    with pytest.raises(SimulatorError, match='make setup-published'):
        environment_factory('published')('libero_object', 0, 256)
    with pytest.raises(SimulatorError, match='make setup-published'):
        simulator_versions(['libero_object'], 'published')
    monkeypatch.setenv(PYTHON_VARIABLE, sys.executable)
    with pytest.raises(UnknownNameError, match='simpler_bridge'):
        environment_factory('published')('simpler', 0, 256)


def test_other_simulators_are_the_same_in_both_stacks():
    suites = ['maniskill', 'simpler_bridge']
    assert simulator_versions(suites, 'published') == simulator_versions(suites, 'current')


@pytest.mark.sim
@pytest.mark.slow
def test_the_published_stack_takes_the_same_steps_and_shows_brighter_scenes():
    versions = simulator_versions(['libero_object'], 'published')
    assert versions['mujoco'] == '2.3.7'
    assert versions['numpy'] == '1.26.4'
    published = environment_factory('published')('libero_object', 3, 64)
    current = make_env('libero_object', 3, image_size_px=64)
    assert isinstance(current, LiberoEnv)
    assert published.instruction == current.instruction
    options = {'task': 3, 'init_state': 2}
    observation, info = published.reset(seed=0, options=options)
    ours, _ = current.reset(seed=0, options=options)
    assert info['success'] is False
    assert {name: array.shape for name, array in observation.items()} == {
        name: array.shape for name, array in ours.items()
    }
    # The same place within a hundredth of a millimetre, upright; the floor is brighter.
    assert observation['ee_position_m'] == pytest.approx(ours['ee_position_m'], abs=1e-4)
    assert observation['ee_quaternion_xyzw'] == pytest.approx(ours['ee_quaternion_xyzw'], abs=1e-3)
    images = [view['agentview'].mean(axis=-1) for view in (observation, ours)]
    assert np.corrcoef(images[0].ravel(), images[1].ravel())[0, 1] > 0.8
    assert images[0].mean() > images[1].mean() + 10

    begin = observation['ee_position_m']
    for step in range(3):
        _, success, truncated, info = published.advance(np.array([1, 0, 0, 0, 0, 0, -1.0]))
        assert (success, truncated, info['elapsed_steps']) == (False, False, step + 1)
    assert published.observe()['ee_position_m'][0] > begin[0] + 0.01
    with pytest.raises(ConfigError, match='0..49'):
        published.reset(options={'task': 3, 'init_state': 50})
    published.close()
    current.close()


@pytest.mark.sim
def test_the_published_step_limits_and_constants_are_ours():
    from vla_cache_sim.published import published_python
    from vla_cache_sim.remote.process import __file__ as process_file

    script = (
        'import json, published_libero as p;'
        'print(json.dumps([p.STEP_LIMITS, p.WAITING_STEPS, p.PublishedLibero.cameras]))'
    )
    printed = subprocess.run(
        [str(published_python()), '-c', script],
        env={**os.environ, 'PYTHONPATH': str(Path(process_file).parent)},
        capture_output=True,
        check=True,
        text=True,
    ).stdout.splitlines()[-1]
    limits = {name: suite.step_limit for name, suite in suites_of('libero').items()}
    assert printed == json.dumps([limits, 10, ['agentview', 'wrist']])
