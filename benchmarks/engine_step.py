"""Time of one policy step on every engine backend, dense against cached, in one run.

    python benchmarks/engine_step.py --model small
    python benchmarks/engine_step.py --model oft_300m
    python benchmarks/engine_step.py --model oft_300m --published-layers

`small` is the small VLA with its trained weights under the preset `safe`; `oft_300m` an
OpenVLA-OFT of 0.3 B parameters with random weights (see oft_300m.py) in which every cached step
reuses 60 % of the vision tokens: whatever changed, the most similar ones, so that the reuse is the
same on all frames and only the time is measured. The whole decision runs all the same.

All policies see the same recorded frames; at each frame all of them run, in an order that rotates.
Engines are built first, into a folder that later runs find them in. Writes
benchmarks/results/engine_step_*.json and a chart; `python benchmarks/make_tables.py` renders them.
"""

import json
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from oft_300m import (
    PUBLISHED_PRUNE_LAYERS,
    describe,
    forced_reuse,
    make_model,
    with_instruction,
)
from recorded_frames import Recordings, load_or_record
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from vla_cache_models.policy import DTYPES, VlaPolicy
from vla_cache_models.small.checkpoint import load_checkpoint
from vla_cache_models.small.vla import SmallVla
from vla_cache_models.vla import Vla
from vla_cache_ros.cli.bench import WARM_UP_FRAMES, BenchResult, StepTimes, summarize
from vla_cache_ros.cli.checkpoints import find_checkpoint
from vla_cache_ros.cli.progress import Progress
from vla_cache_ros.cli.report.charts import draw_engines
from vla_cache_ros.cli.report.machine import describe_machine, describe_versions
from vla_cache_ros.core.config import ReuseConfig
from vla_cache_ros.core.errors import ConfigError
from vla_cache_ros.core.kv_cache import KVCache
from vla_cache_ros.core.types import Observation
from vla_cache_trt.backends import find_backend, graph_dtype, version_of
from vla_cache_trt.buckets import (
    choose_buckets,
    default_buckets,
    per_layer,
    record_history,
    waste,
)
from vla_cache_trt.build import Wanted, build_engines, load_engines
from vla_cache_trt.engine import BoundEngine, Engine, GraphSpec
from vla_cache_trt.runtime import EngineSet, attach

RESULTS = Path(__file__).parent / 'results'
IMAGES = Path(__file__).parents[1] / 'docs' / 'images'

MODELS = ('small', 'oft_300m')
EAGER = 'torch fp32'
CASES = (
    EAGER,
    'torch bf16',
    'ort fp32',
    'ort int8',
    'openvino fp32',
    'openvino bf16',
    'openvino int8',
)
BUCKETS_OF_FORCED_REUSE = 3
ROW_COPIES = 20

Arms = Mapping[tuple[str, str], VlaPolicy]
"""(Case, 'dense' or 'cached') -> policy."""


@dataclass(frozen=True)
class Options:
    """Latency of one policy step per engine backend."""

    model: str = 'oft_300m'
    """small or oft_300m."""
    published_layers: bool = False
    """Prune at the published layers instead of the first one (oft_300m alone)."""
    cases: tuple[str, ...] = CASES
    """'backend precision', each; 'torch ..' is plain PyTorch, eager."""
    frames: int | None = None
    """Frames of each episode, the first ones; default: all (small), 15 (oft_300m)."""
    threads: int = 0
    """Threads of PyTorch; 0: as many as there are cores. Engines take as many as there are."""
    root: Path = Path('runs/engines')
    """Folder of the engines."""
    recordings: Recordings = field(default_factory=Recordings)
    """The episodes; the larger model replays the first one at 256 px."""


@dataclass(frozen=True)
class Setting:
    """A model and how it reuses.

    Attributes:
        name: Stem of the result's file behind 'engine_step_'.
        about: Model and reuse in words.
        reuse: Settings of the cached arm.
        episodes: Frames per episode.
        frames_from: Where they come from.
    """

    name: str
    about: str
    reuse: ReuseConfig
    episodes: Sequence[Sequence[Observation]]
    frames_from: Sequence[str]


