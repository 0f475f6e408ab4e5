"""The graph's figures at one moment, as the monitor sees them."""

from collections.abc import Mapping
from dataclasses import dataclass

from vla_cache_ros.core.timing import LatencySummary
from vla_cache_ros.nodes.report_messages import CommandReport, ShadowResult
from vla_cache_ros.nodes.step_messages import PolicyStep


@dataclass(frozen=True)
class NodeHealth:
    """What is known of a node that should give signs of life.

    Attributes:
        state: Its lifecycle state at the last one; empty before the first.
        silent_s: Wall time since the last one; None before the first.
    """

    state: str = ''
    silent_s: float | None = None


@dataclass(frozen=True)
class Snapshot:
    """The graph's figures at one moment.

    Attributes:
        latency: Name -> percentiles over the window, milliseconds. 'image_to_command' runs from
            the image's stamp to the first command computed from it, 'overhead' is the part of it
            that is not inference; 'transport', 'queue', the policy's own stages and 'publish'
            are parts of it, too.
        refresh_hz: Policy steps per second.
        command_hz: Commands per second.
        steps: Policy steps since start.
        commands: Commands since start, null actions included.
        null_commands: Null actions since start.
        deadline_misses: Steps whose first command came later than deadline_ms.
        late_refreshes: Steps that missed the policy's own deadline.
        drops: Dropped observations by reason, and reports that could not be read.
        guard: The guard's counts by reason.
        degradations: Commands by what the guard ran on: nominal, on_chunk, hold.
        last_step: The newest policy step.
        last_command: The newest command.
        last_drop: Why the newest observation or report was not used, in words.
        last_shadow: The newest comparison with a dense step.
        shadow_alarms: Comparisons beyond the first budget.
        nodes: The nodes that should give signs of life.
    """

    latency: Mapping[str, LatencySummary]
    refresh_hz: float
    command_hz: float
    steps: int
    commands: int
    null_commands: int
    deadline_misses: int
    late_refreshes: int
    drops: Mapping[str, int]
    guard: Mapping[str, int]
    degradations: Mapping[str, int]
    last_step: PolicyStep | None
    last_command: CommandReport | None
    last_drop: str
    last_shadow: ShadowResult | None
    shadow_alarms: int
    nodes: Mapping[str, NodeHealth]
