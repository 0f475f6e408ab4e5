"""What a process may ask of the system so that its commands come on time."""

import gc
import os

from vla_cache_ros.core.errors import ConfigError


def freeze_garbage() -> None:
    """Take all that exists out of the garbage collection, whose pauses grow with it."""
    gc.collect()
    gc.freeze()


def set_priority(priority: int) -> None:
    """Run the calling thread under SCHED_FIFO, or as an ordinary thread again.

    Args:
        priority: 1 to 99, 99 the most urgent; 0: ordinary.

    Raises:
        ConfigError: The system has no such scheduling, or does not permit it.
    """
    if not hasattr(os, 'sched_setscheduler'):
        raise ConfigError('realtime_priority needs Linux; set it to 0.')
    policy = os.SCHED_FIFO if priority else os.SCHED_OTHER
    try:
        os.sched_setscheduler(0, policy, os.sched_param(priority))
    except OSError as error:
        raise ConfigError(
            f'realtime_priority {priority} is not permitted ({error.strerror}); grant it, e.g. '
            '"@realtime - rtprio 99" in /etc/security/limits.conf or CAP_SYS_NICE, or set it to 0.'
        ) from error
