"""What the package promises: one version, entry points, lazy imports, pinned requirements."""

import ast
import importlib
import importlib.metadata
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

import vla_cache_ros

ROOT = Path(__file__).resolve().parents[1]
INTERFACES = ROOT / 'interfaces' / 'vla_cache_interfaces'
NODES = {
    'bringup',
    'bringup_manager',
    'camera_node',
    'command_guard',
    'command_sink',
    'fault_injector',
    'kinematics_node',
    'monitor',
    'policy_node',
    'recorder',
    'sim_bridge',
}

# Import a module, and with `.*` everything below it; print the top-level names that got loaded.
LOADED = """
import importlib, pkgutil, sys
name, walk = sys.argv[1].removesuffix('.*'), sys.argv[1].endswith('.*')
package = importlib.import_module(name)
for found in pkgutil.walk_packages(package.__path__, name + '.') if walk else ():
    importlib.import_module(found.name)
print(' '.join({name.partition('.')[0] for name in sys.modules}))
"""
ROS = {'rclpy', 'sensor_msgs'}
SIMULATORS = {'mujoco', 'libero', 'robosuite'}
ENGINES = {'tensorrt', 'tensorrt_rtx', 'onnxruntime', 'openvino', 'onnx'}


def setup_py(*arguments: str) -> str:
    """Ask setup.py, as colcon does."""
    process = subprocess.run(
        [sys.executable, 'setup.py', '--quiet', *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return process.stdout.strip().splitlines()[-1]


def package_xml(folder: Path = ROOT) -> ElementTree.Element:
    return ElementTree.parse(folder / 'package.xml').getroot()


def requirement_names(text: str) -> set[str]:
    return {
        re.split(r'[=<>\[ ;]', line, maxsplit=1)[0].lower()
        for line in text.splitlines()
        if re.match(r'[A-Za-z]', line)
    }


def test_versions_agree():
    changelog = (ROOT / 'CHANGELOG.rst').read_text(encoding='utf-8')
    newest = re.search(r'^(\d+\.\d+\.\d+) \(\d{4}-\d{2}-\d{2}\)\n-+$', changelog, re.MULTILINE)
    assert newest is not None, 'CHANGELOG.rst has no entry as REP-132 wants it'
    versions = {
        '__version__': vla_cache_ros.__version__,
        'setup.py': setup_py('--version'),
        'package.xml': package_xml().findtext('version'),
        "the interfaces' package.xml": package_xml(INTERFACES).findtext('version'),
        'CHANGELOG.rst': newest.group(1),
    }
    assert len(set(versions.values())) == 1, versions


def test_package_xml_and_setup_py_agree():
    root = package_xml()
    maintainer = root.find('maintainer')
    assert root.get('format') == '3'
    assert root.findtext('name') == setup_py('--name')
    assert root.findtext('license') == setup_py('--license') == 'Apache-2.0'
    assert maintainer.text == setup_py('--maintainer')
    assert maintainer.get('email') == setup_py('--maintainer-email')


def test_colcon_identifies_both_packages(tmp_path, monkeypatch):
    monkeypatch.setenv('COLCON_LOG_PATH', str(tmp_path))
    colcon = Path(sys.executable).parent / 'colcon'
    process = subprocess.run(
        [colcon, 'list', '--base-paths', ROOT, ROOT / 'interfaces'],
        capture_output=True,
        text=True,
        check=True,
    )
    for name, kind in (('vla_cache_ros', 'ament_python'), ('vla_cache_interfaces', 'ament_cmake')):
        assert re.search(rf'^{name}\s+\S+\s+\(ros\.{kind}\)$', process.stdout, re.M), (
            process.stdout + process.stderr
        )


@pytest.mark.ros
def test_every_entry_point_resolves_and_every_node_has_one():
    scripts = {
        entry.name: entry
        for entry in importlib.metadata.distribution('vla_cache_ros').entry_points
        if entry.group == 'console_scripts'
    }
    assert set(scripts) == {'vla-cache', *NODES}
    for entry in scripts.values():
        assert callable(entry.load()), entry


def test_package_xml_names_every_ros_package_that_a_node_imports():
    declared = {element.text for element in package_xml().findall('exec_depend')}
    imported = set()
    for path in (ROOT / 'vla_cache_ros' / 'nodes').rglob('*.py'):
        for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
            if isinstance(node, ast.ImportFrom) and node.module:
                imported.add(node.module.partition('.')[0])
            elif isinstance(node, ast.Import):
                imported |= {alias.name.partition('.')[0] for alias in node.names}
    ros = {name for name in imported if re.search(r'^rclpy$|_(msgs|srvs|interfaces)$', name)}
    assert 'rclpy' in ros
    assert ros <= declared


@pytest.mark.parametrize(
    ('modules', 'unwanted'),
    [
        ('vla_cache_ros.core.*', ROS | SIMULATORS | ENGINES | {'gymnasium', 'pyarrow'}),
        ('vla_cache_ros.core.guard', ROS | SIMULATORS | {'torch'}),
        ('vla_cache_ros.dataset.*', ROS | SIMULATORS | ENGINES | {'gymnasium'}),
        ('vla_cache_ros.recording.*', ROS | SIMULATORS | ENGINES | {'gymnasium', 'torch'}),
        ('vla_cache_models.*', ROS | SIMULATORS | ENGINES | {'gymnasium'}),
        ('vla_cache_sim', ROS | SIMULATORS | ENGINES | {'torch'}),
        ('vla_cache_trt.*', ROS | SIMULATORS | ENGINES),
        ('vla_cache_trt.backends', ROS | SIMULATORS | ENGINES | {'torch'}),
        ('vla_cache_trt.build', ROS | SIMULATORS | ENGINES | {'torch'}),
        ('vla_cache_ros.cli.*', ROS | SIMULATORS | ENGINES),
        ('vla_cache_ros.cli.main', ROS | SIMULATORS | {'torch', 'numpy', 'rich', 'tyro'}),
    ],
)
def test_imports_are_light(modules, unwanted):
    process = subprocess.run(
        [sys.executable, '-c', LOADED, modules], capture_output=True, text=True, check=False
    )
    assert process.returncode == 0, process.stderr
    loaded = unwanted & set(process.stdout.split())
    assert not loaded


def test_requirements_are_pinned_and_cover_what_setup_py_names():
    pinned = set()
    for path in sorted((ROOT / 'requirements').glob('*.txt')):
        for line in path.read_text(encoding='utf-8').splitlines():
            if re.match(r'[A-Za-z]', line):
                assert '==' in line, f'{path.name}: {line} is not pinned'
        if path.name != 'constraints.txt':
            pinned |= requirement_names(path.read_text(encoding='utf-8'))
    named = requirement_names('\n'.join(importlib.metadata.requires('vla_cache_ros')))
    assert named - {'torch'} <= pinned  # torch's build is the user's choice: the Makefile has it


def test_rclpy_is_never_a_plain_requirement():
    plain = [
        line for line in importlib.metadata.requires('vla_cache_ros') if 'extra ==' not in line
    ]
    assert not [line for line in plain if line.startswith('ros') or 'rclpy' in line]
