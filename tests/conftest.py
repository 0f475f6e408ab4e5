"""What every test shares: the environment, and the rule that nothing skips silently.

A test that needs LIBERO or ROS 2 fails where they are missing, unless its marker was deselected
by hand (`-m 'not sim'`). Only tests of MAY_SKIP skip, with a reason. Any other skip becomes a
failure.
"""

import importlib.util
import os
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# Before anything imports rclpy or mujoco: both read their environment once.
os.environ.setdefault('MUJOCO_GL', 'egl')
os.environ.setdefault('ROS_AUTOMATIC_DISCOVERY_RANGE', 'LOCALHOST')
os.environ.setdefault('ROS_DOMAIN_ID', str(os.getpid() % 100 + 1))
os.environ.setdefault('ROS_LOG_DIR', str(Path(tempfile.gettempdir()) / 'vla_cache_ros_test_logs'))
if Path(sys.prefix, 'share', 'ament_index').is_dir():
    os.environ.setdefault('AMENT_PREFIX_PATH', sys.prefix)

# SIMPLER's files, for whoever has not named a folder of his own; read once, as well.
SHARED_ASSETS = Path(__file__).resolve().parents[2] / 'shared' / 'simpler_assets'
if SHARED_ASSETS.is_dir():
    os.environ.setdefault('MS_ASSET_DIR', str(SHARED_ASSETS))

# No deadline: a timed example fails on a busy machine and says nothing about the code.
settings.register_profile(
    'project',
    deadline=None,
    max_examples=50,
    derandomize=True,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile('project')

NEEDS = {
    'sim': (('libero', 'robosuite', 'mujoco'), 'pip install -r requirements/libero.txt'),
    'simpler': (('mani_skill', 'sapien'), 'make setup-simpler'),
    'simpler_assets': (('mani_skill', 'sapien'), 'make setup-simpler'),
    'ros': (('rclpy', 'vla_cache_interfaces'), 'make setup, or source ROS 2 and the workspace'),
}


# What some machines truly cannot have: a GPU, files that are not free to pass on.
MAY_SKIP = ('gpu', 'simpler_assets')


def missing_modules(modules: tuple[str, ...]) -> list[str]:
    """Those of the modules that cannot be imported here."""
    return [name for name in modules if importlib.util.find_spec(name) is None]


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave tests/nodes alone where ROS is missing and its tests were deselected by hand."""
    deselected = 'not ros' in str(config.getoption('markexpr'))
    if collection_path.name == 'nodes' and deselected and missing_modules(NEEDS['ros'][0]):
        return True
    return None


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Fail where a marker's needs are not met; skip `gpu` tests where there is no GPU."""
    for marker, (modules, command) in NEEDS.items():
        if item.get_closest_marker(marker) is None:
            continue
        missing = missing_modules(modules)
        if missing:
            pytest.fail(
                f'needs {", ".join(missing)}: {command}; or deselect it: -m "not {marker}"',
                pytrace=False,
            )
    if item.get_closest_marker('gpu') is not None:
        import torch

        if not torch.cuda.is_available():
            pytest.skip('needs a CUDA device; torch sees none')
    if item.get_closest_marker('simpler_assets') is not None:
        folder = Path(os.environ.get('MS_ASSET_DIR', Path.home() / '.maniskill'), 'data')
        if not Path(folder, 'tasks', 'bridge_v2_real2sim_dataset').is_dir():
            pytest.skip(f"needs SIMPLER's files, and there are none below {folder}")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item):
    """Turn a skip that is neither MAY_SKIP's nor an expected failure into a failure."""
    report = yield
    expected = hasattr(report, 'wasxfail') or any(map(item.get_closest_marker, MAY_SKIP))
    if report.skipped and not expected:
        report.outcome = 'failed'
        report.longrepr = f'skipped, and only {MAY_SKIP} tests may skip: {report.longrepr}'
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector):
    """Turn a skipped module into an error: nothing skips silently."""
    report = yield
    if report.skipped:
        report.outcome = 'failed'
        report.longrepr = f'{collector.nodeid} was skipped whole: {report.longrepr}'
    return report
