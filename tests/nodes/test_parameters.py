"""One declaration gives descriptor, typed values and the document."""

import dataclasses
from pathlib import Path

import pytest
from rcl_interfaces.msg import ParameterType
from rclpy.node import Node
from rclpy.parameter import Parameter

from vla_cache_ros.core.errors import ConfigError, UnknownNameError
from vla_cache_ros.nodes.parameter_tables.command_guard import GuardParameters
from vla_cache_ros.nodes.parameter_tables.overview import NODES, markdown
from vla_cache_ros.nodes.parameter_tables.sim_bridge import SimBridgeParameters as Sim
from vla_cache_ros.nodes.parameters import declare, descriptor

pytestmark = pytest.mark.ros

DOCUMENT = Path(__file__).resolve().parents[2] / 'docs' / 'parameters.md'


def node_with(**values) -> Node:
    overrides = [Parameter(name, value=value) for name, value in values.items()]
    return Node('some_node', parameter_overrides=overrides)


def test_document_is_current():
    assert DOCUMENT.read_text(encoding='utf-8') == markdown(), (
        'run: python -m vla_cache_ros.nodes.parameter_tables > docs/parameters.md'
    )


@pytest.mark.parametrize('table', NODES.values())
def test_every_parameter_has_a_description_and_a_valid_default(table, ros):
    values = declare(Node('some_node'), table)
    assert values == table()
    for field in dataclasses.fields(table):
        assert descriptor(table, field.name).description
        if field.name.endswith(('_s', '_ms', '_hz', '_px')):
            assert field.metadata['unit'], field.name


def test_descriptor_carries_type_range_and_read_only():
    frequency = descriptor(GuardParameters, 'control_frequency_hz')
    assert frequency.type == ParameterType.PARAMETER_DOUBLE
    assert descriptor(GuardParameters, 'autostart').read_only
    assert not frequency.read_only
    assert frequency.floating_point_range[0].to_value == 1000.0
    steps = descriptor(Sim, 'frame_every')
    assert steps.integer_range[0].from_value == 1
    assert not steps.read_only
    assert descriptor(Sim, 'mode').additional_constraints == 'one of: lockstep, realtime'


def test_values_come_from_outside_and_arrays_become_tuples(ros):
    values = declare(node_with(task=4, camera_names=['wrist']), Sim)
    assert values.task == 4
    assert values.camera_names == ('wrist',)


@pytest.mark.parametrize(
    ('name', 'value', 'named'),
    [
        ('frame_every', 0, '1 to 1000'),
        ('frame_every', 'many', '1 to 1000'),
        ('control_frequency_hz', -1.0, '0.1 to 1000'),
        ('suite', 3, 'valid: str'),
    ],
)
def test_value_out_of_range_is_refused_by_name(ros, name, value, named):
    with pytest.raises(ConfigError, match=f'parameter {name}(.|\n)*{named}'):
        declare(node_with(**{name: value}), Sim)


def test_value_that_is_no_choice_is_refused(ros):
    with pytest.raises(UnknownNameError, match='valid: lockstep, realtime'):
        declare(node_with(mode='turbo'), Sim)


def test_later_change_is_checked_too(ros):
    node = node_with()
    declare(node, Sim)
    refused, accepted = node.set_parameters(
        [Parameter('mode', value='turbo'), Parameter('task', value=7)]
    )
    assert not refused.successful
    assert 'lockstep, realtime' in refused.reason
    assert accepted.successful
    assert node.get_parameter('mode').value == 'lockstep'


def test_read_only_parameter_does_not_change(ros):
    node = node_with()
    declare(node, GuardParameters)
    assert not node.set_parameters([Parameter('autostart', value=False)])[0].successful


def test_an_array_that_is_empty_by_default_takes_numbers_and_nothing_else(ros):
    corner = declare(node_with(workspace_lower_m=[0, 1, 2]), GuardParameters).workspace_lower_m
    assert corner == (0.0, 1.0, 2.0)
    with pytest.raises(ConfigError, match='workspace_lower_m is .* valid: float array'):
        declare(node_with(workspace_lower_m=['a']), GuardParameters)


def test_undeclared_parameter_is_warned_of_and_shared_ones_are_not(ros, capfd):
    declare(node_with(control_frequency=20.0, autostart=True), GuardParameters)
    said = capfd.readouterr().err
    assert 'control_frequency is set and has no effect' in said
    assert 'Did you mean control_frequency_hz?' in said
    assert 'autostart' not in said
