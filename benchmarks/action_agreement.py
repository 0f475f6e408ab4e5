"""How far cached actions are from dense ones, against how much is reused.

    python benchmarks/action_agreement.py [--model openvla_oft]

A dense and cached policies of the same weights replay recorded LIBERO frames; one setting at a
time is swept, so that each sweep is a curve from little reuse to much. The small VLA has its
trained weights. The OpenVLA family has random ones, in a narrow and shallow decoder behind towers
of full width: what such a curve tells is how reuse errors pass through the architecture, not what
a trained checkpoint does with them.

Records the frames first where they are missing. Writes benchmarks/results/action_agreement*.json
and its chart; `python benchmarks/make_tables.py` renders it.
"""

import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from numpy.typing import NDArray
from recorded_frames import Recordings, load_or_record

from vla_cache_models.decoder import DecoderConfig
from vla_cache_models.policy import VlaPolicy
from vla_cache_models.prismatic.build import random_vla
from vla_cache_models.prismatic.config import DINOSIGLIP_224, PrismaticConfig
from vla_cache_models.small.checkpoint import load_checkpoint
from vla_cache_models.small.vla import SmallVla
from vla_cache_models.vla import Vla
from vla_cache_ros.cli.checkpoints import find_checkpoint
from vla_cache_ros.cli.progress import Progress
from vla_cache_ros.cli.report.charts import draw_agreement
from vla_cache_ros.cli.report.machine import describe_machine, describe_versions
from vla_cache_ros.core.config import ReuseConfig, preset
from vla_cache_ros.core.errors import ConfigError
from vla_cache_ros.core.protocols import Policy
from vla_cache_ros.core.types import Observation

RESULTS = Path(__file__).parent / 'results'
IMAGES = Path(__file__).parents[1] / 'docs' / 'images'

GROUPS: Mapping[str, slice] = {'translation': slice(0, 3), 'rotation': slice(3, 6)}
GRIPPER = 6

STATIC_FRACTIONS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8)
PRESSURES = (0.0, 0.25, 0.5, 0.75, 1.0)
DIFFERENCES = (0.0, 0.005, 0.01, 0.02, 0.03, 0.05, 0.08, 0.12, 0.2)
NARROW_DECODER = DecoderConfig(width=512, layers=8, heads=8, kv_heads=8, mlp_width=1376)
NARROW_TOWER_DEPTH = 2
FAMILY_IMAGE_SIZE_PX = 256
NOISE_LEVELS = 2
"""Sensor noise of the yardstick: each pixel is off by at most this many of 255 levels."""

Episodes = Sequence[Sequence[Observation]]


@dataclass(frozen=True)
class Options:
    """Agreement of cached with dense actions over recorded frames."""

    model: str = 'small'
    """small, openvla_oft or cogact."""
    checkpoint: Path | None = None
    """Folder of the small VLA's checkpoint; default: the weights that the package brings."""
    recordings: Recordings = field(default_factory=Recordings)
    """The frames."""
    frames: int | None = None
    """Frames of each episode, the first ones; default: all."""
    threads: int = 1
    """Threads of the model."""


@dataclass(frozen=True)
class Replay:
    """What a policy answered to the frames, the first of each episode left out.

    Attributes:
        actions: [F, T, 7].
        recompute_ratio: Mean share of token-layers recomputed.
    """

    actions: NDArray[np.float32]
    recompute_ratio: float


def make_model(options: Options) -> tuple[Vla, str]:
    """The model, and what it is in words."""
    if options.model == 'small':
        return SmallVla(load_checkpoint(find_checkpoint(options.checkpoint))), 'small VLA'
    towers = tuple(replace(tower, depth=NARROW_TOWER_DEPTH) for tower in DINOSIGLIP_224)
    config = PrismaticConfig(towers, NARROW_DECODER)
    about = (
        f'{options.model}, random weights, decoder of {config.decoder.layers} layers of '
        f'{config.decoder.width}, towers of {NARROW_TOWER_DEPTH} blocks'
    )
    return random_vla(options.model, config), about


def settings_of(model: Vla) -> dict[str, dict[str, ReuseConfig]]:
    """Sweep -> value in words -> settings, the presets among them."""
    # By times the reuse must not switch itself off here: the machine's load would decide.
    safe = replace(model.preset('safe'), auto_off=False)
    paper = model.preset('paper')
    # The sweeps start where nothing but the swept setting limits the reuse.
    start = replace(
        safe,
        static_fraction=1.0,
        protected_fraction=preset('safe').protected_fraction,
        schedule='fixed',
        fixed_ratios=(1.0,) * len(safe.prune_layers),
    )
    pressures = {str(pressure): safe.under_pressure(pressure) for pressure in PRESSURES}
    return {
        'preset': {'safe': safe, 'paper': paper},
        # Late refreshes; where the settings leave no room for them, nothing would be learnt.
        **({} if safe.under_pressure(1.0) == safe else {'reuse_pressure': pressures}),
        'static_fraction': {
            str(share): replace(start, static_fraction=share) for share in STATIC_FRACTIONS
        },
        # The most similar patches are not the least changed ones: similarity ignores brightness.
        'static_fraction_of_unchanged': {
            str(share): replace(start, static_fraction=share, difference_threshold=0.0)
            for share in STATIC_FRACTIONS
        },
        # Similarity, a second criterion, would stop this sweep before the threshold does.
        'difference_threshold': {
            str(share): replace(start, difference_threshold=share, similarity_threshold=0.0)
            for share in DIFFERENCES
        },
    }


