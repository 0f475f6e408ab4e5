"""`vla-cache check FILE..`: what is wrong in parameter files, before a robot starts."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import tyro

from vla_cache_ros.core.errors import ConfigError


@dataclass(frozen=True)
class CheckConfig:
    """Options of `vla-cache check`."""

    files: tyro.conf.Positional[tuple[Path, ...]]
    """Parameter files, as `params_file` of a launch file takes them."""
    json: bool = False
    """Print one JSON object instead of lines."""


def run_check(config: CheckConfig) -> int:
    """Check every file and print what is wrong, one line each.

    Returns:
        0 when nothing is wrong, else 1.

    Raises:
        ConfigError: No file was named.
    """
    if not config.files:
        raise ConfigError('no file was named; valid: vla-cache check my_robot.yaml ..')
    # The tables of parameters belong to the nodes, which need rclpy.
    from vla_cache_ros.nodes.parameter_files import check_file
    from vla_cache_ros.nodes.parameter_tables.overview import NODES

    problems = [problem for path in config.files for problem in check_file(path, NODES)]
    if config.json:
        described = [{**asdict(problem), 'path': str(problem.path)} for problem in problems]
        print(json.dumps({'files': len(config.files), 'problems': described}, indent=2))
    else:
        for problem in problems:
            print(problem)
        if not problems:
            print(f'{len(config.files)} files: every parameter is declared and in range.')
    return 1 if problems else 0
