"""Where engine files lie, and how they come there whole.

    <root>/<model>-<checkpoint>/<reuse key>/onnx-float32/manifest.json
                                                        <graph>/..
                                            ort-fp32/manifest.json
                                                     <graph>/record.json, ..
                                            tensorrt_rtx-bf16-sm8.9/..

A graph is written into a hidden folder, which is renamed once it is whole; a manifest is written
when every graph is there. So a build that was interrupted leaves finished graphs, which the next
one keeps, and a folder without a manifest, which nothing loads.
"""

import contextlib
import dataclasses
import datetime
import fcntl
import hashlib
import importlib
import os
import platform
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vla_cache_ros.core.config import ReuseConfig
from vla_cache_ros.core.errors import EngineError
from vla_cache_ros.core.planner import layer_groups
from vla_cache_trt import manifest as records
from vla_cache_trt.manifest import (
    MANIFEST,
    RECORD,
    FileRecord,
    GraphRecord,
    Identity,
    Manifest,
    read_manifest,
    read_record,
    record_files,
    write_json,
)

if TYPE_CHECKING:
    from vla_cache_models.vla import Vla

ROOT_VARIABLE = 'VLA_CACHE_ENGINES'
UNFINISHED = 'unfinished.json'
CPU_INSTRUCTIONS = ('avx2', 'avx512f', 'avx512_bf16', 'amx_bf16', 'asimd', 'bf16', 'sve')
"""Flags that engines compile for."""
SAMPLES = 16
"""Numbers that are read of each tensor to name weights that no file names."""


def default_root() -> Path:
    """Where engines lie unless the user says otherwise: $VLA_CACHE_ENGINES or the user's cache."""
    if given := os.environ.get(ROOT_VARIABLE):
        return Path(given)
    cache = os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache'
    return Path(cache, 'vla_cache_ros', 'engines')


