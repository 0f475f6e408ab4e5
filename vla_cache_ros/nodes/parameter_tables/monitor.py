"""Parameters of monitor."""

import dataclasses

from vla_cache_ros.nodes.parameters import parameter


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
    heartbeat_nodes: tuple[str, ...] = parameter(
        ('policy_node', 'command_guard'),
        'Nodes whose signs of life are watched, by name within the namespace.',
        read_only=True,
    )
    heartbeat_timeout_s: float = parameter(
        1.0,
        'Silence after which a node that was heard is reported as lost.',
        unit='s',
        valid=(0.05, 600.0),
        read_only=True,
    )
