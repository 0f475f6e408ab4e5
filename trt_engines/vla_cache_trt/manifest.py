"""What lies beside an engine's files and says what they were built for.

    onnx-fp32/manifest.json           the graphs as exported
    openvino-bf16/manifest.json       the engine: backend, version, device, precision, buckets, ..
    openvino-bf16/<graph>/record.json one compiled graph: what it was made from, its files

An engine built for something else than what is to run gives wrong actions or crashes; so nothing
is loaded before `check` and `check_files` have passed. Each refusal names what differs and the
command that rebuilds.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vla_cache_ros.core.errors import EngineError
from vla_cache_ros.core.json_text import need, parse_json

MANIFEST = 'manifest.json'
RECORD = 'record.json'
FORMAT = 'vla_cache_ros engine 1'


@dataclass(frozen=True)
class FileRecord:
    """One file of an artifact."""

    size: int
    sha256: str


@dataclass(frozen=True)
class GraphRecord:
    """One compiled (or exported) graph.

    Attributes:
        spec_sha256: Hash of its inputs and outputs: another version of the package, or another
            model, has other ones.
        onnx_sha256: Hash of the ONNX files that it was compiled from; empty where none was needed.
        files: Name within the graph's folder -> the file.
        seconds: Time that it took.
    """

    spec_sha256: str
    onnx_sha256: str
    files: Mapping[str, FileRecord]
    seconds: float = 0.0


@dataclass(frozen=True)
class Identity:
    """What an engine is for; two engines of equal identity are interchangeable.

    Attributes:
        model: Which model, as presets name it.
        checkpoint: Fingerprint of the weights.
        prune_layers: Where the decoder is cut into groups; 0 and the end are always cuts.
        relevance_layer: The layer that gives relevance; None: none does.
        dtype: Element type at the graphs' borders and in K/V, e.g. 'float32'.
        backend: What runs it; 'onnx' for exported graphs.
        backend_version: Its version.
        device: What it was compiled for: 'SM 8.9', or a CPU with its vector instructions.
        precision: What it computes in.
        buckets: Ascending sizes of K; empty for exported graphs, which take every K.
    """

    model: str
    checkpoint: str
    prune_layers: tuple[int, ...]
    relevance_layer: int | None
    dtype: str
    backend: str
    backend_version: str
    device: str
    precision: str
    buckets: tuple[int, ...] = ()


IN_WORDS = {
    'model': 'model',
    'checkpoint': 'checkpoint',
    'prune_layers': 'prune layers',
    'relevance_layer': 'relevance layer',
    'dtype': 'number format of the graphs',
    'backend': 'backend',
    'backend_version': 'version of the backend',
    'device': 'device',
    'precision': 'precision',
    'buckets': 'buckets',
}
"""Field of an identity -> what messages call it."""


@dataclass(frozen=True)
class Verification:
    """What `vla-cache engine verify` found.

    Attributes:
        passed: Whether every figure is within its threshold.
        figures: Arm ('dense', 'cached') -> figure -> value; see `vla_cache_trt.verify`.
        thresholds: Figure -> the greatest (or for cosines the least) value that passes.
        frames: How many observations were compared.
        frames_from: Where they come from.
        created: Date and time, UTC.
    """

    passed: bool
    figures: Mapping[str, Mapping[str, float]]
    thresholds: Mapping[str, float]
    frames: int
    frames_from: str
    created: str


@dataclass(frozen=True)
class Manifest:
    """One folder of engine files.

    Attributes:
        identity: What it is for.
        graphs: Name -> the compiled graph.
        opset: ONNX operator set that the graphs were exported with; 0 where there was no export.
        created: Date and time, UTC.
        seconds: Time that building took.
        verification: None before `verify`.
    """

    identity: Identity
    graphs: Mapping[str, GraphRecord]
    opset: int = 0
    created: str = ''
    seconds: float = 0.0
    verification: Verification | None = field(default=None)

    @property
    def is_blessed(self) -> bool:
        """Whether it was compared with PyTorch and passed."""
        return self.verification is not None and self.verification.passed


def check(found: Identity, wanted: Identity, where: Path, command: str) -> None:
    """Refuse an engine that is for something else.

    Args:
        found: What the engine is for.
        wanted: What is to run; empty buckets accept any.
        where: The engine's folder, for the message.
        command: What rebuilds it.

    Raises:
        EngineError: They differ; the message names every difference.
    """
    differences = []
    for entry in dataclasses.fields(Identity):
        has, needs = getattr(found, entry.name), getattr(wanted, entry.name)
        if has != needs and (entry.name != 'buckets' or needs):
            differences.append(
                f'{IN_WORDS[entry.name]}: built for {_text(has)}, this is {_text(needs)}'
            )
    if differences:
        raise EngineError(
            f'the engine in {where} does not fit. {"; ".join(differences)}. '
            f'Rebuild it with: {command}'
        )


def check_files(record: GraphRecord, folder: Path, command: str) -> None:
    """Refuse a graph whose files are not those that were written.

    Raises:
        EngineError: One is missing, truncated or changed.
    """
    for name, file in record.files.items():
        path = folder / name
        if not path.is_file():
            raise EngineError(f'{path} is missing. Rebuild it with: {command}')
        size = path.stat().st_size
        if size != file.size:
            kind = 'truncated' if size < file.size else 'too long'
            raise EngineError(
                f'{path} is {kind}: {size} bytes of {file.size}. Rebuild it with: {command}'
            )
        if sha256_of(path) != file.sha256:
            raise EngineError(
                f'{path} was changed since it was written (its SHA-256 differs). '
                f'Rebuild it with: {command}'
            )


def record_files(folder: Path) -> dict[str, FileRecord]:
    """Every file below a folder, but for the records themselves."""
    return {
        path.relative_to(folder).as_posix(): FileRecord(path.stat().st_size, sha256_of(path))
        for path in sorted(folder.rglob('*'))
        if path.is_file() and path.name not in (RECORD, MANIFEST)
    }


def hash_of_files(files: Mapping[str, FileRecord]) -> str:
    """One hash for several files, names included."""
    digest = hashlib.sha256()
    for name in sorted(files):
        digest.update(f'{name} {files[name].sha256} '.encode())
    return digest.hexdigest()


def sha256_of(path: Path) -> str:
    """SHA-256 of a whole file."""
    digest = hashlib.sha256()
    with path.open('rb') as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def write_json(path: Path, document: Manifest | GraphRecord) -> None:
    """Write atomically: a reader sees the old file or the new one, never a part."""
    text = json.dumps({'format': FORMAT, **dataclasses.asdict(document)}, indent=2)
    partial = path.with_name(f'{path.name}.partial')
    with partial.open('w', encoding='utf-8') as file:
        file.write(text + '\n')
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def read_manifest(folder: Path, command: str, name: str = MANIFEST) -> Manifest:
    """Read a folder's manifest.

    Args:
        folder: The engine's folder.
        command: What builds it.
        name: The manifest's file.

    Raises:
        EngineError: There is none, or it is damaged.
    """
    path = folder / name
    if not path.is_file():
        raise EngineError(f'there is no engine in {folder}. Build it with: {command}')
    values = _read(path, command)
    try:
        identity = dict(values['identity'])
        for name in ('prune_layers', 'buckets'):
            identity[name] = tuple(identity[name])
        verification = values['verification']
        return Manifest(
            identity=Identity(**identity),
            graphs={name: _graph_record(entry) for name, entry in values['graphs'].items()},
            opset=values['opset'],
            created=values['created'],
            seconds=values['seconds'],
            verification=None if verification is None else Verification(**verification),
        )
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise _damaged(path, error, command) from error


def read_record(folder: Path, command: str) -> GraphRecord | None:
    """Read a finished graph's record; None where the graph is not finished.

    Raises:
        EngineError: The record is damaged.
    """
    path = folder / RECORD
    if not path.is_file():
        return None
    values = _read(path, command)
    try:
        return _graph_record({name: values[name] for name in values if name != 'format'})
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise _damaged(path, error, command) from error


def _graph_record(values: Mapping[str, Any]) -> GraphRecord:
    files = {
        name: FileRecord(need(file['size'], int, 'size'), need(file['sha256'], str, 'sha256'))
        for name, file in values['files'].items()
    }
    return GraphRecord(
        need(values['spec_sha256'], str, 'spec_sha256'),
        need(values['onnx_sha256'], str, 'onnx_sha256'),
        files,
        float(values['seconds']),
    )


def _read(path: Path, command: str) -> dict[str, Any]:
    try:
        values = parse_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise _damaged(path, error, command) from error
    if not isinstance(values, dict) or values.get('format') != FORMAT:
        raise EngineError(
            f'{path} is not in the format {FORMAT!r}: another version of vla_cache_ros wrote it. '
            f'Rebuild the engine with: {command}'
        )
    return values


def _damaged(path: Path, error: Exception, command: str) -> EngineError:
    return EngineError(
        f'{path} is damaged ({type(error).__name__}: {error}). Rebuild the engine with: {command}'
    )


def _text(value: object) -> str:
    if isinstance(value, tuple):
        return ', '.join(str(item) for item in value) or 'none'
    return 'none' if value is None else str(value) or 'an unknown one'
