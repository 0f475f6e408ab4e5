"""Buckets chosen from recorded histories of K, and what rounding up to them costs.

    python benchmarks/bucket_waste.py

Every model replays recorded LIBERO frames under its presets, and the number of tokens that run is
kept, layer by layer. The small VLA has its trained weights. The OpenVLA family has random ones in
a narrow network: which patches changed, and so how many are candidates, depends on the pictures
alone; how many of the candidates the entropy schedule reuses does not, and random attention says
nothing about it, so each preset also runs with all of its candidates reused. Both count alike.

Writes benchmarks/results/bucket_waste.json; `python benchmarks/make_tables.py` renders it. What
the table shows for BUCKETS of them stands in vla_cache_trt.buckets.DEFAULT_BUCKETS.
"""

import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import tyro
from recorded_frames import Recordings, load_or_record

from vla_cache_models.decoder import DecoderConfig
from vla_cache_models.policy import VlaPolicy
from vla_cache_models.prismatic.build import random_vla
from vla_cache_models.prismatic.config import PrismaticConfig
from vla_cache_models.prismatic.dit import DitConfig
from vla_cache_models.prismatic.towers import TowerConfig
from vla_cache_models.small.checkpoint import load_checkpoint
from vla_cache_models.small.vla import SmallVla
from vla_cache_models.vla import Vla
from vla_cache_ros.cli.checkpoints import find_checkpoint
from vla_cache_ros.cli.progress import Progress
from vla_cache_ros.cli.report.machine import describe_versions
from vla_cache_ros.core.config import ReuseConfig
from vla_cache_ros.core.types import Observation
from vla_cache_trt.buckets import (
    DEFAULT_BUCKETS,
    choose_buckets,
    default_buckets,
    per_layer,
    record_history,
    waste,
)

RESULTS = Path(__file__).parent / 'results'

MODELS = ('small', 'openvla', 'openvla_oft', 'cogact')
PRESETS = ('safe', 'paper')
NARROW = PrismaticConfig(
    towers=(TowerConfig('vit_small_patch14_dinov2.lvd142m', 224, depth=2),) * 2,
    decoder=DecoderConfig(width=64, layers=32, heads=2, kv_heads=2, mlp_width=128),
)
NARROW_DIT = DitConfig(depth=2, width=64, heads=2)
"""The published grid and depth, so that the same layers prune the same patches."""
FAMILY_IMAGE_SIZE_PX = 256
COUNTS = (1, 2, 3, 4, 6, 8, 12)
BUCKETS = 8
"""Of the default sets: each one more costs building time and, on a GPU, memory."""
GENERATED = 1
"""Rows of a generated token."""

Episodes = Sequence[Sequence[Observation]]


@dataclass(frozen=True)
class Options:
    """Buckets from recorded histories, and their waste."""

    models: tuple[str, ...] = MODELS
    """Which models."""
    recordings: Recordings = field(default_factory=Recordings)
    """The frames."""
    threads: int = 1
    """Threads of the models."""


def make_model(name: str) -> Vla:
    """The small VLA with its weights, or one of the family with random ones."""
    if name == 'small':
        return SmallVla(load_checkpoint(find_checkpoint(None)))
    return random_vla(name, NARROW, dit=NARROW_DIT)


def variants(reuse: ReuseConfig) -> tuple[ReuseConfig, ...]:
    """The preset, and, where it has an entropy schedule, also with all candidates reused."""
    reuse = replace(reuse, auto_off=False)  # by times, which here mean nothing
    if not reuse.uses_entropy:
        return (reuse,)
    ratios = (1.0,) * len(reuse.prune_layers)
    return reuse, replace(reuse, schedule='fixed', fixed_ratios=ratios)


def layer_history(model: Vla, reuse: ReuseConfig, episodes: Episodes) -> list[int]:
    """K of every layer of every step."""
    return [
        tokens
        for variant in variants(reuse)
        for observations in episodes
        for tokens in per_layer(record_history(VlaPolicy(model, variant), observations))
    ]


def describe(history: Sequence[int], buckets: Sequence[int]) -> dict[str, Any]:
    """Buckets, waste and hits."""
    found = waste(history, buckets)
    return {
        'buckets': list(buckets),
        'mean_padding': found.mean_padding,
        'share_of_work': found.share_of_work,
        'hits': {
            str(bucket): times / len(history) for bucket, times in found.hits.items() if times
        },
    }


def measure(name: str, episodes: Episodes) -> dict[str, Any]:
    """Histories of a model under every preset, and what buckets waste over them."""
    model = make_model(name)
    longest = model.max_tokens - 1
    always = (GENERATED,) if model.generates else ()
    histories = {
        preset: layer_history(model, model.preset(preset), episodes) for preset in PRESETS
    }
    together = [tokens for history in histories.values() for tokens in history]
    least = len({longest, *always})

    def best(count: int) -> tuple[int, ...]:
        return choose_buckets(together, count, longest, always=always)

    return {
        'longest': longest,
        'recorded': max(together),
        'runs': len(together),
        'mean_tokens': {
            preset: sum(history) / len(history) for preset, history in histories.items()
        },
        'by_count': {
            str(count): describe(together, best(count)) for count in COUNTS if count >= least
        },
        'chosen': list(best(BUCKETS)),
        'default': list(default_buckets(name, longest)),
        'presets': {
            preset: describe(history, best(BUCKETS)) for preset, history in histories.items()
        },
    }


def main() -> None:
    """Record, choose and write the results."""
    options = tyro.cli(Options, description=__doc__)
    torch.set_num_threads(options.threads)
    models: dict[str, Any] = {}
    sources: dict[int, list[str]] = {}
    with Progress('models', total=len(options.models)) as progress:
        for name in options.models:
            recordings = options.recordings
            if name != 'small':
                recordings = replace(recordings, image_size_px=FAMILY_IMAGE_SIZE_PX)
            recorded = load_or_record(recordings)
            sources[recordings.image_size_px] = [about for _, about in recorded]
            models[name] = measure(name, [observations for observations, _ in recorded])
            progress.advance(name)
    result = {
        'command': f'python benchmarks/bucket_waste.py {shlex.join(sys.argv[1:])}'.strip(),
        'frames_from': next(iter(sources.values())),
        'models': models,
        'versions': describe_versions(),
    }
    out = RESULTS / 'bucket_waste.json'
    out.write_text(json.dumps(result, indent=2) + '\n', encoding='utf-8')
    for name, found in models.items():
        if tuple(found['chosen'][:-1]) != DEFAULT_BUCKETS.get(name):
            print(f'DEFAULT_BUCKETS[{name!r}] should be {tuple(found["chosen"][:-1])}')
    print(f'wrote {out}')


if __name__ == '__main__':
    main()