def load(options: Options, dtype: torch.dtype) -> Vla:
    """The model in a number format."""
    if options.model == 'small':
        return SmallVla(load_checkpoint(find_checkpoint(None)), dtype=dtype)
    return make_model(dtype)


def settle(options: Options, model: Vla) -> Setting:
    """Frames and reuse of a model."""
    if options.model not in MODELS:
        raise ConfigError(f'model is {options.model!r}; valid: {", ".join(MODELS)}.')
    if options.model == 'small':
        recorded = load_or_record(options.recordings)
        return Setting(
            'small',
            'the small VLA, preset `safe`',
            replace(model.preset('safe'), auto_off=False),
            [frames[: options.frames] for frames, _ in recorded],
            [source for _, source in recorded],
        )
    layers = PUBLISHED_PRUNE_LAYERS if options.published_layers else (0,)
    [(frames, source), *_] = load_or_record(replace(options.recordings, image_size_px=256))
    relevance_layer = model.preset('paper').relevance_layer
    where = f'from layer {layers[0]} on' if layers[0] else 'in all layers'
    return Setting(
        'oft_300m_published' if options.published_layers else 'oft_300m',
        f'OpenVLA-OFT of 0.3 B parameters, random weights, 60 % of the vision tokens reused '
        f'{where}',
        forced_reuse(layers, relevance_layer, model.layout),
        [with_instruction(frames[: options.frames or 15])],
        [source],
    )


def settle_buckets(model: Vla, setting: Setting) -> tuple[int, ...]:
    """The model's default buckets; those of the forced reuse by what runs."""
    longest = model.max_tokens - 1
    if setting.name == 'small':
        return default_buckets(model.name, longest)
    policy = VlaPolicy(model.share(), setting.reuse)
    history = per_layer(record_history(policy, setting.episodes[0][:2]))
    return choose_buckets(history, BUCKETS_OF_FORCED_REUSE, longest)


class TimedBound:
    """A bound engine that sums up the time of its runs."""

    def __init__(self, bound: BoundEngine, times: list[float]) -> None:
        """Wrap it; each run adds its milliseconds to `times`."""
        self._bound = bound
        self._times = times
        self.inputs = bound.inputs

    def run(self, bucket: int) -> Mapping[str, torch.Tensor]:
        """Run once."""
        begin = time.perf_counter()
        outputs = self._bound.run(bucket)
        self._times.append((time.perf_counter() - begin) * 1e3)
        return outputs


class TimedEngine:
    """An engine whose runs are timed, so that what surrounds them can be told apart."""

    def __init__(self, engine: Engine) -> None:
        """Wrap it."""
        self._engine = engine
        self.times: list[float] = []

    @property
    def spec(self) -> GraphSpec:
        """Inputs and outputs."""
        return self._engine.spec

    @property
    def buckets(self) -> tuple[int, ...]:
        """Of the engine."""
        return self._engine.buckets

    def bind(self, k: torch.Tensor | None = None, v: torch.Tensor | None = None) -> TimedBound:
        """Bind it."""
        return TimedBound(self._engine.bind(k, v), self.times)


def make_arms(
    options: Options, setting: Setting, models: Mapping[str, Vla], buckets: tuple[int, ...]
) -> tuple[dict[tuple[str, str], VlaPolicy], dict[str, dict[str, TimedEngine]]]:
    """Policies per case and arm; and the engines' timers per case."""
    arms: dict[tuple[str, str], VlaPolicy] = {}
    timers: dict[str, dict[str, TimedEngine]] = {}
    with Progress('engines', total=len(options.cases)) as progress:
        for case in options.cases:
            backend, precision = case.split()
            model = models[graph_dtype(backend, precision)]
            if backend != 'torch':
                wanted = Wanted(model, setting.reuse, backend, precision, root=options.root)
                build_engines(wanted, buckets)
                engines = load_engines(wanted)
                timers[case] = {
                    name: TimedEngine(engine) for name, engine in engines.engines.items()
                }
                model = attach(model, EngineSet(timers[case], engines.relevance_layer))
            for arm, reuse in (('dense', model.preset('off')), ('cached', setting.reuse)):
                arms[case, arm] = VlaPolicy(model.share(), reuse)
            progress.advance(case)
    return arms, timers


