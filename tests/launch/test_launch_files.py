"""What the launch files and parameter files say is true: nothing in them is unknown to the code.

The launch system itself is in no package registry, so here the files are checked as data.
"""

import dataclasses
import json
import math
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
LAUNCH_FILES = sorted((ROOT / 'launch').glob('*.yaml'))
CONFIG_FILES = sorted((ROOT / 'config').glob('*.yaml'))
ARGUMENTS = {'namespace', 'use_sim_time', 'params_file', 'autostart', 'log_level'}
COMPOSED = {'bringup': ('policy_node', 'sim_bridge', 'command_guard', 'monitor')}
STARTED = {'bringup_manager': ('policy_node',)}
"""Node -> the nodes that it starts with its own remappings and parameters."""

ROBOT_FILES = [
    ROOT / 'config' / f'{name}.yaml'
    for name in ('franka_servo', 'ur_joint_trajectory', 'widowx', 'so101')
]
SUPERVISED_APART = {'monitor', 'camera_node', 'kinematics_node', 'recorder', 'bringup_manager'}
"""Nodes of the bring-up that the manager leaves alone: their loss moves nothing."""

pytestmark = pytest.mark.ros  # the tables of parameters belong to the nodes


def tables() -> dict[str, type]:
    from vla_cache_ros.nodes.parameter_tables.overview import NODES

    return NODES


def launch(path: Path) -> list[dict]:
    return yaml.safe_load(path.read_text(encoding='utf-8'))['launch']


def entities(path: Path, kind: str) -> list[dict]:
    """Every entity of a kind, those in groups as well."""
    waiting = launch(path)
    found = []
    for entity in waiting:
        ((name, content),) = entity.items()
        assert name in KINDS
        if name == kind:
            found.append(content)
        if name == 'group':
            waiting.extend(content)
    return found


KINDS = ('arg', 'set_env', 'node', 'include', 'group')


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
def test_launch_file_starts_or_includes_something(path):
    assert entities(path, 'node') or entities(path, 'include')


@pytest.mark.parametrize('path', LAUNCH_FILES, ids=names)
def test_every_included_file_exists_and_gets_every_argument_it_must(path):
    for include in entities(path, 'include'):
        included = path.parent / include['file'].removeprefix('$(dirname)/')
        assert included in LAUNCH_FILES
        given = {argument['name'] for argument in include['arg']}
        assert given >= ARGUMENTS
        assert given <= {argument['name'] for argument in entities(included, 'arg')}


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
        level, _, enclave = node['ros_args'].partition(' --enclave ')
        assert level == '--log-level $(var log_level)'
        assert enclave in ('', f'$(var enclave)/{node["exec"]}')
        assert bool(enclave) == (path.name == 'bringup.launch.yaml')  # on a robot


@pytest.mark.parametrize('path', LAUNCH_FILES, ids=names)
def test_parameters_set_at_launch_have_their_type_and_not_a_string(path):
    # In YAML launch 'false' in quotes is a string, which no bool parameter takes.
    for node in entities(path, 'node'):
        for parameter in node['param']:
            value = parameter.get('value')
            assert not isinstance(value, str) or value.startswith('$(var '), parameter


@pytest.mark.parametrize('path', LAUNCH_FILES, ids=names)
def test_conditions_are_arguments(path):
    declared = {argument['name'] for argument in entities(path, 'arg')}
    for node in entities(path, 'node'):
        for key in ('if', 'unless'):
            if key in node:
                assert node[key].removeprefix('$(var ').removesuffix(')') in declared


def test_bringup_starts_each_supervised_node_once():
    path = ROOT / 'launch' / 'bringup.launch.yaml'
    started = [node['exec'] for node in entities(path, 'node')]
    assert len(started) == len(set(started))
    for config in ROBOT_FILES:
        manager = yaml.safe_load(config.read_text(encoding='utf-8'))['/**/bringup_manager']
        values = manager['ros__parameters']
        by_launch = set(values['node_names']) - set(values['processes'])
        assert by_launch == set(started) - SUPERVISED_APART
        assert not set(values['processes']) & set(started)
        assert tuple(values['processes']) == STARTED['bringup_manager']
        assert set(values['hold_nodes']) == by_launch


def test_whoever_is_supervised_does_not_start_itself():
    path = ROOT / 'launch' / 'bringup.launch.yaml'
    for node in entities(path, 'node'):
        given = {item['name']: item['value'] for item in node['param'] if 'name' in item}
        if node['exec'] not in SUPERVISED_APART:
            assert given['autostart'] is False
        if node['exec'] == 'bringup_manager':
            assert 'respawn' not in node  # it would activate what somebody deactivated


@pytest.mark.parametrize('path', ROBOT_FILES, ids=names)
def test_robot_file_moves_nothing_until_somebody_says_so(path):
    content = yaml.safe_load(path.read_text(encoding='utf-8'))
    values = {key.removeprefix('/**/'): item['ros__parameters'] for key, item in content.items()}
    assert values['command_sink']['dry_run'] is True
    assert values['bringup_manager']['reactivate'] is False
    guard, sink = values['command_guard'], values['command_sink']
    for name in ('position_scale_m', 'rotation_scale_rad', 'control_frequency_hz'):
        assert guard[name] == sink[name], name
    kinds = ('velocity_m_s', 'acceleration_m_s2', 'jump_m')
    for name in (
        *(f'max_linear_{kind}' for kind in kinds),
        'workspace_lower_m',
        'workspace_upper_m',
    ):
        assert guard[name], name


