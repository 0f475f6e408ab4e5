"""What the launch files and parameter files say is true: nothing in them is unknown to the code.

The launch system itself is in no package registry, so here the files are checked as data.
"""

import dataclasses
import json
import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
LAUNCH_FILES = sorted((ROOT / 'launch').glob('*.yaml'))
CONFIG_FILES = sorted((ROOT / 'config').glob('*.yaml'))
ARGUMENTS = {'namespace', 'use_sim_time', 'params_file', 'autostart'}
COMPOSED = {'bringup': ('policy_node', 'sim_bridge', 'command_guard', 'monitor')}

pytestmark = pytest.mark.ros  # the tables of parameters belong to the nodes


def tables() -> dict[str, type]:
    from vla_cache_ros.nodes.parameter_tables.overview import NODES

    return NODES


def entities(path: Path, kind: str) -> list[dict]:
    launch = yaml.safe_load(path.read_text(encoding='utf-8'))['launch']
    assert all(len(entity) == 1 for entity in launch)
    return [entity[kind] for entity in launch if kind in entity]


def executables() -> dict[str, str]:
    """Executable -> 'module:function', from setup.py's entry points."""
    text = (ROOT / 'setup.py').read_text(encoding='utf-8')
    return dict(re.findall(r"'(\w+) = (vla_cache_ros\.nodes\.[\w.]+:\w+)'", text))


def names(path: Path) -> str:
    return path.name


def test_there_is_something_to_check():
    assert len(LAUNCH_FILES) >= 3
    assert len(CONFIG_FILES) >= 3
    assert set(executables()) == {*tables(), *COMPOSED}


@pytest.mark.parametrize('target', executables().values(), ids=executables())
def test_every_executable_can_be_imported(target):
    import importlib

    module, function = target.split(':')
    assert callable(getattr(importlib.import_module(module), function))


@pytest.mark.parametrize('path', LAUNCH_FILES, ids=names)
def test_launch_file_has_only_known_entities(path):
    launch = yaml.safe_load(path.read_text(encoding='utf-8'))['launch']
    assert {kind for entity in launch for kind in entity} == {'arg', 'node'}


@pytest.mark.parametrize('path', LAUNCH_FILES, ids=names)
def test_every_executable_exists(path):
    for node in entities(path, 'node'):
        assert node['pkg'] == 'vla_cache_ros'
        assert node['exec'] in executables()


@pytest.mark.parametrize('path', LAUNCH_FILES, ids=names)
def test_every_node_takes_namespace_and_parameter_file(path):
    for node in entities(path, 'node'):
        assert node['namespace'] == '$(var namespace)'
        assert {'from': '$(var params_file)'} in node['param']


@pytest.mark.parametrize('path', LAUNCH_FILES, ids=names)
def test_arguments_are_declared_described_and_used(path):
    declared = {argument['name'] for argument in entities(path, 'arg')}
    assert declared >= ARGUMENTS
    used = set(re.findall(r'\$\(var (\w+)\)', path.read_text(encoding='utf-8')))
    assert used == declared
    for argument in entities(path, 'arg'):
        assert argument['description'].endswith('.')
        assert isinstance(argument['default'], str)


@pytest.mark.parametrize('path', LAUNCH_FILES, ids=names)
def test_default_parameter_file_exists(path):
    (default,) = (
        argument['default']
        for argument in entities(path, 'arg')
        if argument['name'] == 'params_file'
    )
    prefix = '$(find-pkg-share vla_cache_ros)/'
    assert default.startswith(prefix)
    assert (ROOT / default.removeprefix(prefix)).is_file()


@pytest.mark.parametrize('path', LAUNCH_FILES, ids=names)
def test_every_parameter_set_at_launch_is_declared(path):
    for node in entities(path, 'node'):
        members = COMPOSED.get(node['exec'], (node['exec'],))
        known = {'use_sim_time'}.union(
            *({field.name for field in dataclasses.fields(tables()[name])} for name in members)
        )
        given = {parameter['name'] for parameter in node['param'] if 'name' in parameter}
        assert given <= known, node['exec']


@pytest.mark.parametrize('path', LAUNCH_FILES, ids=names)
def test_every_remapped_topic_is_one_of_the_nodes_own(path):
    for node in entities(path, 'node'):
        source = (ROOT / 'vla_cache_ros' / 'nodes' / f'{node["exec"]}.py').read_text(
            encoding='utf-8'
        )
        for remap in node.get('remap', []):
            pattern = re.sub(r'camera/\w+/', 'camera/{camera}/', remap['from'])
            assert f"'{pattern}'" in source, remap


@pytest.mark.parametrize('path', CONFIG_FILES, ids=names)
def test_every_parameter_in_a_file_is_declared_and_valid(path):
    from rclpy.node import Node
    from rclpy.parameter import Parameter

    from vla_cache_ros.nodes.parameters import declare

    for key, content in yaml.safe_load(path.read_text(encoding='utf-8')).items():
        assert key.startswith('/**/'), key  # any namespace
        name, values = key.removeprefix('/**/'), content['ros__parameters']
        table = tables()[name]
        unknown = set(values) - {field.name for field in dataclasses.fields(table)}
        assert not unknown, f'{path.name}: {name} has no parameters {unknown}'
        overrides = [Parameter(field, value=value) for field, value in values.items()]
        declared = declare(Node(name, parameter_overrides=overrides), table)
        for field, value in values.items():
            expected = tuple(value) if isinstance(value, list) else value
            assert getattr(declared, field) == expected


@pytest.fixture(autouse=True)
def _rclpy():
    import rclpy

    rclpy.init()
    yield
    rclpy.try_shutdown()


@pytest.mark.parametrize('path', CONFIG_FILES, ids=names)
def test_rates_agree_within_a_file(path):
    content = yaml.safe_load(path.read_text(encoding='utf-8'))
    values = {key.removeprefix('/**/'): item['ros__parameters'] for key, item in content.items()}
    rates = {v['control_frequency_hz'] for v in values.values() if 'control_frequency_hz' in v}
    assert len(rates) == 1
    simulator = values.get('sim_bridge', {})
    if simulator.get('mode') == 'lockstep':
        assert values['command_guard']['pacing'] == 'state'
        assert values['command_guard']['actions_per_chunk'] == simulator['frame_every']


def test_lockstep_executes_as_many_actions_as_the_committed_policy_was_trained_for():
    weights = json.loads((ROOT / 'models/weights/config.json').read_text(encoding='utf-8'))
    content = yaml.safe_load((ROOT / 'config/libero_small_vla.yaml').read_text(encoding='utf-8'))
    simulator = content['/**/sim_bridge']['ros__parameters']
    assert simulator['frame_every'] == weights['execute_steps']