def replay(
    arms: Arms, timers: Mapping[str, Mapping[str, TimedEngine]], setting: Setting
) -> tuple[dict[tuple[str, str], list[StepTimes]], dict[tuple[str, str], dict[str, float]]]:
    """Run all policies on all frames; steps behind the warm-up, and the engines' time in them.

    Returns:
        Case and arm -> steps; case and arm -> graph -> median milliseconds per step.
    """
    steps: dict[tuple[str, str], list[StepTimes]] = {key: [] for key in arms}
    inside: dict[tuple[str, str], list[dict[str, float]]] = {key: [] for key in arms}
    order = list(arms)
    with Progress('frames', total=sum(map(len, setting.episodes))) as progress:
        for number, frames in enumerate(setting.episodes):
            for policy in arms.values():
                policy.reset('benchmark pass')
            for index, observation in enumerate(frames):
                order = [*order[1:], order[0]]
                for key in order:
                    for timer in timers.get(key[0], {}).values():
                        timer.times.clear()
                    step = time_step(arms[key], observation)
                    if number or index >= WARM_UP_FRAMES:
                        steps[key].append(step)
                        inside[key].append(
                            {
                                name: sum(timer.times)
                                for name, timer in timers.get(key[0], {}).items()
                            }
                        )
                progress.advance()
    return steps, {
        key: {name: float(np.median([one[name] for one in found])) for name in found[0]}
        for key, found in inside.items()
    }


def time_step(policy: VlaPolicy, observation: Observation) -> StepTimes:
    """Time one step from outside."""
    begin = time.perf_counter()
    report = policy.act(observation).report
    wall_ms = (time.perf_counter() - begin) * 1e3
    assert report is not None
    return StepTimes(report, wall_ms)


