"""The nodes' parameters: one declaration each, from which everything else is made.

A frozen dataclass per node is the table. Each field carries its default, range or choices, unit
and description; from it come the ROS ParameterDescriptor, the typed values that the node reads,
and docs/parameters.md. The tables lie in `parameter_tables`.
"""

import dataclasses
import difflib
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

from vla_cache_ros.core.errors import ConfigError, UnknownNameError

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
class ManagedParameters:
    """Parameters of every lifecycle node."""

    autostart: bool = parameter(
        False, 'Configure and activate without being told, once spinning.', read_only=True
    )
    heartbeat_period_s: float = parameter(
        0.02,
        'Wall time between two signs of life on ~/heartbeat.',
        unit='s',
        valid=(0.001, 10.0),
        read_only=True,
    )


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
                f'valid: {valid_text(field) or type_name(table, field.name)}.'
            ) from error
    values = read(node, table)
    _warn_of_undeclared(node, table)
    node.add_on_set_parameters_callback(lambda changes: _check_choices(table, changes))
    return values


def _warn_of_undeclared(node: Node, table: type) -> None:
    """Name what a file or the command line sets and nothing reads: ROS itself says nothing.

    What every node of a process is given at once (autostart) concerns some of them alone.
    """
    shared = {*fields_of(ManagedParameters), 'use_sim_time', 'start_type_description_service'}
    for name in sorted(node._parameter_overrides):
        if name in shared or name in fields_of(table) or name.startswith('qos_overrides.'):
            continue
        close = difflib.get_close_matches(name, fields_of(table), n=1)
        node.get_logger().warning(
            f'parameter {name} is set and has no effect: {node.get_name()} has none of that name.'
            + (f' Did you mean {close[0]}?' if close else '')
        )


def fields_of(table: type) -> dict[str, dataclasses.Field[Any]]:
    """Name of a parameter -> its declaration."""
    return {field.name: field for field in dataclasses.fields(table)}


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
        if field.default == ():
            values[field.name] = _items(table, field.name, value)
        else:
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
    # rclpy takes an empty list for one of bytes, and then insists on it; `read` checks the values.
    described.dynamic_typing = field.default == ()
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


def _items(table: type, name: str, value: Any) -> tuple[Any, ...]:
    """Items of an array that may be empty, of the type that the table says."""
    (kind, *_) = typing.get_args(typing.get_type_hints(table)[name])
    valid = (int, float) if kind is float else kind
    value = value or ()  # a file's empty list arrives as nothing
    if isinstance(value, str) or not all(isinstance(item, valid) for item in value):
        raise ConfigError(f'parameter {name} is {value!r}; valid: {type_name(table, name)}.')
    return tuple(kind(item) for item in value)


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


def type_name(table: type, name: str) -> str:
    """Name of a parameter's type, for people."""
    kind = typing.get_type_hints(table)[name]
    if typing.get_origin(kind) is tuple:
        return f'{typing.get_args(kind)[0].__name__} array'
    return kind.__name__


def default_text(default: Any) -> str:
    """A default value as Markdown."""
    if isinstance(default, tuple):
        return ', '.join(f'`{item}`' for item in default)
    if isinstance(default, bool):
        return f'`{str(default).lower()}`'
    return f'`{default}`' if default != '' else '(empty)'


def valid_text(field: dataclasses.Field[Any]) -> str:
    """The valid values in words; empty where all are."""
    if field.metadata['choices']:
        return ', '.join(field.metadata['choices'])
    if field.metadata['valid'] is None:
        return ''
    low, high = field.metadata['valid']
    return f'{low:g} to {high:g}' if isinstance(field.default, float) else f'{low} to {high}'
