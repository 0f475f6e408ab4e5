"""Parameter files checked against the nodes' tables, before a robot starts.

ROS itself ignores a parameter that no node declares, and says nothing of a misspelt one. Here it
is an error, with the line that it stands in.
"""

import difflib
import math
import typing
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from yaml.constructor import SafeConstructor
from yaml.nodes import MappingNode, Node, ScalarNode

from vla_cache_ros.core.errors import ConfigError
from vla_cache_ros.nodes.parameters import fields_of, type_name, valid_text

EVERYWHERE = ('use_sim_time', 'start_type_description_service')
"""Parameters that rclpy declares on every node."""

QOS_PREFIX = 'qos_overrides.'

AGREEING = {
    'position_scale_m': ('command_guard', ('command_sink',)),
    'rotation_scale_rad': ('command_guard', ('command_sink',)),
    'control_frequency_hz': ('command_guard', ('command_sink', 'policy_node')),
}
"""Parameter -> the node that sets it, and those that must have the same."""

_PARAMETERS = 'ros__parameters'


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong in a file.

    Attributes:
        path: The file.
        line: Its line, from 1; 0 where the whole file is meant.
        message: What is wrong and what would be valid.
    """

    path: Path
    line: int
    message: str

    def __str__(self) -> str:
        """As compilers write it: editors find the place."""
        return f'{self.path}:{self.line}: {self.message}'


class ParameterFileError(ConfigError):
    """Something in a parameter file is wrong; carries the YAML node that says where."""

    def __init__(self, message: str, node: Node) -> None:
        """Remember the place.

        Args:
            message: What is wrong and what would be valid.
            node: The part of the file that is wrong.
        """
        super().__init__(message)
        self.line = node.start_mark.line + 1


def check_file(path: Path, tables: typing.Mapping[str, type]) -> list[Problem]:
    """Check one file.

    Args:
        path: The file.
        tables: Name of a node -> the table of its parameters.

    Returns:
        What is wrong, in the order of the file; empty when nothing is.
    """
    try:
        text = path.read_text(encoding='utf-8')
        for token in yaml.scan(text, Loader=yaml.SafeLoader):
            if isinstance(token, yaml.AliasToken):  # nor does ROS take them
                return [Problem(path, token.start_mark.line + 1, 'holds an alias (*name).')]
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except (OSError, UnicodeDecodeError) as error:
        return [Problem(path, 0, f'cannot be read: {error}')]
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 0
        return [Problem(path, line, f'is not YAML: {error.problem}')]
    except (yaml.YAMLError, RecursionError) as error:
        return [Problem(path, 0, f'is not YAML: {error}')]
    if root is None:
        return [Problem(path, 0, 'is empty; valid: node: {ros__parameters: {name: value}}.')]
    errors = [*_check_sections(root, '', tables), *_check_agreement(root, tables)]
    errors.sort(key=lambda error: error.line)
    return [Problem(path, error.line, str(error)) for error in errors]


def _check_sections(
    root: Node, above: str, tables: typing.Mapping[str, type]
) -> Iterator[ParameterFileError]:
    """Check every node's section below a namespace."""
    if not isinstance(root, MappingNode):
        yield ParameterFileError('is no mapping of node names to parameters.', root)
        return
    yield from _repeated(root)
    for key, value in root.value:
        name = f'{above}/{key.value}'
        below = dict(_items(value))
        if _PARAMETERS not in below:
            if isinstance(value, MappingNode) and value.value:
                yield from _check_sections(value, name, tables)  # a namespace
            else:
                yield ParameterFileError(f'{key.value} has no {_PARAMETERS} below it.', key)
            continue
        for other in below.keys() - {_PARAMETERS}:
            yield ParameterFileError(f'{other} beside {_PARAMETERS} has no meaning.', key)
        yield from _check_section(name.rsplit('/', 1)[1], key, below[_PARAMETERS], tables)


def _check_section(
    node_name: str, key: Node, parameters: Node, tables: typing.Mapping[str, type]
) -> Iterator[ParameterFileError]:
    """Check one node's parameters; ** stands for every node."""
    if not isinstance(parameters, MappingNode):
        yield ParameterFileError(f'{node_name}: {_PARAMETERS} is no mapping.', key)
        return
    if node_name in ('*', '**'):
        candidates = list(tables.values())
    elif node_name in tables:
        candidates = [tables[node_name]]
    else:
        yield ParameterFileError(_unknown('node', node_name, tables), key)
        return
    yield from _repeated(parameters)
    for name, (name_node, value) in _flat(parameters).items():
        if name in EVERYWHERE or name.startswith(QOS_PREFIX):
            continue
        holders = [table for table in candidates if name in fields_of(table)]
        if not holders:
            known = {field for table in candidates for field in fields_of(table)}
            message = _unknown(f'parameter of {node_name}', name, sorted(known))
            yield ParameterFileError(message, name_node)
        for table in holders:
            fault = _fault(table, name, value)
            if fault:
                yield ParameterFileError(f'{node_name}: {name} is {fault}', value)
                break


