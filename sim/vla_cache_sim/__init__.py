"""Simulated robots as gymnasium environments, with scripted experts.

Importing this module registers one id per suite; it imports no simulator, so it costs nothing
where none is installed:

    >>> import gymnasium, vla_cache_sim
    >>> env = gymnasium.make('vla_cache_sim/LiberoObject-v0', task=0, image_size_px=128)
    >>> observation, info = env.reset(seed=0, options={'init_state': 0})
"""

import os

import gymnasium

from vla_cache_sim.suites import SUITES, Suite

# MuJoCo reads it once, at its first import.
os.environ.setdefault('MUJOCO_GL', 'egl')

__all__ = ['SUITES', 'Suite']

ENTRY_POINTS = {
    'libero': 'vla_cache_sim.libero:LiberoEnv',
    'maniskill': 'vla_cache_sim.maniskill:ManiSkillEnv',
    'google_robot': 'vla_cache_sim.google_robot:make_env',
}

for _suite in SUITES.values():
    if _suite.gym_id not in gymnasium.registry:
        gymnasium.register(
            id=_suite.gym_id,
            entry_point=ENTRY_POINTS[_suite.simulator],
            kwargs={'suite': _suite.name},
        )
