"""How far every engine backend is from PyTorch in float32, per precision.

    python benchmarks/engine_parity.py

Two comparisons. Policies: PyTorch plans and runs recorded frames, the engine runs the same plans
on the same frames, dense and cached; actions and hidden states behind the decoder are compared.
Decoder: random rows against a random K/V cache at K = 1, at the edges of the buckets and at N; the
hidden states and the K/V rows written are compared. The small VLA has its trained weights, the
OpenVLA-OFT of 0.3 B parameters (see oft_300m.py) random ones.

Writes benchmarks/results/engine_parity.json; `python benchmarks/make_tables.py` renders it.
"""

import json
import shlex
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from engine_step import CASES, EAGER, MODELS, Setting, load, settle, settle_buckets
from engine_step import Options as StepOptions
from recorded_frames import Recordings
from torch import Tensor

from vla_cache_models.attendance import resolve_attendance
from vla_cache_models.policy import DTYPES
from vla_cache_models.vla import Vla
from vla_cache_ros.cli.progress import Progress
from vla_cache_ros.cli.report.machine import describe_machine, describe_versions
from vla_cache_ros.core.kv_cache import KVCache
from vla_cache_trt.backends import graph_dtype, version_of
from vla_cache_trt.build import Wanted, build_engines, load_engines
from vla_cache_trt.runtime import attach
from vla_cache_trt.verify import (
    THRESHOLDS,
    RecordingController,
    ReplayController,
    Trace,
    differences,
    failures,
    trace,
)

RESULTS = Path(__file__).parent / 'results'


@dataclass(frozen=True)
class Options:
    """Parity of the engine backends."""

    models: tuple[str, ...] = MODELS
    """small, oft_300m."""
    cases: tuple[str, ...] = CASES
    """'backend precision', each; 'torch ..' is plain PyTorch, eager."""
    frames: int = 6
    """Frames of the first episode."""
    threads: int = 0
    """Threads of PyTorch; 0: as many as there are cores."""
    root: Path = Path('runs/engines')
    """Folder of the engines."""
    recordings: Recordings = field(default_factory=lambda: Recordings('libero_object/0'))
    """The episode."""


def on_backend(case: str, model: Vla, setting: Setting, options: Options) -> Vla:
    """The model on a backend."""
    backend, precision = case.split()
    if backend == 'torch':
        return model.share()
    wanted = Wanted(model, setting.reuse, backend, precision, root=options.root)
    build_engines(wanted, settle_buckets(model, setting))
    return attach(model, load_engines(wanted))


def edges(buckets: Sequence[int], tokens: int) -> list[int]:
    """K = 1, every bucket that the sequence fills and one row more, and N."""
    around = {1, tokens, *(b for b in buckets), *(b + 1 for b in buckets)}
    return sorted(k for k in around if k <= tokens)


def decode(model: Vla, setting: Setting, rows: int, seed: int) -> tuple[Tensor, Tensor]:
    """Run the decoder on random rows against a random cache.

    Returns:
        Hidden states [K, D] and the new keys and values [2 L Akv, K, d], float32.
    """
    generator = torch.Generator().manual_seed(seed)
    config = model.decoder.config
    dtype = model.decoder.norm.weight.dtype
    layout = model.prepare(setting.episodes[0][0]).prompt.layout
    cache = KVCache(config.layers, config.kv_heads, model.max_tokens, config.head_dim, dtype=dtype)
    cache.k.copy_(torch.randn(cache.k.shape, generator=generator))
    cache.v.copy_(torch.randn(cache.v.shape, generator=generator))
    slots = torch.randperm(layout.num_tokens, generator=generator)[:rows].sort().values
    x = torch.randn(1, rows, config.width, generator=generator).to(dtype)
    attendance = resolve_attendance(layout, slots.numpy())
    bounds = sorted({0, *setting.reuse.prune_layers, config.layers})
    with torch.inference_mode():
        for start, stop in zip(bounds, bounds[1:], strict=False):
            x = model.decoder(x, slots, attendance, cache, start, stop)
        hidden = model.decoder.norm(x)[0].float().clone()
    rows_written = torch.stack((cache.k, cache.v))[..., slots, :].float()
    return hidden, rows_written.flatten(0, 3)