def _check_agreement(
    root: Node, tables: typing.Mapping[str, type]
) -> Iterator[ParameterFileError]:
    """Check that those who must mean the same by a number do, defaults included."""
    sections = {name: _flat(given) for name, given in _sections(root, '')}
    shared: dict[str, tuple[Node, Node]] = {}
    for name, given in sections.items():
        if name.endswith('*'):
            shared |= given
    for full_name, given in sections.items():
        namespace, _, name = full_name.rpartition('/')
        for parameter_name, (first, others) in AGREEING.items():
            reference = sections.get(f'{namespace}/{first}')
            if name not in others or reference is None or not {first, name} <= tables.keys():
                continue
            wanted = _number(tables[first], parameter_name, shared | reference)
            number = _number(tables[name], parameter_name, shared | given)
            if number != wanted and None not in (number, wanted):
                place = given.get(parameter_name) or next(iter(given.values()), (root, root))
                yield ParameterFileError(
                    f'{name}: {parameter_name} is {number:g}, but {wanted:g} in {first}; valid: '
                    'the same in both.',
                    place[0],
                )


def _sections(root: Node, above: str) -> Iterator[tuple[str, MappingNode]]:
    """Full name of a node -> its parameters, of every section that has some."""
    for key, value in _items(root):
        parameters = dict(_items(value)).get(_PARAMETERS)
        if isinstance(parameters, MappingNode):
            yield f'{above}/{key.lstrip("/")}', parameters
        elif parameters is None:
            yield from _sections(value, f'{above}/{key.lstrip("/")}')


def _number(table: type, name: str, given: dict[str, tuple[Node, Node]]) -> float | None:
    """A parameter's value, given or default; None where what is given is no number."""
    if name not in given:
        default: Any = fields_of(table)[name].default
        return default
    try:
        return float(str(given[name][1].value))
    except ValueError:
        return None


def _fault(table: type, name: str, value_node: Node) -> str:
    """What is wrong with a value; empty when nothing is."""
    try:
        value = SafeConstructor().construct_document(value_node)
    except yaml.YAMLError as error:
        return f'no value: {error}'
    field = fields_of(table)[name]
    kind = typing.get_type_hints(table)[name]
    valid = valid_text(field) or type_name(table, name)
    if typing.get_origin(kind) is tuple:
        item_kind = typing.get_args(kind)[0]
        items = value if isinstance(value, list) else [value]
        if not isinstance(value, list) or not all(type(item) is item_kind for item in items):
            return f'{value!r}; valid: {type_name(table, name)}.{_hint(item_kind, items)}'
        return ''
    if type(value) is not kind:
        return f'{value!r}; valid: {valid}, of type {kind.__name__}.{_hint(kind, [value])}'
    limits, choices = field.metadata['valid'], field.metadata['choices']
    if choices and value not in choices:
        return f'{value!r}; valid: {valid}.'
    if limits and not (math.isfinite(value) and limits[0] <= value <= limits[1]):
        return f'{value!r}; valid: {valid}.'
    return ''


def _hint(kind: type, values: Iterable[Any]) -> str:
    """ROS tells 1 from 1.0 and takes no whole number for a real one."""
    if kind is float and any(type(value) is int for value in values):
        return ' Write a decimal point.'
    return ''


def _flat(mapping: MappingNode, above: str = '') -> dict[str, tuple[Node, Node]]:
    """Dotted name -> where the name stands, and its value: ROS nests names by mappings."""
    found: dict[str, tuple[Node, Node]] = {}
    for key, value in mapping.value:
        name = f'{above}{key.value}'
        if isinstance(value, MappingNode):
            found |= _flat(value, f'{name}.')
        else:
            found[name] = (key, value)
    return found


def _items(node: Node) -> list[tuple[str, Node]]:
    if not isinstance(node, MappingNode):
        return []
    return [(str(key.value), value) for key, value in node.value]


def _repeated(mapping: MappingNode) -> Iterator[ParameterFileError]:
    """YAML lets a later key replace an earlier one without a word."""
    seen: set[str] = set()
    for key, _ in mapping.value:
        name = key.value if isinstance(key, ScalarNode) else str(key)
        if name in seen:
            yield ParameterFileError(f'{name} is given twice.', key)
        seen.add(name)


def _unknown(kind: str, name: str, valid: Iterable[str]) -> str:
    names = list(valid)
    close = difflib.get_close_matches(name, names, n=1)
    hint = f' Did you mean {close[0]}?' if close else ''
    return f'unknown {kind}: {name}; valid: {", ".join(names)}.{hint}'
