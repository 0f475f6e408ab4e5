"""Parameters of the nodes that need the arm's kinematics."""

import dataclasses

from vla_cache_ros.nodes.parameters import ManagedParameters, parameter


@dataclasses.dataclass(frozen=True)
class ArmParameters(ManagedParameters):
    """The chain of joints from a base link to a tip link."""

    base_link: str = parameter('base_link', 'Link whose frame poses and deltas are given in.')
    tip_link: str = parameter('tool0', "Link whose origin is the tool's point.")
    joint_names: tuple[str, ...] = parameter(
        ('',), 'Joints of the arm in the order of the controller; empty: from base to tip.'
    )
    urdf_path: str = parameter(
        '', 'File of the robot description (URDF); empty: the topic robot_description.'
    )
