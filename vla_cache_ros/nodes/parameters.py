"""The nodes' parameters: one declaration each, from which everything else is made.

A frozen dataclass per node is the table. Each field carries its default, range or choices, unit
and description; from it come the ROS ParameterDescriptor, the typed values that the node reads,
and docs/parameters.md (`python -m vla_cache_ros.nodes.parameters > docs/parameters.md`).
"""

import dataclasses
import sys
import typing
from typing import Any, TypeVar

from rcl_interfaces.msg import (
    FloatingPointRange,
    IntegerRange,
    ParameterDescriptor,
    ParameterType,
    SetParametersResult,
)
from rclpy.exceptions import InvalidParameterTypeException, InvalidParameterValueException
from rclpy.node import Node
from rclpy.parameter import Parameter

from vla_cache_ros.core.config import PRESETS
from vla_cache_ros.core.errors import ConfigError, UnknownNameError
from vla_cache_ros.core.guard import LIMIT_POLICIES
from vla_cache_trt.backends import backend_names

ValuesT = TypeVar('ValuesT')

_ROS_TYPES: dict[Any, int] = {
    bool: ParameterType.PARAMETER_BOOL,
    int: ParameterType.PARAMETER_INTEGER,
    float: ParameterType.PARAMETER_DOUBLE,
    str: ParameterType.PARAMETER_STRING,
    tuple[str, ...]: ParameterType.PARAMETER_STRING_ARRAY,
    tuple[float, ...]: ParameterType.PARAMETER_DOUBLE_ARRAY,
}


def parameter(
    default: Any,
    description: str,
    *,
    unit: str = '',
    valid: tuple[float, float] | None = None,
    choices: tuple[str, ...] = (),
    read_only: bool = False,
) -> Any:
    """Declare one parameter as a dataclass field.

    Args:
        default: Its default value.
        description: What it does, one sentence.
        unit: SI unit of the value, empty for a pure number.
        valid: Least and greatest valid value, both included.
        choices: The valid strings, where only some are.
        read_only: Whether it is fixed once the node exists.
    """
    metadata = {
        'description': description,
        'unit': unit,
        'valid': valid,
        'choices': choices,
        'read_only': read_only,
    }
    return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True)
class PolicyParameters:
    """Parameters of policy_node; read at each configure."""

    checkpoint: str = parameter(
        '',
        "Folder of the checkpoint: this project's own, OpenVLA, OpenVLA-OFT or CogACT; empty "
        'means the weights that the package brings.',
    )
    dtype: str = parameter(
        'float32',
        'Number format of weights and activations.',
        choices=('float32', 'bfloat16', 'float16'),
    )
    device: str = parameter('cpu', "Device that the model runs on: 'cpu', 'cuda', 'cuda:1', ..")
    backend: str = parameter(
        'torch',
        'What runs the policy: PyTorch, or an engine that `vla-cache engine build` built before. '
        'The node itself builds nothing: a robot must not wait for a compiler.',
        choices=backend_names(),
    )
    precision: str = parameter(
        '', 'What the engine computes in: fp32, bf16, fp16 or int8; empty means as dtype.'
    )
    engine_folder: str = parameter(
        '',
        'Where engines lie; empty means $VLA_CACHE_ENGINES, or ~/.cache/vla_cache_ros/engines.',
    )
    cache_preset: str = parameter(
        'safe',
        'Token reuse: off (every token in every step), safe, the published rules, or a baseline.',
        choices=PRESETS,
    )
    unnorm_key: str = parameter(
        '', "Dataset whose statistics scale the actions; empty means the checkpoint's only one."
    )
    embodiment: str = parameter(
        '',
        'Conventions of the robot (images, rotation, gripper): libero, bridge, google_robot, '
        'finetuned or generic; empty means by unnorm_key.',
    )
    control_frequency_hz: float = parameter(
        20.0,
        'Rate at which the actions of a chunk follow one another.',
        unit='Hz',
        valid=(0.1, 1000.0),
    )
    pairing_tolerance_s: float = parameter(
        0.01,
        'Greatest difference between the stamps of one observation.',
        unit='s',
        valid=(0.0, 1.0),
    )
    stale_image_timeout_s: float = parameter(
        0.5,
        'Age beyond which an image is dropped, and silence after which a camera is reported '
        'missing.',
        unit='s',
        valid=(0.01, 60.0),
    )
    gripper_joint_names: tuple[str, ...] = parameter(
        ('panda_finger_joint1', 'panda_finger_joint2'),
        'The two finger joints in the joint states.',
    )
    autostart: bool = parameter(
        False, 'Configure and activate without being told, once spinning.', read_only=True
    )