def weights_fingerprint(model: 'Vla') -> str:
    """Names a model's weights, 12 digits.

    Those of a checkpoint have the hash of its files; others (random ones) are sampled.
    """
    if re.fullmatch('[0-9a-f]{64}', model.weights_sha256):
        return model.weights_sha256[:12]
    digest = hashlib.sha256()
    for name, tensor in model.network.state_dict().items():
        flat = tensor.detach().flatten()
        sample = flat[:: max(1, len(flat) // SAMPLES)][:SAMPLES].double().cpu().numpy()
        digest.update(f'{name} {tuple(tensor.shape)} '.encode() + sample.tobytes())
    return digest.hexdigest()[:12]


def reuse_cuts(model: 'Vla', reuse: ReuseConfig) -> tuple[tuple[int, ...], int | None]:
    """What graphs depend on of a reuse configuration: prune layers and the relevance layer.

    Layer 0 is always among the prune layers: a reuse that begins later, or none at all, runs the
    layers before its first cut as a group of their own.
    """
    groups = layer_groups(reuse, model.decoder.config.layers)
    relevance = reuse.relevance_layer if reuse.uses_relevance else None
    return tuple(group.start for group in groups), relevance


def cpu_identity(cpuinfo: Path = Path('/proc/cpuinfo')) -> str:
    """The CPU as engines see it: architecture and vector instructions."""
    flags: set[str] = set()
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding='utf-8').splitlines():
            key, _, value = line.partition(':')
            if key.strip() in ('flags', 'Features'):
                flags = set(value.split())
                break
    return ' '.join((platform.machine(), *(flag for flag in CPU_INSTRUCTIONS if flag in flags)))


def device_identity(device: str) -> str:
    """What engines for a torch device are compiled for.

    Args:
        device: 'cpu', 'cuda' or 'cuda:1'.

    Raises:
        EngineError: torch sees no such GPU.
    """
    if device.partition(':')[0] != 'cuda':
        return cpu_identity()
    torch = importlib.import_module('torch')
    if not torch.cuda.is_available():
        raise EngineError(
            f'torch sees no GPU, so nothing can run on {device}; an engine for another machine '
            'is built with --backend tensorrt_rtx --compute-capability 8.9.'
        )
    major, minor = torch.cuda.get_device_capability(device)
    return f'SM {major}.{minor}'


def identify(
    model: 'Vla',
    reuse: ReuseConfig,
    backend: str,
    precision: str,
    device: str,
    version: str,
    buckets: tuple[int, ...] = (),
) -> Identity:
    """What an engine must be for, to run this model here.

    Args:
        model: The model.
        reuse: Its reuse configuration.
        backend: Name of the backend; 'onnx' for exported graphs.
        precision: What it computes in.
        device: As `device_identity` names it.
        version: The backend's.
        buckets: Sizes of K; empty: any.
    """
    prune_layers, relevance_layer = reuse_cuts(model, reuse)
    return Identity(
        model=model.name,
        checkpoint=weights_fingerprint(model),
        prune_layers=prune_layers,
        relevance_layer=relevance_layer,
        dtype=str(model.decoder.norm.weight.dtype).removeprefix('torch.'),
        backend=backend,
        backend_version=version,
        device=device,
        precision=precision,
        buckets=buckets,
    )


def folder_of(root: Path, identity: Identity) -> Path:
    """The folder of an engine.

    Args:
        root: Where all engines lie.
        identity: What it is for.
    """
    cuts = '_'.join(str(layer) for layer in identity.prune_layers)
    relevance = 'none' if identity.relevance_layer is None else identity.relevance_layer
    name = f'{identity.backend}-{identity.precision}'
    if identity.device.startswith('SM '):
        name += f'-{identity.device.replace("SM ", "sm")}'
    return (
        root
        / f'{identity.model}-{identity.checkpoint}'
        / f'cuts_{cuts}-relevance_{relevance}'
        / name
    )


class EngineFolder:
    """One folder of graphs that is being filled; use as a context manager.

    Only one process fills a folder at a time; others wait, and then find it filled.

    Attributes:
        path: The folder.
    """

    def __init__(self, path: Path, identity: Identity, command: str) -> None:
        """Name the folder.

        Args:
            path: Where it lies.
            identity: What the graphs are for; finished ones for something else are discarded.
            command: What builds it, for messages.
        """
        self.path = path
        self._identity = identity
        self._command = command
        self._graphs: dict[str, GraphRecord] = {}
        self._old: Manifest | None = None
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> 'EngineFolder':
        """Wait for the folder, and drop what is not for this identity.

        Raises:
            EngineError: The folder cannot be written.
        """
        try:
            self._stack.enter_context(_locked(self.path))
            before = self._before()
            if before is None or before.identity != self._identity:
                shutil.rmtree(self.path, ignore_errors=True)
                before = None
            self.path.mkdir(parents=True, exist_ok=True)
            self._old = before
        except OSError as error:
            self._stack.close()
            raise EngineError(
                f'{self.path} cannot be written ({error}); name another folder with '
                f'--engine-folder or ${ROOT_VARIABLE}.'
            ) from error
        return self

    def __exit__(self, *_: object) -> None:
        """Let others have the folder."""
        self._stack.close()

    def graph(
        self, name: str, spec_sha256: str, onnx_sha256: str, write: Callable[[Path], None]
    ) -> GraphRecord:
        """Write one graph unless it is there already, made from the same.

        Args:
            name: The graph's.
            spec_sha256: Of its inputs and outputs.
            onnx_sha256: Of what it is compiled from.
            write: Writes its files into the folder it is given.

        Raises:
            EngineError: It cannot be written.
        """
        found = self._finished(name)
        if found is None or (found.spec_sha256, found.onnx_sha256) != (spec_sha256, onnx_sha256):
            found = self._write(name, spec_sha256, onnx_sha256, write)
        self._graphs[name] = found
        return found

    def finish(self, opset: int = 0) -> Manifest:
        """Write the manifest: from now on the folder can be loaded.

        A verification of an engine whose graphs are all as they were stays valid.
        """
        old = self._old
        if old is not None and old.graphs == self._graphs and old.graphs:
            return old
        manifest = Manifest(
            identity=self._identity,
            graphs=self._graphs,
            opset=opset,
            created=now(),
            seconds=sum(record.seconds for record in self._graphs.values()),
        )
        write_json(self.path / MANIFEST, manifest)
        (self.path / UNFINISHED).unlink(missing_ok=True)
        return manifest

    def _before(self) -> Manifest | None:
        """What the folder holds so far; None where that is nothing, or nothing usable."""
        for name in (MANIFEST, UNFINISHED):
            if (self.path / name).is_file():
                with contextlib.suppress(EngineError):
                    return read_manifest(self.path, self._command, name)
        return None

    def _finished(self, name: str) -> GraphRecord | None:
        folder = self.path / name
        with contextlib.suppress(EngineError):
            record = read_record(folder, self._command)
            if record is not None:
                records.check_files(record, folder, self._command)
            return record
        return None

    def _write(
        self, name: str, spec_sha256: str, onnx_sha256: str, write: Callable[[Path], None]
    ) -> GraphRecord:
        # Whatever the folder was, it is unfinished from here on.
        write_json(self.path / UNFINISHED, Manifest(self._identity, {}))
        (self.path / MANIFEST).unlink(missing_ok=True)
        self._old = None
        partial, whole = self.path / f'.{name}.partial', self.path / name
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        begin = time.monotonic()
        try:
            write(partial)
            record = GraphRecord(
                spec_sha256, onnx_sha256, record_files(partial), time.monotonic() - begin
            )
            write_json(partial / RECORD, record)
            shutil.rmtree(whole, ignore_errors=True)
            partial.rename(whole)
        except OSError as error:
            raise EngineError(
                f'{whole} cannot be written ({error}); free disk space or name another folder '
                f'with --engine-folder, then run again: {self._command}'
            ) from error
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        return record


@dataclass(frozen=True)
class Stored:
    """One engine folder as `list` shows it.

    Attributes:
        path: The folder.
        manifest: None where the build was interrupted.
        nbytes: Size of its files.
        problem: What keeps it from being loaded, in words; empty where nothing was seen.
    """

    path: Path
    manifest: Manifest | None
    nbytes: int
    problem: str = ''


def stored_engines(root: Path) -> list[Stored]:
    """Every engine folder below a root, in order of path."""
    folders = {
        path.parent for name in (MANIFEST, UNFINISHED) for path in root.glob(f'*/*/*/{name}')
    }
    return [_stored(folder) for folder in sorted(folders)]


def now() -> str:
    """Date and time, UTC, ISO 8601."""
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec='seconds')