@pytest.mark.parametrize('path', ROBOT_FILES, ids=names)
def test_robot_file_lets_an_arm_start_within_its_limits_and_watches_the_cache(path):
    content = yaml.safe_load(path.read_text(encoding='utf-8'))
    guard = content['/**/command_guard']['ros__parameters']
    for kind, unit, scale, axes in (
        ('linear', 'm', 'position_scale_m', slice(0, 3)),
        ('angular', 'rad', 'rotation_scale_rad', slice(3, 6)),
    ):
        limits = guard.get('upper_limits', (1.0,) * 7)[axes]
        deflection = guard[scale] * math.hypot(*limits)
        assert deflection <= guard[f'max_{kind}_jump_{unit}'] < 2 * deflection
    policy = content['/**/policy_node']['ros__parameters']
    for name in ('frozen_image_timeout_s', 'black_image_contrast', 'shadow_every_steps'):
        assert policy[name] > 0, name
    assert policy['shadow_gives_way'] is False  # a camera faster than the policy would starve it
    assert 0 < policy['shadow_alarm_budget'] < policy['shadow_off_budget']


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
def test_every_process_gets_the_transport_for_large_images(path):
    kinds = [kind for entity in launch(path) for kind in entity]
    if 'node' not in kinds:
        assert entities(path, 'include')  # of files that set it themselves
        return
    assert max(i for i, kind in enumerate(kinds) if kind == 'set_env') < kinds.index('node')
    given = {entity['name']: entity for entity in entities(path, 'set_env')}
    assert set(given) == {'FASTDDS_DEFAULT_PROFILES_FILE', 'FASTRTPS_DEFAULT_PROFILES_FILE'}
    for entity in given.values():
        assert entity['value'] == '$(var fastdds_profiles)'
        assert "'$(var fastdds_profiles)' != 'none'" in entity['if']
    # Later distributions warn of the former name.
    assert "'$(env ROS_DISTRO wheels)' in" in given['FASTRTPS_DEFAULT_PROFILES_FILE']['if']
    (default,) = (
        argument['default']
        for argument in entities(path, 'arg')
        if argument['name'] == 'fastdds_profiles'
    )
    found = re.fullmatch(
        r'\$\(env FASTDDS_DEFAULT_PROFILES_FILE \$\(find-pkg-share vla_cache_ros\)/(.+)\)', default
    )
    assert found, default
    assert (ROOT / found[1]).is_file()


@pytest.mark.parametrize('path', sorted((ROOT / 'config').glob('fastdds*.xml')), ids=names)
def test_transport_file_holds_several_images_and_is_installed(path):
    tree = ElementTree.parse(path)
    namespace = {'dds': 'http://www.eprosima.com'}
    (size,) = tree.findall('.//dds:segment_size', namespace)
    assert int(size.text or 0) >= 16 * 640 * 480 * 3
    (participant,) = tree.findall('dds:participant', namespace)
    assert participant.get('is_default_profile') == 'true'
    made = {
        node.text
        for node in tree.findall('.//dds:transport_descriptor/dds:transport_id', namespace)
    }
    used = {
        node.text for node in tree.findall('.//dds:userTransports/dds:transport_id', namespace)
    }
    assert made == used
    assert "files('config/*')" in (ROOT / 'setup.py').read_text(encoding='utf-8')


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
    sources = ''.join(
        module.read_text(encoding='utf-8')
        for module in (ROOT / 'vla_cache_ros/nodes').glob('*.py')
    )
    for node in entities(path, 'node'):
        for remap in node.get('remap', []):
            pattern = re.sub(r'camera/\w+/', 'camera/{camera}/', remap['from'])
            assert f"'{remap['from']}'" in sources or f"'{pattern}" in sources, remap
            assert remap['to'].startswith('$(var ')


@pytest.mark.parametrize('path', CONFIG_FILES, ids=names)
def test_every_parameter_in_a_file_is_declared_and_valid(path):
    from rclpy.node import Node
    from rclpy.parameter import Parameter

    from vla_cache_ros.nodes.parameter_files import check_file
    from vla_cache_ros.nodes.parameters import declare

    assert check_file(path, tables()) == []
    for key, content in yaml.safe_load(path.read_text(encoding='utf-8')).items():
        assert key.startswith('/**/'), key  # any namespace
        name, values = key.removeprefix('/**/'), content['ros__parameters']
        overrides = [Parameter(field, value=value) for field, value in values.items()]
        declared = declare(Node(name, parameter_overrides=overrides), tables()[name])
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
    simulator = values.get('sim_bridge', {})  # robots have none
    if simulator.get('mode') == 'lockstep':
        assert values['command_guard']['pacing'] == 'state'
        assert values['command_guard']['actions_per_chunk'] == simulator['frame_every']


def test_lockstep_executes_as_many_actions_as_the_committed_policy_was_trained_for():
    weights = json.loads((ROOT / 'models/weights/config.json').read_text(encoding='utf-8'))
    content = yaml.safe_load((ROOT / 'config/libero_small_vla.yaml').read_text(encoding='utf-8'))
    simulator = content['/**/sim_bridge']['ros__parameters']
    assert simulator['frame_every'] == weights['execute_steps']
