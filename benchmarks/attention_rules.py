"""What reuse costs under each attention rule of the layout.

    python benchmarks/attention_rules.py --dataset data/small_vla --frames runs/bench/FRAMES.npz

The same weights are trained on for a few hundred steps under each rule, so that each network has
adapted to its own, then dense and cached policies see the same recorded frames. Reported: the
training loss at the end, and by how much the cached action chunk differs from the dense one.
"""

import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import tyro

from vla_cache_models.policy import VlaPolicy
from vla_cache_models.small.checkpoint import Checkpoint, load_checkpoint
from vla_cache_models.small.training.trainer import Losses, TrainConfig, Trainer
from vla_cache_models.small.vla import SmallVla
from vla_cache_ros.cli.recording import load_observations
from vla_cache_ros.core.layout import ATTENTION_RULES
from vla_cache_ros.core.types import Observation

RESULTS = Path(__file__).parent / 'results'


@dataclass(frozen=True)
class Options:
    """Divergence of cached from dense actions under each attention rule."""

    frames: Path
    """Recorded observations, as benchmarks/step_latency.py leaves them in runs/bench."""
    dataset: Path = Path('data/small_vla')
    """Demonstrations to train on with."""
    checkpoint: Path = Path('models/weights')
    """Weights to start from."""
    steps: int = 250
    """Training steps under each rule."""
    rules: tuple[str, ...] = ATTENTION_RULES
    """The rules to compare."""
    work: Path = Path('runs/attention_rules')
    """Folder of the trained networks."""
    out: Path = RESULTS / 'attention_rules.json'
    """Results."""


def adapt(options: Options, rule: str) -> tuple[Checkpoint, float]:
    """Train the weights on under one rule; returns the network and its last action loss."""
    start = load_checkpoint(options.checkpoint)
    config = TrainConfig(
        steps=options.steps,
        batch_size=16,
        learning_rate=3e-4,
        warmup_steps=20,
        decay_steps=options.steps // 2,
        ema_decay=0.98,
        reload_every_steps=0,
        threads=1,
    )
    trainer = Trainer(
        replace(start.model.config, attention=rule),
        start.tokenizer,
        options.dataset,
        options.work / rule,
        config,
    )
    if trainer.step == 0:
        trainer.scale = start.proprioception_scale
        for network in (trainer.model, trainer.average):
            network.load_state_dict(start.model.state_dict())
    losses: list[Losses] = []
    trainer.run(losses.append, report_every_steps=25)
    trained = load_checkpoint(options.work / rule)
    return trained, losses[-1].action if losses else float('nan')


def divergence(checkpoint: Checkpoint, observations: list[Observation]) -> dict[str, float]:
    """Differences of the cached chunks from the dense ones, in action units."""
    model = SmallVla(checkpoint)
    reuse = replace(model.preset('safe'), auto_off=False)
    dense = VlaPolicy(model, replace(reuse, enabled=False))
    cached = VlaPolicy(SmallVla(checkpoint), reuse)
    differences, ratios = [], []
    for observation in observations:
        expected, chunk = dense.act(observation), cached.act(observation)
        assert chunk.report is not None
        if chunk.report.mode == 'cached':
            differences.append(np.abs(chunk.actions - expected.actions)[:, :6])
            ratios.append(chunk.report.plan.recompute_ratio)
    gap = np.stack(differences)
    return {
        'mean_difference': float(gap.mean()),
        'p95_of_step_maximum': float(np.percentile(gap.max(axis=(1, 2)), 95)),
        'recompute_ratio': float(np.mean(ratios)),
        'cached_steps': len(gap),
    }


def main() -> None:
    """Compare the rules and write the results."""
    options = tyro.cli(Options, description=__doc__)
    torch.set_num_threads(1)
    observations, about = load_observations(options.frames)
    rows = {}
    for rule in options.rules:
        checkpoint, action_loss = adapt(options, rule)
        rows[rule] = {'action_loss': action_loss, **divergence(checkpoint, observations)}
        print(rule, rows[rule], flush=True)
    document = {
        'command': f'python {" ".join(sys.argv)}',
        'frames': about,
        'steps': options.steps,
        'rules': rows,
    }
    options.out.write_text(json.dumps(document, indent=2) + '\n')
    print(f'wrote {options.out}')


if __name__ == '__main__':
    main()
