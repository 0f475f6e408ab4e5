"""Which simulator a suite runs in."""

from vla_cache_ros.evaluation.environment import Environment


def make_libero(suite: str, task: int, image_size_px: int) -> Environment:
    """Build LIBERO's simulator, in this process."""
    from vla_cache_sim.libero import make_env

    return make_env(suite, task, image_size_px=image_size_px)
