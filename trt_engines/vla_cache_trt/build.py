"""Build a model's engines into the store, and load them from there.

    graphs = model_graphs(model, ..)            vla_cache_trt.graphs
    ONNX   = export of each graph               vla_cache_trt.export; shared by all backends
    engine = ONNX (or torch module) compiled    vla_cache_trt.backends.*

Nothing that is there already, made from the same, is made again.
"""

import importlib.metadata
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from vla_cache_ros import __version__
from vla_cache_ros.core.config import ReuseConfig
from vla_cache_ros.core.errors import ConfigError, EngineError
from vla_cache_trt.backends import backend_module, find_backend, graph_dtype, version_of
from vla_cache_trt.buckets import check_buckets
from vla_cache_trt.buckets import default_buckets as buckets_of
from vla_cache_trt.manifest import (
    MANIFEST,
    RECORD,
    Identity,
    Manifest,
    check,
    check_files,
    hash_of_files,
    read_manifest,
    read_record,
)
from vla_cache_trt.store import (
    EngineFolder,
    default_root,
    device_identity,
    folder_of,
    identify,
    spec_hash,
)

if TYPE_CHECKING:
    from vla_cache_models.vla import Vla
    from vla_cache_trt.engine import Graph, GraphSpec
    from vla_cache_trt.runtime import EngineSet

OnProgress = Callable[[str, int, int], None]
"""Called with what is being done, steps done, steps in all."""

DENSE_ON = 'safe'
"""Preset whose engines run policies without reuse, unless they are compared with another preset:
one set of engines serves both."""
OPSET = 23
BUCKET_STEPS = 8
"""Buckets by default: so many equal steps up to the longest sequence."""
BUCKET_MULTIPLE = 8
"""Row counts that matrix units like."""


@dataclass(frozen=True)
class Wanted:
    """Which engines, of which model.

    Attributes:
        model: The model, on torch's own network.
        reuse: Its reuse configuration.
        backend: Name of the backend.
        precision: What it computes in.
        device: Where it will run: 'cpu', 'cuda', 'cuda:1'.
        root: Where all engines lie; None: `default_root()`.
        compute_capability: Of a GPU that is not here, e.g. '8.9'; empty: this machine's device.
        command: What builds them, for messages; empty: made up from the above.
    """

    model: 'Vla'
    reuse: ReuseConfig
    backend: str
    precision: str
    device: str = 'cpu'
    root: Path | None = None
    compute_capability: str = ''
    command: str = ''

    def __post_init__(self) -> None:
        """Check that the model fits.

        Raises:
            UnknownNameError: There is no such backend or precision.
            EngineError: The model has another number format, or the device does not go with the
                backend.
        """
        backend = find_backend(self.backend)
        needed = graph_dtype(self.backend, self.precision)
        given = str(self.model.decoder.norm.weight.dtype).removeprefix('torch.')
        if given != needed:
            raise EngineError(
                f'backend {self.backend} computes {self.precision} from {needed} graphs and the '
                f'model is {given}; load it with dtype {needed}.'
            )
        kind = self.device.partition(':')[0]
        if kind not in backend.devices and not self.compute_capability:
            raise EngineError(
                f'backend {self.backend} does not run on device {self.device}; '
                f'valid: {", ".join(backend.devices)}.'
            )
        if self.compute_capability and not backend.ahead_of_time:
            raise EngineError(
                f'backend {self.backend} builds for the GPU of this machine alone; leave out the '
                'compute capability, or build with tensorrt_rtx.'
            )

    @property
    def build_command(self) -> str:
        """What builds the engines."""
        return self.command or (
            f'vla-cache engine build --backend {self.backend} --precision {self.precision}'
        )

    @property
    def is_built(self) -> bool:
        """Whether there is a finished build, for whatever it may be."""
        return (self.folder / MANIFEST).is_file()

    def identity(self, buckets: tuple[int, ...] = ()) -> Identity:
        """What the engines must be for."""
        aimed = f'SM {self.compute_capability}' if self.compute_capability else ''
        return identify(
            self.model,
            self.reuse,
            self.backend,
            self.precision,
            aimed or device_identity(self.device),
            version_of(self.backend),
            buckets,
        )

    def onnx_identity(self, opset: int) -> Identity:
        """What the exported graphs must be for: any backend that takes their number format."""
        dtype = graph_dtype(self.backend, self.precision)
        torch_version = importlib.metadata.version('torch')
        exporter = f'vla_cache_ros {__version__}, torch {torch_version}, opset {opset}'
        return identify(self.model, self.reuse, 'onnx', dtype, 'any', exporter)

    @property
    def folder(self) -> Path:
        """Where the engines lie."""
        return folder_of(self.root or default_root(), self.identity())

    def onnx_folder(self, opset: int) -> Path:
        """Where the exported graphs lie."""
        return folder_of(self.root or default_root(), self.onnx_identity(opset))

    def graphs(self) -> 'tuple[Graph, ...]':
        """The model's graphs."""
        from vla_cache_trt.graphs import model_graphs

        identity = self.identity()
        return model_graphs(self.model, identity.prune_layers, identity.relevance_layer)


