"""The fastest backend of this machine for a model: tried once, then remembered.

Each backend that runs here and builds within seconds is built, compared with PyTorch, and timed on
a few dense and cached steps; one that misses the thresholds of its precision is out. The choice is
written beside the engines with what it depends on, and made again when that changes.
"""

import contextlib
import json
import os
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vla_cache_ros.core.errors import ConfigError, EngineError, VlaCacheError
from vla_cache_ros.core.types import Observation, Proprioception
from vla_cache_trt.backends import BACKENDS, probe, version_of
from vla_cache_trt.build import OnProgress, Wanted, build_engines, load_engines
from vla_cache_trt.store import cpu_identity, default_root, folder_of

if TYPE_CHECKING:
    from vla_cache_models.vla import Vla
    from vla_cache_trt.runtime import EngineSet

CHOICE = 'choice.json'
STEPS = 11
"""Steps of each kind that are timed, the first of which warms up."""
CHANGED_SIDE = 0.5
"""Side of the square that changes from frame to frame, as a share of the picture's: about what an
arm that moves changes in the view of the first camera."""
EAGER_HANDICAP = 1.25
"""Timed alone, a backend has the cores to itself. In the graph, beside other threads, eager
PyTorch's many small parallel sections slow down far more than one compiled call: on two cores, a
cached step of 26 ms took 50 ms there, OpenVINO's of 26 ms took 25 ms."""
BFLOAT_FLAGS = ('avx512_bf16', 'amx_bf16')
"""Without one of these a CPU emulates bf16, slower than fp32."""


@dataclass(frozen=True)
class Timing:
    """One backend's steps.

    Attributes:
        backend: Its name.
        precision: What it computed in.
        dense_ms: Median dense step.
        cached_ms: Median cached step; a dense one where nothing is reused.
        problem: Why it is out; empty where it is not.
    """

    backend: str
    precision: str
    dense_ms: float = 0.0
    cached_ms: float = 0.0
    problem: str = ''


@dataclass(frozen=True)
class Choice:
    """What was chosen, and from what."""

    backend: str
    precision: str
    timings: tuple[Timing, ...]
    depends_on: dict[str, Any]

    def in_words(self) -> str:
        """One line: the choice and the times behind it."""
        times = ', '.join(
            f'{timing.backend} {timing.precision} '
            + (timing.problem or f'{timing.dense_ms:.1f}/{timing.cached_ms:.1f} ms')
            for timing in sorted(self.timings, key=lambda timing: timing.cached_ms)
        )
        return (
            f'backend {self.backend} in {self.precision}: the fastest here '
            f'(dense/cached step: {times})'
        )


def candidates(
    dtype: str,
    device: str,
    precision: str = '',
    is_built: Callable[[str, str], bool] = lambda backend, precision: False,
) -> list[tuple[str, str]]:
    """Backends and precisions to try: those that build within seconds or are built already.

    Args:
        dtype: Number format of the model.
        device: Where it runs.
        precision: Only this one; empty: all that are as exact as the model, and bf16 where the
            CPU computes it in hardware.
        is_built: Whether there is an engine of a backend in a precision.
    """
    emulated = not any(flag in cpu_identity().split() for flag in BFLOAT_FLAGS)

    def suits(name: str, graphs: str) -> bool:
        if graphs != dtype or precision not in ('', name):
            return False
        is_slow = name == 'bf16' and graphs == 'float32' and emulated
        return bool(precision) or not (name == 'int8' or is_slow)

    return [
        (backend.name, name)
        for backend in BACKENDS
        if device.partition(':')[0] in backend.devices and probe(backend.name).runs_policy
        for name, graphs in backend.precisions.items()
        if suits(name, graphs) and (backend.quick or is_built(backend.name, name))
    ]


def choose_backend(
    wanted: Callable[[str, str], Wanted],
    dtype: str,
    device: str,
    precision: str = '',
    on_progress: OnProgress | None = None,
) -> Choice:
    """The fastest backend for a model, remembered or found.

    Args:
        wanted: Says which engines, for a backend and a precision.
        dtype: Number format of the model.
        device: Where it runs.
        precision: Only backends that compute in this one; empty: any.
        on_progress: Called as the work goes on.

    Raises:
        ConfigError: No backend suits.
    """
    tried = candidates(
        dtype, device, precision, lambda backend, name: wanted(backend, name).is_built
    )
    if not tried:
        raise ConfigError(
            f'no backend of this machine computes {precision or dtype} on {device}; '
            '`vla-cache doctor` says what each lacks.'
        )
    reference = wanted(*tried[0])
    path = choice_path(reference)
    depends_on = _circumstances(tried, device)
    if (choice := _remembered(path, depends_on)) is not None:
        return choice
    observations = synthetic_frames(reference.model)
    timings = tuple(
        _try(wanted(backend, name), observations, on_progress) for backend, name in tried
    )
    able = [timing for timing in timings if not timing.problem]
    if not able:
        raise ConfigError(
            'no backend of this machine runs the model: '
            + '; '.join(f'{timing.backend}: {timing.problem}' for timing in timings)
        )
    best = fastest(able)
    choice = Choice(best.backend, best.precision, timings, depends_on)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f'.{os.getpid()}.partial')
    partial.write_text(json.dumps(asdict(choice), indent=2) + '\n', encoding='utf-8')
    partial.replace(path)
    return choice