def counted_work(model: Vla, setting: Setting) -> dict[str, float]:
    """Multiply-adds of a dense step, and of a cached one in the mean over the frames."""
    counted: dict[str, list[int]] = {'dense': [], 'cached': []}
    for arm, reuse in (('dense', model.preset('off')), ('cached', setting.reuse)):
        policy = VlaPolicy(model.share(), reuse)
        for number, frames in enumerate(setting.episodes):
            policy.reset('benchmark pass')
            for index, observation in enumerate(frames):
                counter = FlopCounterMode(display=False)
                # torch's table of countable operations lacks some of the fused kernels.
                with sdpa_kernel(SDPBackend.MATH), counter:
                    policy.act(observation)
                if number or index >= WARM_UP_FRAMES:
                    counted[arm].append(counter.get_total_flops() // 2)
    return {arm: float(np.median(values)) for arm, values in counted.items()}


def step_work_of(model: Vla, setting: Setting) -> dict[str, float]:
    """Arm -> multiply-adds of a step."""
    if setting.name == 'small':
        return counted_work(model, setting)
    prompt = model.prepare(setting.episodes[0][0]).prompt
    described = describe(prompt.layout)
    cached = 'cached_published_layers' if setting.reuse.prune_layers[0] else 'cached'
    return {'dense': sum(described['dense'].values()), 'cached': sum(described[cached].values())}


def row_copy_ms(model: Vla, rows: int) -> float:
    """Time of writing the new K/V rows of all layers into their slots, median."""
    config = model.decoder.config
    shape = (config.layers, config.kv_heads, model.max_tokens, config.head_dim)
    cache = KVCache(*shape, dtype=model.decoder.norm.weight.dtype)
    slots = torch.randperm(model.max_tokens)[:rows].sort().values
    new = cache.k[:, :, :, :rows].clone()
    times = []
    for _ in range(ROW_COPIES):
        begin = time.perf_counter()
        cache.k.index_copy_(3, slots, new)
        cache.v.index_copy_(3, slots, new)
        times.append((time.perf_counter() - begin) * 1e3)
    return float(np.median(times))


def losses(
    model: Vla,
    buckets: tuple[int, ...],
    result: BenchResult,
    inside: Mapping[str, Mapping[str, float]],
    ceiling: float,
) -> dict[str, float]:
    """Where a cached step's time beyond dense / ceiling goes, milliseconds.

    Args:
        model: The model.
        buckets: Of the engines.
        result: Steps of one case.
        inside: Arm -> graph -> time in the engine per step.
        ceiling: Work of a dense step over that of a cached one.
    """
    summary = summarize(result)
    dense, cached = summary['step_ms']['dense']['p50'], summary['step_ms']['cached']['p50']
    stages = summary['stage_ms']['cached']
    history = [len(step.report.plan.recompute[-1]) for step in result.cached]
    decoder = sum(ms for name, ms in inside['cached'].items() if name.startswith('decoder'))
    padding = decoder * waste(history, buckets).share_of_work
    rows = row_copy_ms(model, int(np.median(history)))
    around = stages['decoder'] - decoder
    decision = summary['decision_ms'] or 0.0
    beyond = cached - dense / ceiling
    fixed = stages['preprocess'] * (1 - 1 / ceiling)
    return {
        'dense_over_ceiling': dense / ceiling,
        'beyond': beyond,
        'padding': padding,
        'row_copies': rows,
        'around_the_decoder_engine': around,
        'decision': decision,
        'between_stages': stages['between stages'],
        'preprocess': fixed,
        'engine_less_efficient_on_fewer_rows': beyond
        - padding
        - rows
        - around
        - decision
        - stages['between stages']
        - fixed,
    }


def report_case(
    case: str,
    model: Vla,
    buckets: tuple[int, ...],
    steps: Mapping[tuple[str, str], list[StepTimes]],
    inside: Mapping[tuple[str, str], Mapping[str, float]],
    ceiling: float,
) -> dict[str, Any]:
    """One case's figures."""
    result = BenchResult(tuple(steps[case, 'dense']), tuple(steps[case, 'cached']))
    backend = case.split()[0]
    found = {
        'version': version_of(backend),
        'title': find_backend(backend).title,
        **summarize(result),
        'engine_ms': {arm: dict(inside[case, arm]) for arm in ('dense', 'cached')},
    }
    if backend != 'torch':
        found['losses'] = losses(model, buckets, result, found['engine_ms'], ceiling)
    return found


def main() -> None:
    """Build, time, write the result and draw it."""
    options = tyro.cli(Options, description=__doc__)
    if options.threads:
        torch.set_num_threads(options.threads)
    formats = {graph_dtype(*case.split()) for case in options.cases}
    models = {name: load(options, DTYPES[name]) for name in sorted(formats | {'float32'})}
    model = models['float32']
    setting = settle(options, model)
    buckets = settle_buckets(model, setting)
    arms, timers = make_arms(options, setting, models, buckets)
    steps, inside = replay(arms, timers, setting)
    work = step_work_of(model, setting)
    ceiling = work['dense'] / work['cached']
    stem = f'engine_step_{setting.name}'
    cases = {
        case: report_case(case, model, buckets, steps, inside, ceiling) for case in options.cases
    }
    document = {
        'command': f'python benchmarks/engine_step.py {shlex.join(sys.argv[1:])}'.strip(),
        'image': f'{stem}.png',
        'about': setting.about,
        'parameters': sum(weight.numel() for weight in model.network.parameters()),
        'tokens': steps[options.cases[0], 'dense'][0].report.plan.num_tokens,
        'prune_layers': list(setting.reuse.prune_layers),
        'buckets': list(buckets),
        'threads': torch.get_num_threads(),
        'giga_multiply_adds': {arm: value / 1e9 for arm, value in work.items()},
        'ceiling': ceiling,
        'frames_from': list(setting.frames_from),
        'cases': cases,
        'machine': describe_machine(),
        'versions': describe_versions(),
    }
    (RESULTS / f'{stem}.json').write_text(json.dumps(document, indent=2) + '\n', encoding='utf-8')
    draw_engines(
        IMAGES / document['image'],
        {
            case: {arm: found['step_ms'][arm]['p50'] for arm in ('dense', 'cached')}
            for case, found in cases.items()
        },
        ceiling,
    )
    print(f'wrote {RESULTS / stem}.json')


if __name__ == '__main__':
    main()