def build_command(backend: str, precision: str, cache: str, **options: object) -> str:
    """The command that builds engines.

    Args:
        backend: Name of the backend.
        precision: What it computes in.
        cache: Preset of the reuse.
        **options: Further options by name (checkpoint, device, ..); empty ones are left out.
    """
    given = {'backend': backend, 'precision': precision, 'cache': cache, **options}
    words = [
        f'--{name.replace("_", "-")} {shlex.quote(str(value))}'
        for name, value in given.items()
        if value not in ('', None)
    ]
    return ' '.join(('vla-cache engine build', *words))


def default_buckets(model: 'Vla') -> tuple[int, ...]:
    """Those chosen from recorded histories; for other models equal steps, and 1 to generate."""
    longest = model.max_tokens - 1
    chosen = buckets_of(model.name, longest)
    if len(chosen) > 1:
        return chosen
    step = -(-longest // BUCKET_STEPS)
    rounded = -(-step // BUCKET_MULTIPLE) * BUCKET_MULTIPLE
    one = (1,) if model.generates and rounded > 1 else ()
    return (*one, *(size for size in range(rounded, longest, rounded)), longest)


def settle_buckets(model: 'Vla', buckets: Sequence[int] | None) -> tuple[int, ...]:
    """Check buckets; the longest sequence is always the last one, for dense steps.

    Args:
        model: The model.
        buckets: Ascending sizes of K; None: `default_buckets`.

    Raises:
        ConfigError: There is none, they do not increase, or one is above the longest sequence.
    """
    if buckets is None:
        return default_buckets(model)
    checked = check_buckets(buckets)
    longest = model.max_tokens - 1
    if checked[-1] > longest:
        raise ConfigError(
            f'bucket {checked[-1]} is above the longest sequence of {model.name}, {longest} '
            'tokens; leave it out.'
        )
    return checked if checked[-1] == longest else (*checked, longest)


def graph_buckets(spec: 'GraphSpec', buckets: tuple[int, ...]) -> tuple[int, ...]:
    """The buckets of one graph: a vision tower runs the decoder's tokens without those behind.

    Args:
        spec: Of the graph.
        buckets: Of the decoder, the longest sequence last.
    """
    if spec.cache is None:
        return buckets
    behind = buckets[-1] - (int(spec.cache.shape[3]) - 1)
    return tuple(bucket - behind for bucket in buckets if bucket > behind)


def export_graphs(
    wanted: Wanted, on_progress: OnProgress | None = None, opset: int = OPSET
) -> dict[str, Path]:
    """Export a model's graphs to ONNX.

    Returns:
        Name of the graph -> its ONNX file.

    Raises:
        EngineError: The folder cannot be written.
    """
    from vla_cache_trt.export import export_onnx

    report = on_progress or _silent
    graphs = wanted.graphs()
    folder, identity = wanted.onnx_folder(opset), wanted.onnx_identity(opset)
    with EngineFolder(folder, identity, wanted.build_command) as store:
        for index, graph in enumerate(graphs):
            name = graph.spec.name
            report(f'exporting {name}', index, len(graphs))
            store.graph(
                name,
                spec_hash(graph.spec),
                '',
                partial(_export, export_onnx, graph, opset),
            )
        store.finish(opset)
    report('exported', len(graphs), len(graphs))
    return {graph.spec.name: _onnx_file(folder, graph.spec.name) for graph in graphs}


def build_engines(
    wanted: Wanted,
    buckets: Sequence[int] | None = None,
    on_progress: OnProgress | None = None,
    opset: int = OPSET,
) -> Path:
    """Build a model's engines, as far as they are not there yet.

    Args:
        wanted: Which ones.
        buckets: Ascending sizes of K; None: `default_buckets`.
        on_progress: Called as the work goes on.
        opset: ONNX operator set.

    Returns:
        The folder of the engines.

    Raises:
        ConfigError: The buckets cannot be used.
        EngineError: The backend is not installed, or the folder cannot be written.
    """
    module = backend_module(wanted.backend, to_run=not wanted.compute_capability)
    sizes = settle_buckets(wanted.model, buckets)
    report = on_progress or _silent
    needs_onnx = find_backend(wanted.backend).needs_onnx
    if needs_onnx:
        export_graphs(wanted, on_progress, opset)
    onnx_folder = wanted.onnx_folder(opset)
    graphs = wanted.graphs()
    with EngineFolder(wanted.folder, wanted.identity(sizes), wanted.build_command) as store:
        for index, graph in enumerate(graphs):
            name = graph.spec.name
            onnx = _checked_onnx(onnx_folder, graph, wanted) if needs_onnx else None
            report(f'compiling {name}', index, len(graphs))
            store.graph(
                name,
                spec_hash(graph.spec),
                _onnx_hash(onnx_folder, name, wanted) if needs_onnx else '',
                partial(
                    _compile,
                    module,
                    graph,
                    onnx,
                    wanted,
                    graph_buckets(graph.spec, sizes),
                    partial(_report_step, report, f'compiling {name}', index, len(graphs)),
                ),
            )
        store.finish(opset if needs_onnx else 0)
    report('built', len(graphs), len(graphs))
    return wanted.folder


def on_engines(wanted: Wanted) -> 'Vla':
    """The model on its engines; with backend torch it is the model itself.

    Raises:
        EngineError: See `load_engines`; or the engine was compared with PyTorch and refused.
    """
    if wanted.backend == 'torch':
        return wanted.model
    from vla_cache_trt.runtime import attach

    engines = load_engines(wanted)
    manifest = fitting_manifest(wanted)
    verification = None if manifest is None else manifest.verification
    if verification is not None and not verification.passed:
        raise EngineError(
            f'the engine in {wanted.folder} was compared with PyTorch and refused: it differs. '
            f'Delete the folder, or choose another precision, and rebuild it with: '
            f'{wanted.build_command}'
        )
    return attach(wanted.model, engines)


def load_engines(wanted: Wanted) -> 'EngineSet':
    """Load a model's engines, after checking that they are for it and whole.

    Raises:
        EngineError: There are none, they are damaged, were changed, or are for another
            checkpoint, device or version; the message holds the command that rebuilds.
    """
    from vla_cache_trt.runtime import EngineSet

    module = backend_module(wanted.backend)
    manifest = fitting_manifest(wanted)
    identity = wanted.identity() if manifest is None else manifest.identity
    buckets = identity.buckets or default_buckets(wanted.model)
    engines = {}
    for graph in wanted.graphs():
        name = graph.spec.name
        engines[name] = module.load_engine(
            graph,
            None if manifest is None else _checked_graph(wanted, manifest, graph),
            wanted.folder / name,
            wanted.precision,
            graph_buckets(graph.spec, buckets),
            wanted.device,
        )
    return EngineSet(engines, identity.relevance_layer)


def fitting_manifest(wanted: Wanted) -> Manifest | None:
    """The manifest of the engines that are wanted.

    Returns:
        None where there is none that fits and nothing is compiled, so that none is needed.

    Raises:
        EngineError: There is none that fits.
    """
    command = wanted.build_command
    try:
        manifest = read_manifest(wanted.folder, command)
        check(manifest.identity, wanted.identity(), wanted.folder, command)
    except EngineError:
        if find_backend(wanted.backend).needs_onnx:
            raise
        return None
    return manifest


def _checked_graph(wanted: Wanted, manifest: Manifest, graph: 'Graph') -> Path | None:
    """Make sure of a graph's files.

    Returns:
        Its ONNX file; None where there is none, or the backend takes none.

    Raises:
        EngineError: A file is damaged, or belongs to other graphs.
    """
    name, command, folder = graph.spec.name, wanted.build_command, wanted.folder
    record = manifest.graphs.get(name)
    if record is None or record.spec_sha256 != spec_hash(graph.spec):
        raise EngineError(
            f'the engine in {folder} does not fit: graph {name} has other inputs or outputs '
            f'in this version of vla_cache_ros. Rebuild it with: {command}'
        )
    check_files(record, folder / name, command)
    onnx_folder = wanted.onnx_folder(manifest.opset)
    if not find_backend(wanted.backend).needs_onnx or not (onnx_folder / name).is_dir():
        return None
    onnx = _checked_onnx(onnx_folder, graph, wanted)
    if _onnx_hash(onnx_folder, name, wanted) != record.onnx_sha256:
        raise EngineError(
            f'the engine of {name} in {folder} was compiled from another export than the '
            f'one in {onnx_folder}. Rebuild it with: {command}'
        )
    return onnx


def _compile(
    module: ModuleType,
    graph: 'Graph',
    onnx: Path | None,
    wanted: Wanted,
    buckets: tuple[int, ...],
    on_progress: Callable[[int, int], None],
    folder: Path,
) -> None:
    """Compile one graph; ahead-of-time compilers are told which GPU to aim at."""
    target = {}
    if find_backend(wanted.backend).ahead_of_time:
        target['compute_capability'] = wanted.identity().device.removeprefix('SM ')
    module.compile_graph(graph, onnx, folder, wanted.precision, buckets, on_progress, **target)


def _report_step(
    report: OnProgress, what: str, graph: int, graphs: int, done: int, total: int
) -> None:
    report(f'{what}, {done} of {total}' if total > 1 else what, graph, graphs)


def _export(export_onnx: Callable[..., object], graph: 'Graph', opset: int, folder: Path) -> None:
    export_onnx(graph, folder / f'{graph.spec.name}.onnx', opset)


def _onnx_file(folder: Path, name: str) -> Path:
    return folder / name / f'{name}.onnx'


def _checked_onnx(folder: Path, graph: 'Graph', wanted: Wanted) -> Path:
    """The ONNX file of a graph, refused where someone changed it."""
    name = graph.spec.name
    record = read_record(folder / name, wanted.build_command)
    if record is None:
        raise EngineError(
            f'{folder / name / RECORD} is missing. Rebuild it with: {wanted.build_command}'
        )
    check_files(record, folder / name, wanted.build_command)
    return _onnx_file(folder, name)


def _onnx_hash(folder: Path, name: str, wanted: Wanted) -> str:
    record = read_record(folder / name, wanted.build_command)
    return '' if record is None else hash_of_files(record.files)


def _silent(what: str, done: int, total: int) -> None:
    """Report to nobody."""
