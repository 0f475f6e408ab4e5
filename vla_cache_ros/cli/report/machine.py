"""What a figure was measured on: it means nothing without."""

import datetime
import importlib.metadata
import os
import platform
import re
from pathlib import Path

PACKAGES = ('torch', 'numpy', 'opencv-python', 'mujoco', 'robosuite', 'gymnasium', 'ros-rclpy')


def describe_machine() -> dict[str, str | int]:
    """CPU, cores, memory, system and date."""
    return {
        'cpu': _cpu_model(),
        'cores': len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else _cores(),
        'memory_gib': round(_memory_bytes() / 2**30),
        'system': f'{platform.system()} {platform.machine()}',
        'date': datetime.datetime.now(datetime.timezone.utc).strftime('%Y-%m-%d'),
    }


def describe_versions() -> dict[str, str]:
    """Versions of this package, Python and what does the work."""
    from vla_cache_ros import __version__

    versions = {'vla_cache_ros': __version__, 'python': platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = 'not from a wheel'
    return versions


def _cores() -> int:
    return os.cpu_count() or 1


def _cpu_model() -> str:
    """As lscpu names it."""
    try:
        text = Path('/proc/cpuinfo').read_text(encoding='utf-8')
    except OSError:
        return platform.processor() or platform.machine()
    found = re.search(r'^model name\s*:\s*(.+)$', text, re.MULTILINE)
    return found[1].strip() if found else platform.machine()


def _memory_bytes() -> int:
    try:
        return os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
    except (ValueError, OSError):
        return 0
