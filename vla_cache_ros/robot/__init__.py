"""A robot's kinematics from its description: where the tool is, and which joints take it there."""
