"""Times what ROS 2 adds between an image and its command.

    python benchmarks/middleware.py [--frames 400] [--json]
    python benchmarks/middleware.py --part processes

The real nodes; simulator and policy are stand-ins that cost nothing but their messages and a fixed
inference time. 'Overhead' is the time from the stamping of the images to the publication of the
first command computed from them, without the inference.

The first part runs the graph in lockstep in one process, under both executors; the second one
process against several in realtime, by number, rate and size of cameras. Its result is
benchmarks/results/middleware_processes.json; `python benchmarks/make_tables.py` renders both.
"""

import json
import os
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

os.environ.setdefault('ROS_AUTOMATIC_DISCOVERY_RANGE', 'LOCALHOST')  # read once, by rclpy.init
os.environ.setdefault('ROS_DOMAIN_ID', str(os.getpid() % 100 + 1))

import numpy as np
import rclpy
import tyro
from node_graph.processes import ROOT, NodeSpec, node_processes
from node_graph.results import merge_result
from node_graph.robot_graph import EventLog, Observed
from node_graph.verdict import Event
from rclpy.executors import Executor, SingleThreadedExecutor
from stand_ins import StandIn, StandInEnv, StandInPolicy

from vla_cache_ros.cli.report.machine import describe_machine, describe_versions
from vla_cache_ros.nodes.composition import Graph
from vla_cache_ros.nodes.monitor import Monitor
from vla_cache_ros.nodes.running import make_executor

CAMERAS = ('agentview', 'wrist')
NAMES = ('agentview', 'wrist', 'left', 'right')
SETTLE_S = 1.0
PROFILE = ROOT / 'config' / 'fastdds.xml'
PROCESSES: dict[str, dict[str, str]] = {
    'one': {},
    'several': {},
    'several, config/fastdds.xml': {'FASTDDS_DEFAULT_PROFILES_FILE': str(PROFILE)},
}
"""How the nodes are spread over processes -> environment."""
WARM_UP_FRAMES = 20
PARTS = ('transport', 'queue', 'publish', 'overhead', 'inference', 'image_to_command')
COLUMNS = ('p50_ms', 'p95_ms', 'p99_ms', 'max_ms')
EXECUTORS = {'events executor': make_executor, 'single-threaded executor': SingleThreadedExecutor}


@dataclass(frozen=True)
class Options:
    """Middleware benchmark."""

    part: Literal['executors', 'processes'] = 'executors'
    """What is measured."""
    frames: int = 400
    """Pairs of images for each measurement."""
    inference_ms: float = 10.0
    """Time that the stand-in policy takes."""
    image_sizes_px: tuple[int, ...] = (128, 224)
    """Sides of the square images, of the executors."""
    cameras: tuple[int, ...] = (1, 2, 4)
    """Numbers of cameras, of the processes."""
    rates_hz: tuple[float, ...] = (30.0, 60.0)
    """Their rates."""
    sizes_px: tuple[str, ...] = ('224x224', '640x480')
    """Their sizes."""
    seconds: float = 8.0
    """Of each measurement of the processes."""
    json: bool = False
    """Print one JSON object instead of the table."""


def measure(options: Options, image_size_px: int, executor: Executor) -> Monitor:
    """Play one long episode and return the monitor that watched it."""
    settings = StandIn(CAMERAS, image_size_px, image_size_px, options.inference_ms)
    with Graph(
        policy_factory=lambda _: StandInPolicy(settings),
        env_factory=lambda _: StandInEnv(settings),
        overrides={
            'sim_bridge': {'frame_every': 1},
            'command_guard': {'pacing': 'state', 'actions_per_chunk': 1},
            'monitor': {'window': 1_000_000},
        },
        executor=executor,
    ) as graph:
        graph.run_episode(task=0, init_state=WARM_UP_FRAMES)
        graph.monitor.clear()
        graph.run_episode(task=0, init_state=options.frames)
        return graph.monitor


def main() -> None:
    """Measure one part."""
    options = tyro.cli(Options, description=__doc__)
    if options.part == 'processes':
        measure_processes(options)
    else:
        measure_executors(options)


def measure_processes(options: Options) -> None:
    """One process against several, by cameras."""
    rows = {}
    for size in options.sizes_px:
        for rate_hz in options.rates_hz:
            for count in options.cameras:
                for processes in PROCESSES:
                    cameras = f'{count} x {size}, {rate_hz:g} Hz'
                    row = measure_graph(options, count, rate_hz, size, processes)
                    rows[f'{cameras}, {processes}'] = {
                        'cameras': cameras,
                        'processes': processes,
                        **row,
                    }
                    print(cameras, processes, row, flush=True)
    merge_result(
        'middleware_processes',
        {'rows': rows},
        options=asdict(options),
        command='python benchmarks/middleware.py --part processes',
    )


