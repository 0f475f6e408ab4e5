"""`vla-cache demo`: the robot does a task over ROS 2, dense and cached, and a report is written.

Simulator, policy, guard and monitor run as nodes of one process. Every initial state is played
twice, without reuse and with it, in alternating order.
"""

import contextlib
import os
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from vla_cache_ros.cli import environments
from vla_cache_ros.cli.checkpoints import CheckpointPolicies, PolicyOptions
from vla_cache_ros.cli.live import ArmStatus, LiveTable
from vla_cache_ros.cli.recording import RecordingPolicy
from vla_cache_ros.cli.report.overlay import patch_grids
from vla_cache_ros.cli.report.result import (
    ARMS,
    DemoEpisode,
    DemoPair,
    DemoResult,
    GraphFigures,
)
from vla_cache_ros.cli.tasks import parse_indices, parse_task
from vla_cache_ros.core.errors import SimulatorError
from vla_cache_ros.core.plan import PatchStatus
from vla_cache_ros.core.protocols import Policy
from vla_cache_ros.core.types import Observation, Proprioception
from vla_cache_ros.evaluation.environment import EnvironmentFactory, PolicyFactory
from vla_cache_ros.evaluation.episode import EpisodeSpec, TaskName
from vla_cache_ros.evaluation.rollout import default_execute_steps
from vla_cache_ros.resources import find_resource

PARAMETERS = 'libero_small_vla.yaml'
LIVE_PERIOD_S = 0.25
LOG_WARNINGS = 30
"""rcutils' severity: warnings and worse."""


@dataclass(frozen=True)
class DemoConfig(PolicyOptions):
    """Play one task over the ROS 2 graph, dense and cached, and write a report."""

    task: str = 'libero_object/0'
    """libero_object/0, libero_spatial:3, or the instruction's words."""
    init_states: str = '0-3'
    """Official initial states to play, 0-3 or 0,7,12; there are 50 per task."""
    cache: str = 'safe'
    """Reuse preset of the cached arm: safe, paper."""
    out: Path | None = None
    """Report folder; default: runs/demo-<date and time>."""
    seed: int = 0
    """Seed of the simulator."""
    time_limit_s: float = 300.0
    """No further pair is begun that would, by the pace so far, end after this."""
    backend: str = 'auto'
    """What runs the policy: torch, torch_cuda_graph, ort, openvino, tensorrt, tensorrt_rtx; auto:
    the fastest of this machine, tried once per model."""


def run_demo(
    config: DemoConfig,
    make_policy: PolicyFactory | None = None,
    make_env: EnvironmentFactory = environments.make_env,
) -> int:
    """Play, show and report.

    Args:
        config: What to play.
        make_policy: Builds the policy of a preset; default: from the checkpoint.
        make_env: Builds the simulator.

    Returns:
        The exit code: 0, or 1 when no pair could be judged because the simulator failed.

    Raises:
        UnknownNameError: Unknown task or preset.
        CheckpointError: There are no weights; the message says how to get them.
    """
    from rich.console import Console

    from vla_cache_ros.cli.report.page import PAGE, write_report

    name = parse_task(config.task)
    init_states = parse_indices(config.init_states, limit=50)
    about = _describe(config, name)
    if make_policy is None:
        policies = CheckpointPolicies.chosen(config, config.cache)
        make_policy = policies
        about['config'] |= {'backend': policies.backend, 'precision': policies.precision}
        about['weights'] = {'fingerprint': policies.fingerprint(config.cache)}
    arms = {'dense': make_policy('off'), 'cached': make_policy(config.cache)}
    if (sha256 := getattr(arms['dense'], 'weights_sha256', '')) != '':
        about.setdefault('weights', {})['sha256'] = sha256

    pairs, instruction = play(config, name, init_states, arms, make_env)
    result = DemoResult(
        str(name), instruction, config.cache, arms['cached'].layout, tuple(pairs), about
    )
    console = Console()
    folder = config.out or Path('runs', time.strftime('demo-%Y%m%d-%H%M%S'))
    with console.status('writing the report'):
        metrics = write_report(folder, result)
    _print_summary(console, result, metrics)
    console.print(f'report: {folder / PAGE}', markup=False, highlight=False, soft_wrap=True)
    return 0 if any(pair.judged for pair in pairs) else 1


