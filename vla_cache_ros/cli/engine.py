"""`vla-cache engine`: a model's graphs as ONNX, engines from them, compared with PyTorch, listed.

`vla-cache engine build --backend openvino --precision bf16` builds; the same options after `engine
verify` compare what was built, and a policy node takes it by its parameter `backend`.
"""

import dataclasses
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from vla_cache_ros.cli.checkpoints import CheckpointPolicies, ModelOptions
from vla_cache_ros.cli.progress import step_progress
from vla_cache_ros.core.errors import ConfigError

if TYPE_CHECKING:
    from vla_cache_ros.core.types import Observation
    from vla_cache_trt.build import Wanted
    from vla_cache_trt.manifest import Verification
    from vla_cache_trt.store import Stored

NEEDED_SPACE = 2.2
"""Free disk space that a build takes, as a multiple of the weights: ONNX and plan."""


@dataclass(frozen=True)
class _Engines(ModelOptions):
    """Which engines: the options of export, build and verify."""

    backend: str = 'auto'
    """torch_cuda_graph, ort, openvino, tensorrt, tensorrt_rtx; auto: the fastest of this
    machine."""
    cache: str = 'safe'
    """Reuse preset that the decoder is cut for: safe, paper. Dense steps run on either."""


@dataclass(frozen=True)
class Export(_Engines):
    """Export a model's graphs to ONNX."""

    backend: str = 'ort'
    """Whose number format the graphs get, with --precision."""
    opset: int = 23
    """ONNX operator set; 20 is the fallback for older consumers."""


@dataclass(frozen=True)
class Build(_Engines):
    """Export and compile; what is there already, made from the same, is kept."""

    buckets: str = ''
    """Numbers of recomputed tokens to compile for, ascending: 64,128,256; default: eight equal
    steps. The longest sequence is always added."""
    compute_capability: str = ''
    """Of a GPU that is not in this machine, e.g. 8.9 (tensorrt_rtx alone)."""
    opset: int = 23
    """ONNX operator set; 20 is the fallback for older consumers."""


@dataclass(frozen=True)
class Verify(_Engines):
    """Compare engines with PyTorch on frames; exit code 1 where they miss a threshold."""

    frames: Path | None = None
    """Recorded frames (.npz), as `vla-cache bench` writes them; default: made-up ones."""
    steps: int = 8
    """Frames to compare on, the first ones."""
    json: bool = False
    """Print one JSON object instead of a table."""


@dataclass(frozen=True)
class List:
    """List the engines of this machine's store."""

    engine_folder: Path | None = None
    """Where engines lie; default: $VLA_CACHE_ENGINES, or ~/.cache/vla_cache_ros/engines."""
    json: bool = False
    """Print one JSON object instead of a table."""


Action = (
    Annotated[Export, tyro.conf.subcommand('export', prefix_name=False)]
    | Annotated[Build, tyro.conf.subcommand('build', prefix_name=False)]
    | Annotated[Verify, tyro.conf.subcommand('verify', prefix_name=False)]
    | Annotated[List, tyro.conf.subcommand('list', prefix_name=False)]
)


@dataclass(frozen=True)
class EngineConfig:
    """Options of `vla-cache engine`."""

    action: tyro.conf.OmitArgPrefixes[Action]


def run_engine(config: EngineConfig) -> int:
    """Do one of the four.

    Returns:
        0, or 1 where `verify` found an engine that differs from PyTorch.

    Raises:
        ConfigError: An option cannot be used.
        EngineError: An engine cannot be built or loaded.
    """
    action = config.action
    if isinstance(action, _Engines) and action.cache == 'off':
        raise ConfigError(
            'engines are cut for a reuse preset, and dense steps run on them as well; '
            'name --cache safe or --cache paper.'
        )
    if isinstance(action, Export):
        return _export(action)
    if isinstance(action, Build):
        return _build(action)
    if isinstance(action, Verify):
        return _verify(action)
    return _list(action)


def parse_buckets(text: str) -> tuple[int, ...] | None:
    """Buckets as typed; None where nothing was.

    Raises:
        ConfigError: They are not whole numbers.
    """
    if not text.strip():
        return None
    try:
        return tuple(int(word) for word in text.split(','))
    except ValueError:
        raise ConfigError(
            f'buckets {text!r} are not whole numbers with commas between them; e.g. 64,128,256.'
        ) from None


def _export(config: Export) -> int:
    from vla_cache_trt.build import export_graphs

    policies = CheckpointPolicies.chosen(config, config.cache, to_run=False)
    wanted = policies.wanted(config.cache)
    with step_progress('exporting') as on_progress:
        files = export_graphs(wanted, on_progress, config.opset)
    for path in files.values():
        _say(f'{path}  {_in_units(_size(path.parent))}')
    return 0


def _build(config: Build) -> int:
    from vla_cache_trt.backends import backend_module
    from vla_cache_trt.build import build_engines, settle_buckets
    from vla_cache_trt.manifest import read_manifest

    buckets = parse_buckets(config.buckets)
    if config.backend != 'auto':  # what is not installed is said before a model is loaded
        backend_module(config.backend, to_run=not config.compute_capability)
    policies = CheckpointPolicies.chosen(config, config.cache, to_run=False)
    wanted = policies.wanted(config.cache, config.compute_capability)
    if wanted.backend == 'torch':
        _say('backend torch runs the model as it is; there is nothing to build.')
        return 0
    sizes = settle_buckets(wanted.model, buckets)
    _check_space(wanted)
    with step_progress(f'building {wanted.backend} {wanted.precision}') as on_progress:
        folder = build_engines(wanted, sizes, on_progress, config.opset)
    manifest = read_manifest(folder, wanted.build_command)
    _say(f'{folder}  {_in_units(_size(folder))}, {manifest.seconds:.1f} s')
    _say(f'buckets {", ".join(str(size) for size in manifest.identity.buckets)}')
    if not manifest.is_blessed and not config.compute_capability:
        verify = wanted.build_command.replace('engine build', 'engine verify', 1)
        _say(f'Not compared with PyTorch yet: {verify}')
    return 0


