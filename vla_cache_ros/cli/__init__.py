"""The composition root: each command wires policy, environment and nodes together."""
