"""Parameters of recorder."""

import dataclasses

from vla_cache_ros.nodes.parameters import ManagedParameters, parameter
from vla_cache_ros.recording.limits import COMPRESSIONS


@dataclasses.dataclass(frozen=True)
class RecorderParameters(ManagedParameters):
    """Parameters of recorder; read at each configure."""

    folder: str = parameter(
        '~/vla_cache_recordings', 'Where recordings go; made where it is missing.'
    )
    prefix: str = parameter(
        'vla', 'Beginning of the names of the files: PREFIX_DATE_TIMEZ_000.mcap, in UTC.'
    )
    record_on_activate: bool = parameter(
        True, 'Begin to record when activated; else when ~/start is called.'
    )
    topics: tuple[str, ...] = parameter(
        (
            'camera/*',
            'joint_states',
            'ee_pose',
            'vla/*',
            'policy_node/step_report',
            'policy_node/shadow_report',
            'bringup_manager/state',
            '/diagnostics',
        ),
        'What to record; * stands for any characters. Relative names are below the namespace of '
        'the node.',
    )
    exclude: tuple[str, ...] = parameter(
        ('*/heartbeat',), 'What not to record of that, for instance camera/*/image_raw.'
    )
    queue_depth: int = parameter(
        100, 'Messages of one topic that the middleware keeps for the node.', valid=(1, 10000)
    )
    queue_mib: int = parameter(
        256,
        'Messages that may wait for the disk; what does not fit is dropped and counted.',
        unit='MiB',
        valid=(1, 65536),
    )
    flush_period_s: float = parameter(
        0.0,
        'Longest time that a message waits for others to share its chunk; it bounds what the '
        "recorder's own death costs. 0: each is written at once.",
        unit='s',
        valid=(0.0, 10.0),
    )
    sync_period_s: float = parameter(
        1.0,
        'Time between two syncs of the disk, which bounds what a power cut costs, and between '
        'two looks at its free space; 0: none before the end.',
        unit='s',
        valid=(0.0, 3600.0),
    )
    max_file_mib: int = parameter(
        2048,
        'A file that is so large is followed by the next one; 0: never.',
        unit='MiB',
        valid=(0, 1048576),
    )
    max_file_s: float = parameter(
        600.0,
        'A file that is so old is followed by the next one; 0: never.',
        unit='s',
        valid=(0.0, 86400.0),
    )
    min_free_mib: int = parameter(
        1024,
        'The recording stops while the disk still has so much free, so that all else goes on.',
        unit='MiB',
        valid=(0, 1048576),
    )
    compression: str = parameter(
        'none', 'Compression within the file; it costs processor time.', choices=COMPRESSIONS
    )
    discovery_period_s: float = parameter(
        0.1, 'Wall time between two looks for new topics.', unit='s', valid=(0.01, 60.0)
    )
    publish_period_s: float = parameter(
        1.0, 'Wall time between two messages on /diagnostics.', unit='s', valid=(0.05, 60.0)
    )
