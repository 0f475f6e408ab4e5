"""The method and the protocols: pure numpy and torch, no rclpy, no simulator, no engine.

Dimension letters used in every shape comment of the project:

====  =============================================================
B     batch
C     cameras
H, W  image height and width, pixels
P     patches of one camera (rows x cols)
N     tokens of the whole sequence = slots of the K/V cache
K     tokens recomputed in this step, K <= N
L     decoder layers
G     layer groups (runs of layers sharing one set of recomputed tokens)
A     attention heads (Akv: key/value heads under grouped-query attention)
D     model width; d: width of one head
T     actions in a chunk
====  =============================================================
"""
