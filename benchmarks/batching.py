"""Steps of several sessions in one forward against the same steps one by one.

    python benchmarks/batching.py [--sessions 1,2,4,8] [--threads 2]

Each session replays a recorded episode, all on the small VLA's weights, each with a plan and a
cache of its own. At every frame the same step runs one by one and as a batch, in turn first; the
ratios are those of the medians of a step's time per session, by the clock and in CPU time, which a
busy machine disturbs less. A batch pads its plans to equal counts: how much more it recomputes is
measured, too; and, outside all times, how far its actions lie from the same plans run one by one
(rounding), and both from the dense policy's (reuse).
"""

import dataclasses
import json
import os
import shlex
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from recorded_frames import Recordings, load_or_record

from vla_cache_models.batching import WORK_SPREAD, act_together
from vla_cache_models.policy import VlaPolicy, load_model, make_policy, run_steps
from vla_cache_models.vla import Vla
from vla_cache_ros.cli.checkpoints import find_checkpoint
from vla_cache_ros.cli.progress import Progress
from vla_cache_ros.cli.report.machine import describe_machine, describe_versions
from vla_cache_ros.cli.tasks import parse_indices
from vla_cache_ros.core.types import ActionChunk, Observation
from vla_cache_ros.evaluation.statistics import quantiles

RESULTS = Path(__file__).parent / 'results'
WARM_UP_FRAMES = 3


@dataclass(frozen=True)
class Config:
    """Time a batch of sessions against the sessions one by one."""

    sessions: str = '1,2,4,8'
    """Numbers of sessions."""
    presets: tuple[str, ...] = ('off', 'safe')
    """Reuse presets."""
    frames: int = 40
    """Steps per session."""
    threads: int = 2
    """Threads of the model."""
    recordings: Recordings = field(default_factory=Recordings)
    """Episodes that the sessions replay."""


def observations_of(session: int, step: int, episodes: list[list[Observation]]) -> Observation:
    """What a session sees: episodes are dealt round, each next dealing starts five steps later."""
    episode = episodes[session % len(episodes)]
    return episode[(step + 5 * (session // len(episodes))) % len(episode)]


def compare(model: Vla, preset: str, sessions: int, frames: int, episodes: Any) -> dict[str, Any]:
    """Times and work of `sessions` sessions over `frames` steps."""
    together, alone, replayed = (
        [make_policy(model, preset, auto_off=False) for _ in range(sessions)] for _ in range(3)
    )
    dense = make_policy(model, 'off')
    wall_ms: dict[str, list[float]] = {'together': [], 'alone': []}
    cpu_ms: dict[str, list[float]] = {'together': [], 'alone': []}
    forwards: list[int] = []
    work: dict[str, list[float]] = {'together': [], 'alone': []}
    rounding = 0.0
    divergence: dict[str, list[float]] = {'together': [], 'alone': []}
    for step in range(WARM_UP_FRAMES + frames):
        seen = [observations_of(session, step, episodes) for session in range(sessions)]
        sizes: list[int] = []
        got: dict[str, list[ActionChunk]] = {}
        took: dict[str, tuple[float, float]] = {}
        for arm in ('together', 'alone') if step % 2 else ('alone', 'together'):
            begin = time.perf_counter(), time.process_time()
            if arm == 'together':
                results = act_together(together, seen, sizes.append)
            else:
                results = [own.act(saw) for own, saw in zip(alone, seen, strict=True)]
            wall, cpu = time.perf_counter() - begin[0], time.process_time() - begin[1]
            took[arm] = 1e3 * wall / sessions, 1e3 * cpu / sessions
            got[arm] = [result for result in results if isinstance(result, ActionChunk)]
            assert len(got[arm]) == sessions, results
        for index, (saw, chunk) in enumerate(zip(seen, got['together'], strict=True)):
            rounding = max(rounding, deviation(chunk, replay(replayed[index], saw, chunk)))
            truth = dense.act(saw)
            for arm, chunks in got.items():
                divergence[arm].append(
                    float(np.abs(chunks[index].actions - truth.actions)[:, :6].mean())
                )
        if step < WARM_UP_FRAMES:
            continue
        for arm, (wall, cpu) in took.items():
            wall_ms[arm].append(wall)
            cpu_ms[arm].append(cpu)
        forwards.append(len(sizes))
        for arm, chunks in got.items():
            work[arm] += [c.report.plan.recompute_ratio for c in chunks if c.report is not None]
    return {
        'sessions': sessions,
        'alone_ms': dataclasses.asdict(quantiles(wall_ms['alone'])),
        'together_ms': dataclasses.asdict(quantiles(wall_ms['together'])),
        'alone_cpu_ms': dataclasses.asdict(quantiles(cpu_ms['alone'])),
        'together_cpu_ms': dataclasses.asdict(quantiles(cpu_ms['together'])),
        'speedup': float(np.median(wall_ms['alone']) / np.median(wall_ms['together'])),
        'cpu_speedup': float(np.median(cpu_ms['alone']) / np.median(cpu_ms['together'])),
        'forwards': float(np.mean(forwards)),
        'recomputed_alone': float(np.mean(work['alone'])),
        'recomputed_together': float(np.mean(work['together'])),
        'rounding_max': rounding,
        'divergence_alone': float(np.mean(divergence['alone'])),
        'divergence_together': float(np.mean(divergence['together'])),
    }


def replay(policy: VlaPolicy, observation: Observation, chunk: ActionChunk) -> ActionChunk:
    """The step alone, under the plan that ran in the batch."""
    assert chunk.report is not None
    step = policy.begin(observation)
    policy.widen(step, chunk.report.plan)
    (actions,) = run_steps((step,))
    return policy.finish(step, actions)


def deviation(one: ActionChunk, other: ActionChunk) -> float:
    """Greatest difference of two chunks."""
    return float(np.abs(one.actions - other.actions).max())


def main() -> None:
    """Measure and write the result."""
    config = tyro.cli(Config, description=__doc__)
    torch.set_num_threads(config.threads)
    loaded = load_or_record(config.recordings)
    model = load_model(find_checkpoint(None))
    counts = parse_indices(config.sessions, 1024)
    presets: dict[str, Any] = {}
    with Progress('batches', total=len(counts) * len(config.presets)) as progress:
        for preset in config.presets:
            presets[preset] = []
            for sessions in counts:
                episodes = [episode for episode, _ in loaded]
                presets[preset].append(compare(model, preset, sessions, config.frames, episodes))
                progress.advance(note=f'{preset}, {sessions}')
    result = {
        'what': 'batching',
        'model': model.name,
        'frames': config.frames,
        'frames_from': [about for _, about in loaded],
        'threads': config.threads,
        'work_spread': WORK_SPREAD,
        'load_1min': os.getloadavg()[0],
        'presets': presets,
        'machine': describe_machine(),
        'versions': describe_versions(),
        'command': f'python benchmarks/batching.py {shlex.join(sys.argv[1:])}'.strip(),
    }
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / 'batching.json'
    path.write_text(json.dumps(result, indent=2) + '\n', encoding='utf-8')
    print(f'wrote {path}')


if __name__ == '__main__':
    main()
