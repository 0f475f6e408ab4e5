"""The command line `vla-cache`: one table of commands, each imported only when it is called."""

import difflib
import importlib
import os
import sys
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from vla_cache_ros import __version__
from vla_cache_ros.core.errors import UnknownNameError, VlaCacheError
from vla_cache_ros.resources import install_command

USAGE_ERROR = 2
INTERRUPTED = 130  # 128 + SIGINT, as shells report it


@dataclass(frozen=True)
class Command:
    """One subcommand.

    Attributes:
        name: What the user types.
        module: The module that implements it.
        config: Its frozen dataclass: the fields are the options.
        run: Its function, config -> exit code.
        summary: One line for the list of commands.
        environment: Variables it wants, where the user has not set them.
        details: More for the command's own help.
    """

    name: str
    module: str
    config: str
    run: str
    summary: str
    environment: Mapping[str, str] = field(default_factory=dict)
    details: str = ''


COMMANDS: tuple[Command, ...] = (
    Command(
        name='doctor',
        module='vla_cache_ros.cli.doctor',
        config='DoctorConfig',
        run='run_doctor',
        summary='what this machine has, what is missing, and the command that gets it',
    ),
    Command(
        name='check',
        module='vla_cache_ros.cli.check',
        config='CheckConfig',
        run='run_check',
        summary="parameter files against the nodes' tables, line by line",
        details='Exit code: 0 nothing is wrong, 1 something is, 2 bad input.',
    ),
    Command(
        name='demo',
        module='vla_cache_ros.cli.demo',
        config='DemoConfig',
        run='run_demo',
        summary='the robot does its task over ROS 2, dense and cached; writes a report',
        environment={'ROS_AUTOMATIC_DISCOVERY_RANGE': 'LOCALHOST'},
    ),
    Command(
        name='demos',
        module='vla_cache_ros.cli.demos',
        config='DemosConfig',
        run='run_demos',
        summary="record the scripted experts' demonstrations as a LeRobot dataset",
    ),
    Command(
        name='train',
        module='vla_cache_ros.cli.train',
        config='TrainConfig',
        run='run_train',
        summary='train the small VLA on a dataset, then against the expert (DAgger)',
    ),
    Command(
        name='inspect',
        module='vla_cache_ros.cli.inspect',
        config='InspectConfig',
        run='run_inspect',
        summary='what a checkpoint holds, whether it loads, its token layout',
    ),
    Command(
        name='engine',
        module='vla_cache_ros.cli.engine',
        config='EngineConfig',
        run='run_engine',
        summary='export, build, verify or list engines that run the policy',
    ),
    Command(
        name='eval',
        module='vla_cache_ros.cli.evaluate',
        config='EvaluateConfig',
        run='run_evaluate',
        summary='success over tasks and initial states, dense, cached or paired',
        details=(
            'Exit code: 0 every episode is judged, 1 it was stopped or simulator errors remain, '
            '2 bad input, 130 interrupted. The same command goes on where it was stopped.'
        ),
    ),
    Command(
        name='replay',
        module='vla_cache_ros.cli.replay',
        config='ReplayConfig',
        run='run_replay',
        summary='the policy over a recording, its actions beside the recorded ones',
        details=('Exit code: 0 within the tolerance, 1 beyond it, 2 bad input, 130 interrupted.'),
    ),
    Command(
        name='serve',
        module='vla_cache_ros.cli.serve',
        config='ServeConfig',
        run='run_serve',
        summary="the policy over the network, for other people's harnesses",
    ),
    Command(
        name='bench',
        module='vla_cache_ros.cli.bench',
        config='BenchConfig',
        run='run_bench',
        summary='time one policy step stage by stage, dense against cached',
    ),
)

# Optional package a command may need -> the layer of requirements that brings it.
OPTIONAL_PACKAGES = {
    'av': 'demo',
    'gymnasium': 'libero',
    'jinja2': 'demo',
    'libero': 'libero',
    'mani_skill': 'simpler',
    'lz4': 'record',
    'matplotlib': 'demo',
    'mcap': 'record',
    'mcap_ros2': 'record',
    'msgpack': 'serve',
    'mujoco': 'libero',
    'onnx': 'engines',
    'onnxruntime': 'engines',
    'onnxscript': 'engines',
    'openvino': 'engines',
    'PIL': 'vla',
    'pyarrow': 'train',
    'ray': 'ray',
    'rclpy': 'ros',
    'robosuite': 'libero',
    'sapien': 'simpler',
    'starlette': 'serve',
    'timm': 'vla',
    'tokenizers': 'vla',
    'torchvision': 'vla',
    'uvicorn': 'serve',
    'zstandard': 'record',
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: What follows the program's name; sys.argv's by default.

    Returns:
        The exit code: 0 success, 1 the command's own failure, 2 bad input.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = '--debug' in words
    words = [word for word in words if word != '--debug']
    try:
        return _dispatch(words)
    except VlaCacheError as error:
        return _fail(str(error), debug)
    except ModuleNotFoundError as error:
        package = (error.name or '').partition('.')[0]
        if package not in OPTIONAL_PACKAGES:
            raise
        return _fail(
            f'this command needs the Python package {package}, which is not installed; '
            f'get it with: {install_command(OPTIONAL_PACKAGES[package])}',
            debug,
        )
    except KeyboardInterrupt:
        print('interrupted', file=sys.stderr)
        return INTERRUPTED


def _dispatch(words: list[str]) -> int:
    name = words[0] if words else '--help'
    if name in ('-h', '--help', 'help'):
        print(_usage())
        return 0 if words else USAGE_ERROR
    if name == '--version':
        print(f'vla-cache {__version__}')
        return 0
    command = _find(name)
    _settle_environment(command)
    module = importlib.import_module(command.module)
    # tyro is slow to import: only a command that is really run pays for it.
    tyro = importlib.import_module('tyro')
    config = tyro.cli(
        getattr(module, command.config),
        args=words[1:],
        prog=f'vla-cache {command.name}',
        description=f'{command.summary[0].upper()}{command.summary[1:]}. {command.details}',
        config=(tyro.conf.FlagCreatePairsOff,),
    )
    return getattr(module, command.run)(config)


def _find(name: str) -> Command:
    for command in COMMANDS:
        if command.name == name:
            return command
    names = [command.name for command in COMMANDS]
    close = difflib.get_close_matches(name, names, n=1)
    raise UnknownNameError('command', name, names, f'Did you mean {close[0]}?' if close else '')


def _settle_environment(command: Command) -> None:
    """Set what the command's libraries read once, at their import.

    The ROS wheels put their ament index below the Python prefix but leave AMENT_PREFIX_PATH unset.
    """
    wanted = {'MUJOCO_GL': 'egl', **command.environment}
    if Path(sys.prefix, 'share', 'ament_index').is_dir():
        wanted['AMENT_PREFIX_PATH'] = sys.prefix
    for name, value in wanted.items():
        os.environ.setdefault(name, value)


def _usage() -> str:
    width = max(len(command.name) for command in COMMANDS)
    lines = [f'  {command.name:<{width}}  {command.summary}' for command in COMMANDS]
    return '\n'.join(
        [
            'usage: vla-cache [--version] [--debug] COMMAND [OPTIONS]',
            '',
            'Vision-language-action policies under VLA-Cache, as ROS 2 nodes.',
            '',
            *lines,
            '',
            "vla-cache COMMAND --help lists a command's options; --debug shows tracebacks.",
        ]
    )


def _fail(message: str, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    print(f'vla-cache: error: {message}', file=sys.stderr)
    return USAGE_ERROR


if __name__ == '__main__':
    sys.exit(main())