def fastest(timings: Sequence[Timing]) -> Timing:
    """The backend to run on: the shortest cached step, eager PyTorch handicapped."""
    return min(
        timings,
        key=lambda timing: timing.cached_ms * (EAGER_HANDICAP if timing.backend == 'torch' else 1),
    )


def choice_path(wanted: Wanted) -> Path:
    """Where the choice for a model and its reuse is remembered."""
    dtype = str(wanted.model.decoder.norm.weight.dtype).removeprefix('torch.')
    folder = folder_of(wanted.root or default_root(), wanted.onnx_identity(0)).parent
    return folder / f'{dtype}-{wanted.device.replace(":", "")}-{CHOICE}'


def synthetic_frames(model: 'Vla', steps: int = STEPS) -> list[Observation]:
    """Frames of a scene in which one square changes; further cameras, as on a wrist, move."""
    rng = np.random.default_rng(0)
    size = model.camera_size_px
    square = max(1, round(CHANGED_SIDE * size))
    images = {
        name: rng.integers(0, 256, (size, size, 3), dtype=np.uint8) for name in model.cameras
    }
    state = Proprioception(
        np.zeros(3, np.float32), np.array([0, 0, 0, 1], np.float32), np.zeros(2, np.float32)
    )
    frames = []
    for _ in range(steps):
        images = {name: image.copy() for name, image in images.items()}
        first, *others = images.values()
        first[:square, :square] = rng.integers(0, 256, (square, square, 3))
        for image in others:
            image[:] = rng.integers(0, 256, image.shape)
        frames.append(Observation(images, state, 'pick up the bowl'))
    return frames


def time_steps(model: 'Vla', wanted: Wanted, observations: Sequence[Observation]) -> Timing:
    """Median dense and cached step of a model, on frames that change as they do on a robot.

    Args:
        model: On torch or on engines.
        wanted: Which ones, and with which reuse.
        observations: Of one episode, in order.
    """
    from vla_cache_models.policy import VlaPolicy

    settings = {
        'off': replace(wanted.reuse, enabled=False),
        'on': replace(wanted.reuse, auto_off=False),
    }
    medians = {}
    for arm, reuse in settings.items():
        policy = VlaPolicy(model.share(), reuse)
        times = []
        for observation in observations:
            begin = time.perf_counter()
            policy.act(observation)
            times.append((time.perf_counter() - begin) * 1e3)
        medians[arm] = float(np.median(times[1:]))
    return Timing(wanted.backend, wanted.precision, medians['off'], medians['on'])


def _try(
    wanted: Wanted, observations: Sequence[Observation], on_progress: OnProgress | None
) -> Timing:
    """Build, compare and time one backend; whatever goes wrong puts it out, not the caller."""
    from vla_cache_trt.runtime import attach
    from vla_cache_trt.verify import THRESHOLDS, compare, failures

    try:
        if wanted.backend == 'torch':
            return time_steps(wanted.model, wanted, observations)
        engines = _build_or_load(wanted, on_progress)
        figures = compare(wanted.model, engines, wanted.reuse, observations)
        if missed := failures(figures, THRESHOLDS[wanted.precision]):
            return Timing(wanted.backend, wanted.precision, problem=f'differs ({missed[0]})')
        return time_steps(attach(wanted.model, engines), wanted, observations)
    except (VlaCacheError, ImportError, RuntimeError, OSError) as error:
        line = str(error).partition('\n')[0]
        return Timing(
            wanted.backend, wanted.precision, problem=f'fails ({type(error).__name__}: {line})'
        )


def _build_or_load(wanted: Wanted, on_progress: OnProgress | None) -> 'EngineSet':
    """What is built and fits is taken, with whatever buckets; else it is built."""
    with contextlib.suppress(EngineError):
        return load_engines(wanted)
    build_engines(wanted, on_progress=on_progress)
    return load_engines(wanted)


def _circumstances(tried: Sequence[tuple[str, str]], device: str) -> dict[str, Any]:
    """What a choice depends on besides the model."""
    import torch

    machine = cpu_identity() if device == 'cpu' else torch.cuda.get_device_name(device)
    return {
        'machine': f'{platform.node()}, {machine}, {torch.get_num_threads()} threads',
        'tried': [f'{name} {version_of(name)} {precision}' for name, precision in tried],
    }


def _remembered(path: Path, depends_on: dict[str, Any]) -> Choice | None:
    try:
        values = json.loads(path.read_text(encoding='utf-8'))
        timings = tuple(Timing(**timing) for timing in values['timings'])
        choice = Choice(values['backend'], values['precision'], timings, values['depends_on'])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return choice if choice.depends_on == depends_on else None
