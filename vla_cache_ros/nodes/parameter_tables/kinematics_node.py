"""Parameters of kinematics_node."""

import dataclasses

from vla_cache_ros.nodes.parameter_tables.arm import ArmParameters


@dataclasses.dataclass(frozen=True)
class KinematicsParameters(ArmParameters):
    """Parameters of kinematics_node; read at each configure."""