def spec_hash(spec: object) -> str:
    """Hash of a graph's inputs and outputs."""
    return hashlib.sha256(str(spec).encode()).hexdigest()


def mark_verified(folder: Path, verification: records.Verification, command: str) -> Manifest:
    """Write what a verification found into an engine's manifest.

    Raises:
        EngineError: There is no engine.
    """
    manifest = dataclasses.replace(read_manifest(folder, command), verification=verification)
    write_json(folder / MANIFEST, manifest)
    return manifest


def _stored(folder: Path) -> Stored:
    nbytes = sum(path.stat().st_size for path in folder.rglob('*') if path.is_file())
    if not (folder / MANIFEST).is_file():
        return Stored(folder, None, nbytes, 'the build was interrupted')
    try:
        manifest = read_manifest(folder, 'vla-cache engine build')
    except EngineError as error:
        return Stored(folder, None, nbytes, str(error))
    return Stored(folder, manifest, nbytes, _missing(folder, manifest.graphs))


def _missing(folder: Path, graphs: Mapping[str, GraphRecord]) -> str:
    """The first file that is not there or has another size; hashes are left to loading."""

    def broken(path: Path, file: FileRecord) -> bool:
        return not path.is_file() or path.stat().st_size != file.size

    for name, record in graphs.items():
        for file_name, file in record.files.items():
            if broken(folder / name / file_name, file):
                return f'{name}/{file_name} is missing or truncated'
    return ''


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / f'.{folder.name}.lock').open('w') as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
