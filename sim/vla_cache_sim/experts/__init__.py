"""Scripted experts: the right action in any state of the simulator, from ground truth."""

from vla_cache_sim.experts.pick_place import Expert, make_expert

__all__ = ['Expert', 'make_expert']