def play(
    config: DemoConfig,
    name: TaskName,
    init_states: list[int],
    arms: dict[str, Policy],
    make_env: EnvironmentFactory,
) -> tuple[list[DemoPair], str]:
    """Bring the graph up and play every initial state dense and cached.

    Returns:
        The pairs and the task's instruction.
    """
    from vla_cache_ros.nodes.composition import Graph

    policy = arms['dense']
    execute_steps = default_execute_steps(policy)
    recorder = RecordingPolicy(policy)
    env = make_env(name.suite, name.task, policy.image_size_px)
    begin_s = time.monotonic()
    pairs: list[DemoPair] = []
    with contextlib.ExitStack() as stack:
        graph = stack.enter_context(
            Graph(
                policy_factory=lambda _: recorder,
                env_factory=lambda _: env,
                params_file=find_resource('config', PARAMETERS),
                # A robot on this machine must never hear the demo's commands.
                namespace=f'demo_{os.getpid()}',
                overrides={
                    'sim_bridge': {
                        'episodes': 0,
                        'suite': name.suite,
                        'task': name.task,
                        'frame_every': execute_steps,
                        'image_size_px': policy.image_size_px,
                        'camera_names': list(policy.camera_names),
                    },
                    'command_guard': {'pacing': 'state', 'actions_per_chunk': execute_steps},
                },
            )
        )
        _quieten(graph)
        for arm in arms.values():
            _warm_up(arm, env.instruction)
        live = stack.enter_context(LiveTable(f'{name}: {env.instruction}', ARMS))
        player = _Player(graph, recorder, live)
        for index, init_state in enumerate(init_states):
            elapsed_s = time.monotonic() - begin_s
            if pairs and elapsed_s * (index + 1) / index > config.time_limit_s:
                break  # the report says how many pairs were played
            order = ARMS if index % 2 == 0 else tuple(reversed(ARMS))
            played: dict[str, DemoEpisode] = {}
            for arm in order:
                recorder.policy = arms[arm]
                cache = 'off' if arm == 'dense' else config.cache
                spec = EpisodeSpec(name.suite, name.task, init_state, cache, config.seed)
                played[arm] = player.play(arm, spec)
            pairs.append(DemoPair(played['dense'], played['cached']))
        return pairs, env.instruction


class _Player:
    """Plays one episode after another on a graph, showing its progress."""

    def __init__(self, graph: Any, recorder: RecordingPolicy, live: LiveTable) -> None:
        from vla_cache_ros.nodes.running import steady_timer

        self._graph, self._recorder, self._live = graph, recorder, live
        self._arm, self._status = '', ArmStatus()
        # On the executor, as all that reads the monitor; never in the policy's own thread.
        steady_timer(graph.monitor, LIVE_PERIOD_S, self._show)

    def play(self, arm: str, spec: EpisodeSpec) -> DemoEpisode:
        """Play one episode; a simulator's failure is an outcome of its own."""
        self._arm = arm
        self._status = ArmStatus(episode=spec.init_state, outcomes=self._live.outcomes(arm))
        self._graph.monitor.clear()
        self._recorder.frames = []
        try:
            ended = self._graph.run_episode(spec.task, spec.init_state, spec.seed)
            outcome, steps, wall_s, note = (
                'success' if ended.success else 'failure',
                ended.steps,
                ended.wall_s,
                ended.reason,
            )
            counts = {
                'null_steps': ended.null_steps,
                'late_commands': ended.late_commands,
                'refused_commands': ended.refused_commands,
            }
        except SimulatorError as error:
            outcome, steps, wall_s, note = 'simulator_error', 0, 0.0, str(error)
            counts = {}
        snapshot = self._graph.monitor.snapshot()
        self._show()
        self._live.finish_episode(arm, outcome)
        self._arm = ''
        counts |= {
            'null_commands': snapshot.null_commands,
            'deadline_misses': snapshot.deadline_misses,
            'late_refreshes': snapshot.late_refreshes,
            **{f'dropped: {reason}': count for reason, count in snapshot.drops.items()},
            **{f'guard: {reason}': count for reason, count in snapshot.guard.items()},
        }
        return DemoEpisode(
            spec,
            outcome,
            steps,
            wall_s,
            tuple(self._recorder.frames),
            GraphFigures(
                latency_ms=self._graph.monitor.samples('image_to_command'),
                overhead_ms=self._graph.monitor.samples('overhead'),
                publish_ms=self._graph.monitor.samples('publish'),
                refresh_hz=len(self._recorder.frames) / wall_s if wall_s else 0.0,
                command_hz=steps / wall_s if wall_s else 0.0,
                counts=counts,
            ),
            note,
        )

    def _show(self) -> None:
        if not self._arm or not self._recorder.frames:
            return
        frame = self._recorder.frames[-1]
        report = frame.chunk.report
        if report is None:
            return
        grids = patch_grids(report.plan, self._recorder.layout)
        snapshot = self._graph.monitor.snapshot()
        status = replace(
            self._status,
            step=report.step,
            mode=report.mode,
            reused={
                camera: (int((status == PatchStatus.REUSED).sum()), status.size)
                for camera, (status, _) in grids.items()
            },
            stage_ms=report.stage_ms,
            refresh_hz=snapshot.refresh_hz,
            command_hz=snapshot.command_hz,
        )
        self._live.update(self._arm, status)


