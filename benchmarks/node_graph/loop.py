"""The graph of a simulator in the loop on simulated time, a process per node."""

import json
from dataclasses import replace
from pathlib import Path

from node_graph.processes import NodeSpec
from node_graph.robot_graph import NODES, ROOT

CONFIG = ROOT / 'config' / 'libero_small_vla_realtime.yaml'
STAND_IN = {'steps': 100, 'motion': 0.1, 'height_px': 64, 'width_px': 64}


def soak_nodes(folder: Path, suite: str, stand_in: bool) -> list[NodeSpec]:
    """Every node of the loop, in the order of their start.

    Args:
        folder: Where the recording goes.
        suite: LIBERO's suite.
        stand_in: A simulator and a policy that cost nothing instead.
    """
    simulator = NodeSpec(
        'sim_bridge',
        f'{NODES}.sim_bridge',
        {'autostart': True, 'episodes': 0, 'suite': suite},
        params_file=CONFIG,
    )
    policy = _on_simulated_time('policy_node', autostart=True)
    if stand_in:
        settings = json.dumps(STAND_IN)
        simulator, policy = (
            replace(spec, module='stand_ins.py', arguments=(kind, settings))
            for spec, kind in ((simulator, 'simulator'), (policy, 'policy'))
        )
    sink = {'position_scale_m': 0.05, 'rotation_scale_rad': 0.5}
    recording = {'folder': str(folder / 'recording'), 'exclude': ['*/heartbeat', 'camera/*']}
    return [
        _on_simulated_time('command_guard', autostart=True),
        _on_simulated_time('command_sink', autostart=True, **sink),
        _on_simulated_time('recorder', autostart=True, **recording),
        _on_simulated_time('monitor'),
        policy,
        simulator,
    ]


def _on_simulated_time(name: str, **parameters: object) -> NodeSpec:
    values = {'use_sim_time': True, **parameters}
    return NodeSpec(name, f'{NODES}.{name}', values, params_file=CONFIG)
