"""What a supervisor is told of its nodes and what it has seen of them."""

from collections import deque
from dataclasses import dataclass, field

from vla_cache_ros.core.errors import ConfigError, UnknownNameError

# Lifecycle states from the lowest to the highest.
RANKS = {'finalized': 0, 'unconfigured': 1, 'inactive': 2, 'active': 3}
LIVING = ('unconfigured', 'inactive', 'active')
TARGETS = {
    'configure': 'inactive',
    'activate': 'active',
    'deactivate': 'inactive',
    'shutdown': 'finalized',
}
"""Transition -> the state that it leads to."""


@dataclass(frozen=True)
class SupervisionConfig:
    """Whom to supervise, and how patiently.

    Attributes:
        nodes: Names in the order of activation.
        processes: Those whose processes the supervisor itself starts and stops.
        holders: Those that stay active when another one is lost: they hold the robot.
        reactivate: Whether to activate again after a loss without being told.
        heartbeat_timeout_s: Silence after which a node is lost.
        configure_timeout_s: Wait for `configure`, which may load a model.
        transition_timeout_s: Wait for every other transition.
        startup_timeout_s: Wait for the first sign of life of a process.
        hang_timeout_s: Time for which a lost process may come back before it is stopped.
        max_restarts: Restarts in the window before a node is given up.
        restart_window_s: The window.
    """

    nodes: tuple[str, ...]
    processes: tuple[str, ...] = ()
    holders: tuple[str, ...] = ()
    reactivate: bool = False
    heartbeat_timeout_s: float = 0.5
    configure_timeout_s: float = 120.0
    transition_timeout_s: float = 5.0
    startup_timeout_s: float = 30.0
    hang_timeout_s: float = 5.0
    max_restarts: int = 3
    restart_window_s: float = 60.0

    def __post_init__(self) -> None:
        """Check that the names fit together.

        Raises:
            ConfigError: There is no node, or one is named twice.
            UnknownNameError: A process or holder is not among the nodes.
        """
        if not self.nodes or len(set(self.nodes)) < len(self.nodes):
            raise ConfigError(f'nodes are {self.nodes}; valid: at least one, each named once.')
        for kind, names in (('process', self.processes), ('holder', self.holders)):
            for name in names:
                if name not in self.nodes:
                    raise UnknownNameError(kind, name, self.nodes)


@dataclass
class SupervisedNode:
    """What is known of one node.

    Attributes:
        name: Its name.
        owned: Whether its process is the supervisor's own.
        state: A lifecycle state, 'starting' (no sign of life yet) or 'lost'.
        detail: Why it is in that state, where that needs saying.
        restarts: How often it began anew.
        failed: Given up, or refused a transition: nothing more is asked of it until told to.
    """

    name: str
    owned: bool
    state: str = 'starting'
    detail: str = ''
    restarts: int = 0
    failed: bool = False
    since_s: float = 0.0  # of starting or lost
    heard_s: float = 0.0
    pending: str = ''
    pending_since_s: float = 0.0
    doubtful: bool = False
    asked_s: float | None = None
    running: bool = False
    stopping: bool = False
    started: bool = False
    configured: bool = False
    restarted_s: deque[float] = field(default_factory=deque[float])

    @property
    def is_settled(self) -> bool:
        """Whether it may be asked for a transition."""
        return not (self.pending or self.failed or self.doubtful)

    @property
    def is_missing(self) -> bool:
        """Whether it was there and is not now."""
        began_anew = self.state == 'starting' and self.restarts > 0
        return self.state in ('lost', 'finalized') or began_anew