def decoder_gap(model: Vla, reference: Vla, setting: Setting, counts: Iterable[int]) -> list[Any]:
    """Per K: differences of the decoder on random rows."""
    found = []
    for rows in counts:
        hidden, written = decode(model, setting, rows, rows)
        wanted_hidden, wanted_written = decode(reference, setting, rows, rows)
        gap = (hidden - wanted_hidden).abs()
        cosine = torch.cosine_similarity(
            hidden.double().flatten(), wanted_hidden.double().flatten(), dim=0
        )
        found.append(
            {
                'rows': rows,
                'hidden_max': float(gap.max()),
                'hidden_mean': float(gap.mean()),
                'hidden_cosine': float(cosine),
                'kv_max': float((written - wanted_written).abs().max()),
            }
        )
    return found


def references(
    model: Vla, setting: Setting, frames: Sequence[Any]
) -> dict[str, tuple[Any, list[Any], Trace]]:
    """Arm -> its settings, the plans and what PyTorch did with them."""
    found = {}
    layers = model.decoder.config.layers
    for arm, reuse in (
        ('dense', replace(setting.reuse, enabled=False)),
        ('cached', setting.reuse),
    ):
        planner = RecordingController(model.layout, layers, reuse)
        traced = trace(model.share(), reuse, planner, frames)
        found[arm] = (reuse, planner.steps, traced)
    return found


def measure(name: str, options: Options) -> dict[str, Any]:
    """All cases of a model."""
    step_options = StepOptions(model=name, recordings=options.recordings, frames=options.frames)
    formats = {graph_dtype(*case.split()) for case in options.cases} | {'float32'}
    models = {dtype: load(step_options, DTYPES[dtype]) for dtype in sorted(formats)}
    model = models['float32']
    setting = settle(step_options, model)
    frames = setting.episodes[0]
    tokens = model.prepare(frames[0]).prompt.layout.num_tokens
    buckets = settle_buckets(model, setting)
    arms = references(model, setting, frames)
    cases: dict[str, Any] = {}
    with Progress(name, total=len(options.cases)) as progress:
        for case in options.cases:
            if case == EAGER:  # the reference itself
                continue
            backend, precision = case.split()
            own = on_backend(case, models[graph_dtype(backend, precision)], setting, options)
            figures = {}
            for arm, (reuse, steps, wanted) in arms.items():
                given = ReplayController(steps, model.layout, model.decoder.config.layers, reuse)
                figures[arm] = differences(
                    wanted, trace(own, reuse, given, frames), model.generates
                )
            cases[case] = {
                'version': version_of(backend),
                **figures,
                'missed': failures(figures, THRESHOLDS[precision]),
                'decoder': decoder_gap(own, model, setting, edges(buckets, tokens)),
            }
            progress.advance(case)
    return {
        'about': setting.about,
        'tokens': tokens,
        'buckets': list(buckets),
        'frames': len(frames),
        'frames_from': list(setting.frames_from)[:1],
        'action_magnitude': float(
            np.mean([np.abs(actions[:, :6]).mean() for actions in arms['dense'][2].actions])
        ),
        'cases': cases,
    }


def main() -> None:
    """Compare and write the results."""
    options = tyro.cli(Options, description=__doc__)
    if options.threads:
        torch.set_num_threads(options.threads)
    result = {
        'command': f'python benchmarks/engine_parity.py {shlex.join(sys.argv[1:])}'.strip(),
        'models': {name: measure(name, options) for name in options.models},
        'thresholds': {precision: vars(limits) for precision, limits in THRESHOLDS.items()},
        'machine': describe_machine(),
        'versions': describe_versions(),
    }
    out = RESULTS / 'engine_parity.json'
    out.write_text(json.dumps(result, indent=2) + '\n', encoding='utf-8')
    print(f'wrote {out}')


if __name__ == '__main__':
    main()