@dataclasses.dataclass(frozen=True)
class SimBridgeParameters:
    """Parameters of sim_bridge; read at each configure, the episode's own at each reset."""

    suite: str = parameter('libero_object', 'Suite of tasks that the simulator loads.')
    task: int = parameter(0, 'Task of the next episode (read at reset).', valid=(0, 999))
    init_state: int = parameter(
        0, 'Initial state of the next episode (read at reset).', valid=(0, 9999)
    )
    seed: int = parameter(0, 'Seed of the next episode (read at reset).', valid=(0, 2**31 - 1))
    episodes: int = parameter(
        0,
        'Episodes to play on its own after activation, init_state counting up; 0 waits for '
        '~/reset.',
        valid=(0, 10000),
    )
    mode: str = parameter(
        'lockstep',
        'lockstep: one control step per command, reproducible; realtime: one per period.',
        choices=('lockstep', 'realtime'),
    )
    control_frequency_hz: float = parameter(
        20.0, 'Control steps per second of simulated time.', unit='Hz', valid=(0.1, 1000.0)
    )
    frame_every: int = parameter(
        4,
        'Control steps from one rendered pair of images to the next. In lockstep it must equal '
        "the guard's actions_per_chunk.",
        unit='steps',
        valid=(1, 1000),
    )
    image_size_px: int = parameter(128, 'Side of the square images.', unit='px', valid=(16, 2048))
    camera_names: tuple[str, ...] = parameter(
        ('agentview', 'wrist'), 'Cameras to render; each becomes camera/<name>/image_raw.'
    )
    command_timeout_s: float = parameter(
        5.0,
        'Lockstep: wait for a command this long (wall time), then step with the null action.',
        unit='s',
        valid=(0.001, 600.0),
    )
    peer_timeout_s: float = parameter(
        10.0,
        'Wait this long (wall time) for the peers to take notice of a reset before the first '
        'frame is sent all the same.',
        unit='s',
        valid=(0.0, 600.0),
    )
    reset_services: tuple[str, ...] = parameter(
        ('policy_node/reset', 'command_guard/reset'),
        'Services (std_srvs/Trigger) to call before the first frame of an episode.',
    )
    autostart: bool = parameter(
        False, 'Configure and activate without being told, once spinning.', read_only=True
    )


@dataclasses.dataclass(frozen=True)
class GuardParameters:
    """Parameters of command_guard; read once, at start."""

    control_frequency_hz: float = parameter(
        20.0,
        'Commands per second in timer pacing.',
        unit='Hz',
        valid=(0.1, 1000.0),
        read_only=True,
    )
    pacing: str = parameter(
        'timer',
        'timer: one command per period; state: one command per joint state (lockstep simulation).',
        choices=('timer', 'state'),
        read_only=True,
    )
    actions_per_chunk: int = parameter(
        4,
        'Actions executed of each chunk before the next one is needed.',
        unit='steps',
        valid=(1, 1000),
        read_only=True,
    )
    stale_image_timeout_s: float = parameter(
        1.0,
        'Age of the image behind an action beyond which the action is not sent. The last action '
        "of a chunk is as old as the chunk's execution plus the inference.",
        unit='s',
        valid=(0.01, 60.0),
        read_only=True,
    )
    lower_limits: tuple[float, ...] = parameter(
        (-1.0,) * 7,
        'Least value of each axis (x, y, z, rx, ry, rz, gripper), 1 being full speed.',
        read_only=True,
    )
    upper_limits: tuple[float, ...] = parameter(
        (1.0,) * 7, 'Greatest value of each axis, in the same order.', read_only=True
    )
    on_limit: str = parameter(
        'clip',
        'clip: send a value out of limits as the limit; null: send the null action instead.',
        choices=LIMIT_POLICIES,
        read_only=True,
    )
    dry_run: bool = parameter(
        False, 'Compute and report commands, but do not publish them.', read_only=True
    )


@dataclasses.dataclass(frozen=True)
class MonitorParameters:
    """Parameters of monitor; read once, at start."""

    publish_period_s: float = parameter(
        1.0,
        'Wall time between two messages on /diagnostics.',
        unit='s',
        valid=(0.05, 60.0),
        read_only=True,
    )
    window: int = parameter(
        1000,
        'Samples that each percentile and rate is taken over.',
        valid=(10, 1000000),
        read_only=True,
    )
    deadline_ms: float = parameter(
        100.0,
        'Image stamp to first command beyond which a step counts as a deadline miss.',
        unit='ms',
        valid=(0.1, 60000.0),
        read_only=True,
    )
    stale_after_s: float = parameter(
        2.0,
        'Silence after which a source is reported STALE.',
        unit='s',
        valid=(0.1, 600.0),
        read_only=True,
    )


NODES: dict[str, type] = {
    'policy_node': PolicyParameters,
    'sim_bridge': SimBridgeParameters,
    'command_guard': GuardParameters,
    'monitor': MonitorParameters,
}
"""Executable name -> its parameters."""


