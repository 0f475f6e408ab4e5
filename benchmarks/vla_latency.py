"""Time of one policy step of the OpenVLA family, dense against cached, stage by stage.

    python benchmarks/vla_latency.py [--model openvla_oft] [--layers 4 --tower-depth 4]

Random weights of full width, since time does not depend on their values. On a GPU the depth is
full, too, and the floor stands beside the times: multiply-adds over peak, bytes over bandwidth. A
CPU takes minutes for a step at full depth; there the default is an eighth of all depths.

Both policies share one network and see the same recorded frames, in alternating order. Entropies
of random attention say nothing, so every candidate is reused from the first prune layer on. Writes
benchmarks/results/vla_latency_*.json and a chart; `python benchmarks/make_tables.py` renders them.
"""

import json
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import tyro
from recorded_frames import Recordings, load_or_record
from work import PEAKS, Work, floor_ms, step_work

from vla_cache_models.policy import DTYPES, VlaPolicy
from vla_cache_models.prismatic.build import empty_network, random_vla
from vla_cache_models.prismatic.config import PrismaticConfig
from vla_cache_ros.cli.bench import BenchResult, summarize, time_policies
from vla_cache_ros.cli.report.charts import draw_latency
from vla_cache_ros.cli.report.machine import describe_machine, describe_versions
from vla_cache_ros.core.config import ReuseConfig
from vla_cache_ros.core.errors import UnknownNameError
from vla_cache_ros.core.layout import TokenLayout
from vla_cache_ros.core.plan import ReusePlan

RESULTS = Path(__file__).parent / 'results'
IMAGES = Path(__file__).parents[1] / 'docs' / 'images'

CPU_DEPTH = 4
"""Decoder layers and tower blocks on a CPU: an eighth of 32, and of 24 and 27, rounded up."""


@dataclass(frozen=True)
class Options:
    """Latency of one policy step with random weights."""

    model: str = 'openvla_oft'
    """openvla, openvla_oft or cogact."""
    cache: str = 'safe'
    """Reuse preset to compare with dense: safe, paper."""
    layers: int | None = None
    """Decoder layers; default: all on a GPU, 4 on a CPU."""
    tower_depth: int | None = None
    """Blocks of each vision tower; default: all on a GPU, 4 on a CPU."""
    dtype: str = 'bfloat16'
    """bfloat16, float16 or float32."""
    frames: int = 16
    """Frames of the episode, the first ones."""
    repeats: int = 1
    """Passes over them."""
    threads: int = 0
    """Threads of the model on a CPU; 0: as many as there are cores."""
    recordings: Recordings = field(
        default_factory=lambda: Recordings('libero_object/0', image_size_px=256)
    )
    """The episode."""


@dataclass(frozen=True)
class Shape:
    """Where a model runs, and how deep it is."""

    device: str
    layers: int | None
    tower_depth: int | None

    @property
    def config(self) -> PrismaticConfig:
        """Of the network."""
        config = PrismaticConfig()
        layers = self.layers or config.decoder.layers
        towers = tuple(
            replace(tower, depth=self.tower_depth or tower.depth) for tower in config.towers
        )
        return replace(config, towers=towers, decoder=replace(config.decoder, layers=layers))


def choose_shape(options: Options) -> Shape:
    """Full depth on a GPU; as asked for, or an eighth, elsewhere."""
    if torch.cuda.is_available():
        return Shape('cuda', options.layers, options.tower_depth)
    return Shape('cpu', options.layers or CPU_DEPTH, options.tower_depth or CPU_DEPTH)


def every_candidate(reuse: ReuseConfig) -> ReuseConfig:
    """The preset with all candidates reused in every group, and without the automatic off."""
    ratios = (1.0,) * len(reuse.prune_layers)
    return replace(reuse, schedule='fixed', fixed_ratios=ratios, auto_off=False)


def median_plan(result: BenchResult) -> ReusePlan:
    """The plan of the cached step in the middle, by the share that it recomputes."""
    plans = [step.report.plan for step in result.cached if step.report.mode == 'cached']
    return sorted(plans, key=lambda plan: plan.recompute_ratio)[len(plans) // 2]


def arms_work(
    name: str, config: PrismaticConfig, layout: TokenLayout, result: BenchResult
) -> dict[str, Mapping[str, Mapping[str, Work]]]:
    """Arm -> stage -> part -> what it must do."""
    network = empty_network(name, config)
    plans = {'dense': result.dense[0].report.plan, 'cached': median_plan(result)}
    return {arm: step_work(network, layout, plan) for arm, plan in plans.items()}


def floors(
    work: Mapping[str, Mapping[str, Mapping[str, Work]]], device_name: str
) -> dict[str, dict[str, float]] | None:
    """Arm -> stage -> least time, milliseconds; None for a device whose peaks are not listed."""
    if device_name not in PEAKS:
        return None
    peak = PEAKS[device_name]
    return {
        arm: {
            stage: sum(floor_ms(part, peak) for part in parts.values())
            for stage, parts in stages.items()
        }
        for arm, stages in work.items()
    }


def measure(options: Options, shape: Shape) -> tuple[dict[str, Any], BenchResult]:
    """Time both policies; everything that make_tables needs."""
    config = shape.config
    [(observations, about), *_] = load_or_record(options.recordings)
    dtype, device = DTYPES[options.dtype], shape.device
    model = random_vla(options.model, config, dtype=dtype, device=device)
    dense = VlaPolicy(model, model.preset('off'))
    cached = VlaPolicy(model, every_candidate(model.preset(options.cache)))
    result = time_policies(dense, cached, observations[: options.frames], options.repeats)
    work = arms_work(options.model, config, cached.layout, result)
    device_name = torch.cuda.get_device_name() if device == 'cuda' else 'CPU'
    summary = {
        'model': options.model,
        'cache': options.cache,
        'dtype': options.dtype,
        'device': device_name,
        'threads': torch.get_num_threads(),
        'layers': config.decoder.layers,
        'width': config.decoder.width,
        'tower_depth': shape.tower_depth,
        'tokens': cached.layout.num_tokens,
        'prune_layers': [group.start for group in median_plan(result).groups if group.start],
        'frames_from': about,
        **summarize(result),
        'tera_multiply_adds': {
            arm: {
                stage: sum(part.multiply_adds for part in parts.values()) / 1e12
                for stage, parts in stages.items()
            }
            for arm, stages in work.items()
        },
        'floor_ms': floors(work, device_name),
    }
    return summary, result


def main() -> None:
    """Measure, write the result and draw the stages."""
    options = tyro.cli(Options, description=__doc__)
    if options.dtype not in DTYPES:
        raise UnknownNameError('dtype', options.dtype, DTYPES)
    if options.threads:
        torch.set_num_threads(options.threads)
    shape = choose_shape(options)
    summary, result = measure(options, shape)
    stem = f'vla_latency_{options.model}_{"gpu" if shape.device == "cuda" else "cpu"}'
    document = {
        'command': f'python benchmarks/vla_latency.py {shlex.join(sys.argv[1:])}'.strip(),
        'image': f'{stem}.png',
        **summary,
        'machine': describe_machine(),
        'versions': describe_versions(),
    }
    (RESULTS / f'{stem}.json').write_text(json.dumps(document, indent=2) + '\n', encoding='utf-8')
    draw_latency(
        IMAGES / document['image'],
        summary['stage_ms'],
        {
            'dense': [step.wall_ms for step in result.dense],
            'cached': [step.wall_ms for step in result.cached],
        },
    )
    print(f'wrote {RESULTS / stem}.json')


if __name__ == '__main__':
    main()
