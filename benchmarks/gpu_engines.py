"""OpenVLA-OFT at full shape on a GPU: eager PyTorch, CUDA graphs and TensorRT, dense and cached.

    python benchmarks/gpu_engines.py                      # every backend that runs here
    python benchmarks/gpu_engines.py --backends torch torch_cuda_graph

First the GPU tests of the backends run: engines that compute something else are not timed. Then
all backends share one network with random weights, in one run on the same recorded frames;
every candidate is reused, as in vla_latency.py. The floor stands beside the times where the
device's peaks are known. Writes benchmarks/results/gpu_engines.json.
"""

import json
import shlex
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import tyro
from recorded_frames import Recordings, load_or_record
from vla_latency import RESULTS, Shape, arms_work, every_candidate, floors

from vla_cache_models.policy import VlaPolicy
from vla_cache_models.prismatic.build import random_vla
from vla_cache_models.vla import Vla
from vla_cache_ros.cli.bench import BenchResult, summarize, time_policies
from vla_cache_ros.cli.report.machine import describe_machine, describe_versions
from vla_cache_ros.core.config import ReuseConfig
from vla_cache_ros.core.errors import EngineError
from vla_cache_trt.backends import BACKENDS, probe
from vla_cache_trt.build import Wanted, build_engines, on_engines

TESTS = Path(__file__).parents[1] / 'tests' / 'trt'
PRECISIONS = {'bf16': torch.bfloat16, 'fp16': torch.float16, 'fp32': torch.float32}


@dataclass(frozen=True)
class Options:
    """Policy steps of a 7B model per backend."""

    backends: tuple[str, ...] = ()
    """Backends to time, torch always first; default: all that run on this GPU."""
    precision: str = 'bf16'
    """bf16, fp16 or fp32."""
    cache: str = 'safe'
    """Reuse preset to compare with dense: safe, paper."""
    buckets: tuple[int, ...] = ()
    """Sizes of K; default: the model's own."""
    layers: int | None = None
    """Decoder layers; default: all."""
    tower_depth: int | None = None
    """Blocks of each vision tower; default: all."""
    device: str = 'cuda'
    """Where it runs."""
    frames: int = 24
    """Frames of the episode, the first ones."""
    repeats: int = 1
    """Passes over them."""
    skip_tests: bool = False
    """Time without the tests before; the result says so."""
    root: Path | None = None
    """Where engines lie; default: the user's cache."""
    recordings: Recordings = field(
        default_factory=lambda: Recordings('libero_object/0', image_size_px=256)
    )
    """The episode."""


def chosen_backends(options: Options) -> tuple[str, ...]:
    """The reference, then what was asked for or what runs here.

    Raises:
        EngineError: The device is not there, or a backend that was asked for does not run.
    """
    kind = options.device.partition(':')[0]
    if kind == 'cuda' and not torch.cuda.is_available():
        raise EngineError(
            'torch sees no GPU, and this benchmark is for one; engine_step.py times CPU backends.'
        )
    runs = {
        backend.name
        for backend in BACKENDS
        if kind in backend.devices
        and options.precision in backend.precisions
        and probe(backend.name).runs_policy
    }
    if missing := set(options.backends) - runs:
        raise EngineError(
            f'{", ".join(sorted(missing))} cannot run {options.precision} on {options.device}; '
            f'valid here: {", ".join(sorted(runs))}.'
        )
    wanted = set(options.backends) or runs
    return ('torch', *(b.name for b in BACKENDS if b.name in wanted and b.name != 'torch'))


def check_correctness() -> None:
    """Run the GPU tests of the backends.

    Raises:
        EngineError: One failed.
    """
    command = [sys.executable, '-m', 'pytest', '-q', '-m', 'gpu', str(TESTS)]
    if subprocess.run(command, check=False).returncode:
        raise EngineError('the GPU tests failed; nothing was timed.')


def on_backend(options: Options, model: Vla, reuse: ReuseConfig, backend: str) -> Vla:
    """The model on a backend's engines, which are built as far as they are missing."""
    wanted = Wanted(
        model, reuse, backend, options.precision, device=options.device, root=options.root
    )
    if backend != 'torch':
        build_engines(wanted, options.buckets or None)
    return on_engines(wanted)


def measure(options: Options, shape: Shape) -> dict[str, Any]:
    """Time every backend; everything that a table needs."""
    [(observations, about), *_] = load_or_record(options.recordings)
    dtype = PRECISIONS[options.precision]
    model = random_vla('openvla_oft', shape.config, dtype=dtype, device=options.device)
    reuse = every_candidate(model.preset(options.cache))
    dense = model.preset('off')
    results: dict[str, BenchResult] = {}
    backends: dict[str, Any] = {}
    layout = model.layout
    for name in chosen_backends(options):
        own = on_backend(options, model, reuse, name)
        policies = VlaPolicy(own.share(), dense), VlaPolicy(own.share(), reuse)
        results[name] = time_policies(*policies, observations[: options.frames], options.repeats)
        layout = policies[1].layout
        backends[name] = {'version': probe(name).version, **summarize(results[name])}
        del own, policies
    work = arms_work('openvla_oft', shape.config, layout, results['torch'])
    on_gpu = torch.device(options.device).type == 'cuda'
    device_name = torch.cuda.get_device_name() if on_gpu else 'CPU'
    return {
        'model': 'openvla_oft',
        'cache': options.cache,
        'precision': options.precision,
        'device': device_name,
        'layers': shape.config.decoder.layers,
        'tower_depth': options.tower_depth,
        'tokens': results['torch'].dense[0].report.plan.num_tokens,
        'frames_from': about,
        'tests_ran': not options.skip_tests,
        'backends': backends,
        'tera_multiply_adds': {
            arm: sum(part.multiply_adds for parts in stages.values() for part in parts.values())
            / 1e12
            for arm, stages in work.items()
        },
        'floor_ms': floors(work, device_name),
    }


def main() -> None:
    """Check, measure, write the result and print the medians."""
    options = tyro.cli(Options, description=__doc__)
    names = chosen_backends(options)
    print(f'backends: {", ".join(names)}')
    if not options.skip_tests:
        check_correctness()
    shape = Shape(options.device, options.layers, options.tower_depth)
    document = {
        'command': f'python benchmarks/gpu_engines.py {shlex.join(sys.argv[1:])}'.strip(),
        **measure(options, shape),
        'machine': describe_machine(),
        'versions': describe_versions(),
    }
    path = RESULTS / 'gpu_engines.json'
    path.write_text(json.dumps(document, indent=2) + '\n', encoding='utf-8')
    for name, figures in document['backends'].items():
        steps = figures['step_ms']
        print(
            f'{name}: dense {steps["dense"]["p50"]:.1f} ms, cached {steps["cached"]["p50"]:.1f} ms'
        )
    print(f'wrote {path}; `python benchmarks/make_tables.py` needs a section for it.')


if __name__ == '__main__':
    main()