def replay(policy: Policy, episodes: Episodes, progress: Progress) -> Replay:
    """Run a policy over the episodes; their first steps recompute everything and tell nothing."""
    actions, ratios = [], []
    for observations in episodes:
        policy.reset('episode start')
        for index, observation in enumerate(observations):
            chunk = policy.act(observation)
            progress.advance()
            if index == 0:
                continue
            assert chunk.report is not None
            actions.append(chunk.actions)
            ratios.append(chunk.report.plan.recompute_ratio)
    return Replay(np.stack(actions), float(np.mean(ratios)))


def differences(dense: Replay, other: Replay) -> dict[str, Any]:
    """Absolute differences of the chunks, action units."""
    gap = np.abs(other.actions - dense.actions)
    flipped = (other.actions[..., GRIPPER] > 0) != (dense.actions[..., GRIPPER] > 0)
    return {
        'reused': 1.0 - other.recompute_ratio,
        **{
            name: {
                'mean': float(gap[..., part].mean()),
                'p95_of_step_maximum': float(np.percentile(gap[..., part].max(axis=(1, 2)), 95)),
                'max': float(gap[..., part].max()),
            }
            for name, part in GROUPS.items()
        },
        'gripper_flips': float(flipped.mean()),
    }


def noisy(episodes: Episodes) -> list[list[Observation]]:
    """The same frames through a slightly noisy sensor, seeded."""
    rng = np.random.default_rng(0)

    def disturb(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        noise = rng.integers(-NOISE_LEVELS, NOISE_LEVELS + 1, image.shape)
        return np.clip(image + noise, 0, 255).astype(np.uint8)

    return [
        [
            replace(item, images={name: disturb(image) for name, image in item.images.items()})
            for item in observations
        ]
        for observations in episodes
    ]


def agreement(model: Vla, episodes: Episodes) -> dict[str, Any]:
    """Replay the episodes densely, then under every setting of every sweep."""
    settings = settings_of(model)
    frames = sum(len(observations) for observations in episodes)
    replays = 2 + sum(len(points) for points in settings.values())
    with Progress('frames', total=frames * replays) as progress:
        without = VlaPolicy(model, model.preset('off'))
        dense = replay(without, episodes, progress)
        if not np.ptp(dense.actions, axis=0).any():
            raise ConfigError(
                f'{model.name} answers all frames alike, so there is nothing to compare. Random '
                'weights make OpenVLA choose tokens outside the 256 of actions, which decode to '
                'the end of the range; take openvla_oft or cogact.'
            )
        noise = replay(without, noisy(episodes), progress)
        curves = {
            sweep: {
                value: differences(dense, replay(VlaPolicy(model, reuse), episodes, progress))
                for value, reuse in points.items()
            }
            for sweep, points in settings.items()
        }
    return {
        'frames': len(dense.actions),
        'dense_mean_magnitude': {
            name: float(np.abs(dense.actions[..., part]).mean()) for name, part in GROUPS.items()
        },
        'noise_levels': NOISE_LEVELS,
        'noise': differences(dense, noise),
        'curves': curves,
    }


def main() -> None:
    """Replay, write the results and draw the curves."""
    options = tyro.cli(Options, description=__doc__)
    torch.set_num_threads(options.threads)
    recordings = options.recordings
    if options.model != 'small':
        recordings = replace(recordings, image_size_px=FAMILY_IMAGE_SIZE_PX)
    recorded = load_or_record(recordings)
    model, about = make_model(options)
    stem = 'action_agreement' + ('' if options.model == 'small' else f'_{options.model}')
    result = {
        'command': f'python benchmarks/action_agreement.py {shlex.join(sys.argv[1:])}'.strip(),
        'model': about,
        'image': f'{stem}.png',
        'frames_from': [source for _, source in recorded],
        **agreement(model, [observations[: options.frames] for observations, _ in recorded]),
        'machine': describe_machine(),
        'versions': describe_versions(),
    }
    out = RESULTS / f'{stem}.json'
    out.write_text(json.dumps(result, indent=2) + '\n', encoding='utf-8')
    draw_agreement(IMAGES / result['image'], result['curves'], result['noise'])
    print(f'wrote {out}')


if __name__ == '__main__':
    main()
