"""Parameters of command_guard."""

import dataclasses

from vla_cache_ros.core.guard import LIMIT_POLICIES
from vla_cache_ros.nodes.parameters import ManagedParameters, parameter


@dataclasses.dataclass(frozen=True)
class GuardParameters(ManagedParameters):
    """Parameters of command_guard; read at each configure."""

    autostart: bool = parameter(
        True,
        'Configure and activate without being told, once spinning: the guard is up before '
        'anything that may move the robot.',
        read_only=True,
    )
    control_frequency_hz: float = parameter(
        20.0,
        'Commands per second in timer pacing.',
        unit='Hz',
        valid=(0.1, 1000.0),
    )
    pacing: str = parameter(
        'timer',
        'timer: one command per period; state: one command per joint state (lockstep simulation).',
        choices=('timer', 'state'),
    )
    actions_per_chunk: int = parameter(
        4,
        'Actions executed of each chunk before the next one is needed.',
        unit='steps',
        valid=(1, 1000),
    )
    stale_image_timeout_s: float = parameter(
        1.0,
        'Age of the image behind an action beyond which the action is not sent. The last action '
        "of a chunk is as old as the chunk's execution plus the inference.",
        unit='s',
        valid=(0.01, 60.0),
    )
    lower_limits: tuple[float, ...] = parameter(
        (-1.0,) * 7,
        'Least value of each axis (x, y, z, rx, ry, rz, gripper), 1 being full speed.',
    )
    upper_limits: tuple[float, ...] = parameter(
        (1.0,) * 7, 'Greatest value of each axis, in the same order.'
    )
    on_limit: str = parameter(
        'clip',
        'clip: send a value out of limits as the limit; null: send the null action instead.',
        choices=LIMIT_POLICIES,
    )
    dry_run: bool = parameter(False, 'Compute and report commands, but do not publish them.')