def _warm_up(policy: Policy, instruction: str) -> None:
    """Take two steps on a black picture, so that no episode pays for first-time allocations."""
    black = np.zeros((policy.image_size_px, policy.image_size_px, 3), dtype=np.uint8)
    at_rest = Proprioception(
        np.zeros(3, np.float32), np.array([0, 0, 0, 1], np.float32), np.zeros(2, np.float32)
    )
    for _ in range(2):
        policy.act(Observation(dict.fromkeys(policy.camera_names, black), at_rest, instruction))
    policy.reset('warm-up')


def _quieten(graph: Any) -> None:
    """Warnings and worse only: the live table tells the rest."""
    for node in (graph.policy_node, graph.sim_bridge, graph.command_guard, graph.monitor):
        node.get_logger().set_level(LOG_WARNINGS)


def _describe(config: DemoConfig, name: TaskName) -> dict[str, Any]:
    from vla_cache_ros.cli.report.machine import describe_machine, describe_versions
    from vla_cache_ros.core.config import preset

    preset(config.cache)  # an unknown preset is refused before anything is loaded
    return {
        'machine': describe_machine(),
        'versions': describe_versions(),
        'config': {
            'task': str(name),
            'init_states': config.init_states,
            'cache': config.cache,
            'seed': config.seed,
            'dtype': config.dtype,
        },
    }


def _print_summary(console: Any, result: DemoResult, metrics: dict[str, Any]) -> None:
    from rich.table import Table

    table = Table('', *ARMS, 'dense / cached', title=f'{len(result.pairs)} pairs')
    arms = metrics['arms']
    table.add_row('success', *(arms[arm]['success']['text'] for arm in ARMS), '')
    for label, key, ratio in (
        ('policy step, ms (p50)', 'step_ms', 'policy_step'),
        ('image to command, ms (p50)', 'latency_ms', 'image_to_command'),
        ('of it not inference, ms (p50)', 'not_inference_ms', None),
        ('whole loop per control step, ms', 'loop_ms', 'whole_loop'),
    ):
        speed_up = metrics['speed_up'][ratio] if ratio else None
        table.add_row(
            label,
            *(_cell(arms[arm][key] and arms[arm][key]['p50'], '.2f') for arm in ARMS),
            _cell(speed_up, '.2f'),
        )
    for label, key, form in (
        ('token-layers recomputed', 'recompute_ratio', '.0%'),
        ('policy refresh, Hz', 'refresh_hz', '.1f'),
        ('commands, Hz', 'command_hz', '.1f'),
    ):
        table.add_row(label, *(_cell(arms[arm][key], form) for arm in ARMS), '')
    console.print(table)
    if metrics['success']['simulator_errors']:
        console.print(
            f'{metrics["success"]["simulator_errors"]} episodes failed in the simulator and are '
            'not counted.'
        )


def _cell(value: float | None, form: str) -> str:
    return '-' if value is None else format(value, form)