def _verify(config: Verify) -> int:
    from vla_cache_trt.verify import THRESHOLDS, failures, verify_engines

    wanted = CheckpointPolicies.chosen(config, config.cache).wanted(config.cache)
    if wanted.backend == 'torch':
        raise ConfigError(
            'backend torch is what the others are compared with; name another one with --backend.'
        )
    observations, frames_from = _observations(config, wanted)
    with step_progress('comparing with PyTorch') as on_progress:
        verification = verify_engines(wanted, observations, frames_from, on_progress)
    missed = failures(verification.figures, THRESHOLDS[wanted.precision])
    if config.json:
        document = {
            'folder': str(wanted.folder),
            **dataclasses.asdict(verification),
            'failures': missed,
        }
        print(json.dumps(document, indent=2))
        return 0 if verification.passed else 1
    _print_figures(wanted, verification)
    for failure in missed:
        _say(failure, 'red')
    if missed:
        _say(f'Refused: {wanted.folder} differs from PyTorch.', 'bold red')
    else:
        _say(f'Verified: {wanted.folder}', 'green')
    return 0 if verification.passed else 1


def _list(config: List) -> int:
    from vla_cache_trt.store import default_root, stored_engines

    root = config.engine_folder or default_root()
    stored = stored_engines(root)
    if config.json:
        document = {'root': str(root), 'engines': [_entry(engine) for engine in stored]}
        print(json.dumps(document, indent=2))
    elif not stored:
        _say(f'There are no engines in {root}; build some with: vla-cache engine build')
    else:
        _print_list(root, stored)
    return 0


def _observations(config: Verify, wanted: 'Wanted') -> 'tuple[Sequence[Observation], str]':
    if config.steps < 2:
        raise ConfigError(f'steps is {config.steps}; valid: at least 2, the first is a keyframe.')
    if config.frames is None:
        from vla_cache_trt.choose import synthetic_frames

        return synthetic_frames(wanted.model, config.steps), 'made-up frames'
    from vla_cache_ros.cli.recording import load_observations

    observations, about = load_observations(config.frames)
    return observations[: config.steps], about


def _entry(engine: 'Stored') -> dict[str, Any]:
    manifest = engine.manifest
    return {
        'folder': str(engine.path),
        'bytes': engine.nbytes,
        'problem': engine.problem,
        'manifest': None if manifest is None else dataclasses.asdict(manifest),
        'verified': manifest is not None and manifest.is_blessed,
    }


def _print_list(root: Path, stored: 'Sequence[Stored]') -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table('engine', 'for', title=f'Engines in {root}')
    table.add_column('size', justify='right')
    table.add_column('verified')
    for engine in stored:
        model = ' '.join(engine.path.relative_to(root).parts[:2])
        name, device = engine.path.name, ''
        if engine.manifest is not None:
            identity = engine.manifest.identity
            name = f'{identity.backend} {identity.precision}\n{identity.backend_version}'
            device = f'\n{identity.device}'
        state = Text(*_state(engine))
        table.add_row(Text(name), Text(f'{model}{device}'), _in_units(engine.nbytes), state)
    Console().print(table)


def _state(engine: 'Stored') -> tuple[str, str]:
    """Word and colour for the column 'verified'."""
    if engine.problem or engine.manifest is None:
        return engine.problem, 'red'
    if engine.manifest.identity.backend == 'onnx':
        return '-', ''
    if engine.manifest.verification is None:
        return 'not yet', 'yellow'
    return ('yes', 'green') if engine.manifest.is_blessed else ('refused', 'bold red')


def _print_figures(wanted: 'Wanted', verification: 'Verification') -> None:
    from rich.console import Console
    from rich.table import Table

    arms = list(verification.figures)
    table = Table('figure', *arms, 'valid', title=f'{wanted.backend} {wanted.precision}')
    names = dict.fromkeys(name for arm in arms for name in verification.figures[arm])
    for name in names:
        limit = verification.thresholds.get(name)
        bound = '<=' if name == 'motion' else '>='
        values = (verification.figures[arm].get(name) for arm in arms)
        table.add_row(
            name,
            *('-' if value is None else f'{value:.6g}' for value in values),
            '' if limit is None else f'{bound} {limit:g}',
        )
    Console().print(table)
    _say(f'{verification.frames} frames from {verification.frames_from or "nowhere named"}')


def _check_space(wanted: 'Wanted') -> None:
    """Refuse at once a build of gigabytes that will not fit.

    Raises:
        ConfigError: The disk has too little space.
    """
    parameters = wanted.model.network.parameters()
    needed = NEEDED_SPACE * sum(tensor.nbytes for tensor in parameters)
    folder = wanted.folder
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise ConfigError(
            f'building takes about {_in_units(needed)} and {folder} has {_in_units(free)} free; '
            'free some, or name another folder with --engine-folder.'
        )


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob('*') if path.is_file())


def _in_units(size: float) -> str:
    return f'{size / 1e9:.2f} GB' if size >= 1e9 else f'{size / 1e6:.1f} MB'


def _say(text: str, style: str = '') -> None:
    from rich.console import Console
    from rich.text import Text

    Console().print(Text(text, style), soft_wrap=True)