def declare(node: Node, table: type[ValuesT]) -> ValuesT:
    """Declare every parameter of a table on a node and return their values.

    Raises:
        ConfigError: A value given from outside has the wrong type or is out of its range.
        UnknownNameError: A value is not among the choices.
    """
    for field in dataclasses.fields(table):  # type: ignore[arg-type]  # always a dataclass
        default: Any = field.default
        default = list(default) if isinstance(default, tuple) else default
        try:
            node.declare_parameter(field.name, default, descriptor(table, field.name))
        except (InvalidParameterTypeException, InvalidParameterValueException) as error:
            raise ConfigError(
                f'parameter {field.name} of {node.get_name()}: {error}; '
                f'valid: {_valid_text(field) or _type_name(table, field.name)}.'
            ) from error
    values = read(node, table)
    node.add_on_set_parameters_callback(lambda changes: _check_choices(table, changes))
    return values


def read(node: Node, table: type[ValuesT]) -> ValuesT:
    """Read the present values of a declared table.

    Raises:
        UnknownNameError: A value is not among the choices.
    """
    values: dict[str, Any] = {}
    for field in dataclasses.fields(table):  # type: ignore[arg-type]  # always a dataclass
        value = node.get_parameter(field.name).value
        choices = field.metadata['choices']
        if choices and value not in choices:
            raise UnknownNameError(f'value of parameter {field.name}:', value, choices)
        values[field.name] = tuple(value) if isinstance(field.default, tuple) else value
    return table(**values)


def descriptor(table: type, name: str) -> ParameterDescriptor:
    """Build the ROS descriptor of one parameter of a table."""
    field = {field.name: field for field in dataclasses.fields(table)}[name]
    kind = typing.get_type_hints(table)[name]
    described = ParameterDescriptor(
        name=name,
        type=_ROS_TYPES[kind],
        description=_description(field),
        read_only=field.metadata['read_only'],
    )
    if field.metadata['choices']:
        described.additional_constraints = 'one of: ' + ', '.join(field.metadata['choices'])
    if field.metadata['valid'] is not None:
        low, high = field.metadata['valid']
        if kind is int:
            described.integer_range = [IntegerRange(from_value=int(low), to_value=int(high))]
        else:
            described.floating_point_range = [
                FloatingPointRange(from_value=float(low), to_value=float(high))
            ]
    return described


def markdown() -> str:
    """Render docs/parameters.md from the tables."""
    lines = [
        '# Parameters',
        '',
        'Made from `vla_cache_ros/nodes/parameters.py` by '
        '`python -m vla_cache_ros.nodes.parameters`; do not edit by hand.',
        '',
        "Beside these, every topic takes ROS 2's own "
        '`qos_overrides.<topic>.<publisher|subscription>.<history|depth|reliability>`.',
    ]
    for name, table in NODES.items():
        lines += ['', f'## {name}', '', (table.__doc__ or '').strip(), '']
        lines += ['| name | type | default | unit | valid | fixed | what it does |']
        lines += ['|---|---|---|---|---|---|---|']
        for field in dataclasses.fields(table):
            cells = (
                f'`{field.name}`',
                _type_name(table, field.name),
                _default_text(field.default),
                field.metadata['unit'],
                _valid_text(field),
                'yes' if field.metadata['read_only'] else '',
                field.metadata['description'],
            )
            lines.append('| ' + ' | '.join(cells) + ' |')
    return '\n'.join(lines) + '\n'


def _check_choices(table: type, changes: list[Parameter]) -> SetParametersResult:
    """Refuse a change to a value that is not among a parameter's choices."""
    choices = {field.name: field.metadata['choices'] for field in dataclasses.fields(table)}
    for change in changes:
        valid = choices.get(change.name)
        if valid and change.value not in valid:
            error = UnknownNameError(f'value of parameter {change.name}:', change.value, valid)
            return SetParametersResult(successful=False, reason=str(error))
    return SetParametersResult(successful=True)


def _description(field: dataclasses.Field[Any]) -> str:
    unit = field.metadata['unit']
    return field.metadata['description'] + (f' [{unit}]' if unit else '')


def _type_name(table: type, name: str) -> str:
    kind = typing.get_type_hints(table)[name]
    if typing.get_origin(kind) is tuple:
        return f'{typing.get_args(kind)[0].__name__} array'
    return kind.__name__


def _default_text(default: Any) -> str:
    if isinstance(default, tuple):
        return ', '.join(f'`{item}`' for item in default)
    if isinstance(default, bool):
        return f'`{str(default).lower()}`'
    return f'`{default}`' if default != '' else '(empty)'


def _valid_text(field: dataclasses.Field[Any]) -> str:
    if field.metadata['choices']:
        return ', '.join(field.metadata['choices'])
    if field.metadata['valid'] is None:
        return ''
    low, high = field.metadata['valid']
    return f'{low:g} to {high:g}' if isinstance(field.default, float) else f'{low} to {high}'


if __name__ == '__main__':
    sys.stdout.write(markdown())
