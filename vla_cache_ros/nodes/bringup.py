"""The executable that runs the whole graph in one process, as `ros2 run` and `ros2 launch` do."""

from vla_cache_ros.nodes.command_guard import CommandGuardNode
from vla_cache_ros.nodes.monitor import Monitor
from vla_cache_ros.nodes.policy_node import PolicyNode
from vla_cache_ros.nodes.running import run_nodes
from vla_cache_ros.nodes.sim_bridge import SimBridge


def main(args: list[str] | None = None) -> int:
    """Run guard, monitor, policy and simulator in this process."""
    return run_nodes(CommandGuardNode, Monitor, PolicyNode, SimBridge, args=args)
