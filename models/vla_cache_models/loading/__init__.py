"""Checkpoints of public layouts: found, checked before any memory is spent, and loaded."""
