"""Parameters of sim_bridge."""

import dataclasses

from vla_cache_ros.nodes.parameters import ManagedParameters, parameter


@dataclasses.dataclass(frozen=True)
class SimBridgeParameters(ManagedParameters):
    """Parameters of sim_bridge; read at each configure, the episode's own at each reset."""

    suite: str = parameter('libero_object', 'Suite of tasks that the simulator loads.')
    task: int = parameter(0, 'Task of the next episode (read at reset).', valid=(0, 999))
    init_state: int = parameter(
        0, 'Initial state of the next episode (read at reset).', valid=(0, 9999)
    )
    seed: int = parameter(0, 'Seed of the next episode (read at reset).', valid=(0, 2**31 - 1))
    episodes: int = parameter(
        0,
        'Episodes to play on its own after activation, init_state counting up; 0 waits for '
        '~/reset.',
        valid=(0, 10000),
    )
    mode: str = parameter(
        'lockstep',
        'lockstep: one control step per command, reproducible; realtime: one per period.',
        choices=('lockstep', 'realtime'),
    )
    control_frequency_hz: float = parameter(
        20.0, 'Control steps per second of simulated time.', unit='Hz', valid=(0.1, 1000.0)
    )
    frame_every: int = parameter(
        4,
        'Control steps from one rendered pair of images to the next. In lockstep it must equal '
        "the guard's actions_per_chunk.",
        unit='steps',
        valid=(1, 1000),
    )
    image_size_px: int = parameter(128, 'Side of the square images.', unit='px', valid=(16, 2048))
    camera_names: tuple[str, ...] = parameter(
        ('agentview', 'wrist'), 'Cameras to render; each becomes camera/<name>/image_raw.'
    )
    command_timeout_s: float = parameter(
        5.0,
        'Lockstep: wait for a command this long (wall time), then step with the null action.',
        unit='s',
        valid=(0.001, 600.0),
    )
    peer_timeout_s: float = parameter(
        10.0,
        'Wait this long (wall time) for the peers to take notice of a reset before the first '
        'frame is sent all the same.',
        unit='s',
        valid=(0.0, 600.0),
    )
    reset_services: tuple[str, ...] = parameter(
        ('policy_node/reset', 'command_guard/reset'),
        'Services (std_srvs/Trigger) to call before the first frame of an episode.',
    )
