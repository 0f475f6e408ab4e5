"""Parameters of bringup_manager."""

import dataclasses

from vla_cache_ros.nodes.parameters import parameter


@dataclasses.dataclass(frozen=True)
class BringupParameters:
    """Parameters of bringup_manager; read once, at start."""

    node_names: tuple[str, ...] = parameter(
        ('command_guard', 'command_sink', 'policy_node'),
        "Lifecycle nodes in the manager's own namespace, in the order in which they are "
        'configured and activated; what holds the robot comes first.',
        read_only=True,
    )
    processes: tuple[str, ...] = parameter(
        ('policy_node',),
        "Those of them that the manager itself starts, restarts and stops, each by the package's "
        "executable of that name with the manager's own parameter files, remappings and "
        'namespace. The others are started by somebody else.',
        read_only=True,
    )
    hold_nodes: tuple[str, ...] = parameter(
        ('command_guard', 'command_sink'),
        'Those that stay active when another node is lost: they hold the robot still.',
        read_only=True,
    )
    autostart: bool = parameter(
        False, 'Configure and activate everything at start, without being told.', read_only=True
    )
    reactivate: bool = parameter(
        False,
        'Activate again after a loss without being told. Leave it off where people stand beside '
        'the robot.',
        read_only=True,
    )
    heartbeat_timeout_s: float = parameter(
        0.5,
        'Silence of a node after which it is lost. The guard has a limit of its own, of two '
        'command periods.',
        unit='s',
        valid=(0.02, 60.0),
        read_only=True,
    )
    configure_timeout_s: float = parameter(
        120.0,
        'Wait for configure, in which a policy loads its model.',
        unit='s',
        valid=(0.1, 3600.0),
        read_only=True,
    )
    transition_timeout_s: float = parameter(
        5.0,
        'Wait for every other transition.',
        unit='s',
        valid=(0.1, 600.0),
        read_only=True,
    )
    startup_timeout_s: float = parameter(
        60.0,
        'Wait for the first sign of life of a process that the manager started.',
        unit='s',
        valid=(0.1, 600.0),
        read_only=True,
    )
    hang_timeout_s: float = parameter(
        5.0,
        'Time in which a silent process of its own may come back before it is stopped and '
        'started again.',
        unit='s',
        valid=(0.0, 600.0),
        read_only=True,
    )
    stop_timeout_s: float = parameter(
        3.0,
        'Time between SIGTERM and SIGKILL.',
        unit='s',
        valid=(0.0, 60.0),
        read_only=True,
    )
    max_restarts: int = parameter(
        3,
        'Restarts of a node within restart_window_s before it is given up.',
        valid=(0, 1000),
        read_only=True,
    )
    restart_window_s: float = parameter(
        300.0,
        'Window in which restarts are counted.',
        unit='s',
        valid=(0.1, 86400.0),
        read_only=True,
    )
