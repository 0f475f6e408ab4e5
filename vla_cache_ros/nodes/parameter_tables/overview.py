"""All tables of parameters, and docs/parameters.md made from them."""

import dataclasses

from vla_cache_ros.nodes.parameter_tables.bringup_manager import BringupParameters
from vla_cache_ros.nodes.parameter_tables.camera_node import CameraParameters
from vla_cache_ros.nodes.parameter_tables.command_guard import GuardParameters
from vla_cache_ros.nodes.parameter_tables.command_sink import SinkParameters
from vla_cache_ros.nodes.parameter_tables.fault_injector import FaultInjectorParameters
from vla_cache_ros.nodes.parameter_tables.kinematics_node import KinematicsParameters
from vla_cache_ros.nodes.parameter_tables.monitor import MonitorParameters
from vla_cache_ros.nodes.parameter_tables.policy_node import PolicyParameters
from vla_cache_ros.nodes.parameter_tables.recorder import RecorderParameters
from vla_cache_ros.nodes.parameter_tables.sim_bridge import SimBridgeParameters
from vla_cache_ros.nodes.parameters import default_text, type_name, valid_text

NODES: dict[str, type] = {
    'policy_node': PolicyParameters,
    'camera_node': CameraParameters,
    'sim_bridge': SimBridgeParameters,
    'command_guard': GuardParameters,
    'command_sink': SinkParameters,
    'kinematics_node': KinematicsParameters,
    'monitor': MonitorParameters,
    'bringup_manager': BringupParameters,
    'fault_injector': FaultInjectorParameters,
    'recorder': RecorderParameters,
}
"""Executable name -> its parameters."""


def markdown() -> str:
    """Render docs/parameters.md from the tables."""
    lines = [
        '# Parameters',
        '',
        'Made from `vla_cache_ros/nodes/parameter_tables/` by '
        '`python -m vla_cache_ros.nodes.parameter_tables`; do not edit by hand.',
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
                type_name(table, field.name),
                default_text(field.default),
                field.metadata['unit'],
                valid_text(field),
                'yes' if field.metadata['read_only'] else '',
                field.metadata['description'],
            )
            lines.append('| ' + ' | '.join(cells) + ' |')
    return '\n'.join(lines) + '\n'