def measure_graph(
    options: Options, count: int, rate_hz: float, size: str, processes_are: str
) -> dict[str, Any]:
    """Run one graph in realtime and read what its reports say."""
    topics = ('sim_bridge/time_reference', 'policy_node/step_report', 'vla/status')
    several = processes_are != 'one'
    environment = PROCESSES[processes_are]
    with (
        tempfile.TemporaryDirectory() as folder,
        node_processes(Path(folder), environment) as processes,
    ):
        observed = Observed(processes, topics)
        for spec in stand_in_nodes(options, count, rate_hz, size, several):
            processes.start(spec)
        observed.wait_for_motion()
        time.sleep(SETTLE_S)
        used = {n: p for n, p in processes.usage().items() if n != 'observer'}
        for process in used.values():
            process.cpu_percent()
        began_ns = time.monotonic_ns()
        time.sleep(options.seconds)
        cpu = {name: process.cpu_percent() / 100 for name, process in used.items()}
        ended_ns = time.monotonic_ns()
        time.sleep(0.5)  # the answers to the window's last frames
        events = EventLog(Path(folder) / 'events.jsonl').new()
    return {**overheads(events, (began_ns, ended_ns)), 'cpu': cpu}


def stand_in_nodes(
    options: Options, count: int, rate_hz: float, size: str, several: bool
) -> list[NodeSpec]:
    """The graph's nodes, each command answered as soon as its chunk is there."""
    width, height = map(int, size.split('x'))
    cameras = NAMES[:count]
    settings = StandIn(cameras, height, width, options.inference_ms, steps=10**9, motion=0.1)
    simulator = {
        'mode': 'realtime',
        'episodes': 1,
        'frame_every': 1,
        'camera_names': list(cameras),
    }
    clock = {'autostart': True, 'control_frequency_hz': rate_hz}
    guard = {'pacing': 'state', 'actions_per_chunk': 1, 'use_sim_time': True}
    text = json.dumps(asdict(settings))

    def spec(kind: str, name: str, **parameters: Any) -> NodeSpec:
        return NodeSpec(name, 'stand_ins.py', clock | parameters, arguments=(kind, text))

    if several:
        return [
            spec('guard', 'command_guard', **guard),
            spec('policy', 'policy_node', use_sim_time=True),
            spec('simulator', 'sim_bridge', **simulator),
        ]
    per_node = {
        'command_guard': guard,
        'policy_node': {'use_sim_time': True},
        'sim_bridge': simulator,
    }
    prefixed = {
        f'{node}:{key}': v for node, values in per_node.items() for key, v in values.items()
    }
    return [spec('all', 'graph', **prefixed)]


def overheads(events: list[Event], window_ns: tuple[int, int]) -> dict[str, float]:
    """Percentiles of image to command without inference, of the frames stamped in a window."""
    low, high = window_ns
    captured = {
        e['stamp_ns']: e['captured_ns']
        for e in events
        if e['kind'] == 'frame' and low <= e['captured_ns'] < high
    }
    inference = {e['stamp_ns']: e['inference_ms'] for e in events if e['kind'] == 'report'}
    commanded: dict[int, int] = {}
    for event in events:
        if event['kind'] == 'status' and not event['is_null']:
            commanded.setdefault(event['image_stamp_ns'], event['published_ns'])
    times_ms = [
        (commanded[stamp] - captured_ns) / 1e6 - inference[stamp]
        for stamp, captured_ns in captured.items()
        if stamp in commanded and stamp in inference
    ]
    p50, p99 = np.percentile(times_ms, (50, 99))
    return {
        'p50_ms': float(p50),
        'p99_ms': float(p99),
        'max_ms': max(times_ms),
        'frames': len(captured),
        'answered_share': len(times_ms) / len(captured),
    }


def measure_executors(options: Options) -> None:
    """Measure each size under each executor, in lockstep."""
    overhead: dict[str, dict[str, Any]] = {}
    parts: dict[str, dict[str, Any]] = {}
    for name, make in EXECUTORS.items():
        for size_px in options.image_sizes_px:
            rclpy.init()
            try:
                latency = measure(options, size_px, make()).snapshot().latency
            finally:
                rclpy.try_shutdown()
            label = f'{len(CAMERAS)} x {size_px} px, {name}'
            figures = {part: asdict(latency[part]) for part in PARTS}
            overhead[label] = {column: figures['overhead'][column] for column in COLUMNS}
            parts[label] = {f'{part}, p50': figures[part]['p50_ms'] for part in PARTS}
    result = {
        'options': asdict(options),
        'image_to_command_without_inference': overhead,
        'parts_ms': parts,
        'machine': describe_machine(),
        'versions': describe_versions(),
        'command': f'python benchmarks/middleware.py --frames {options.frames} --json',
    }
    if options.json:
        print(json.dumps(result, indent=2))
        return
    for label, figures in overhead.items():
        print(f'{label:40}', *(f'{key} {value:7.3f}' for key, value in figures.items()))


if __name__ == '__main__':
    main()
