"""Simulators in other processes and Python environments; see docs/remote_environments.md."""
