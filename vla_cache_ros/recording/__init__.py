"""Recordings of the graph as MCAP files: a crash costs nothing written, damage is told.

Knows the core alone. Messages pass through as the bytes that the middleware delivered (CDR),
beside the definition of their type, so that Foxglove, PlotJuggler and `ros2 bag` read the files.
"""
