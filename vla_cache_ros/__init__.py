"""vla_cache_ros: vision-language-action policies under VLA-Cache, as ROS 2 nodes."""

__version__ = '0.1.0'
