"""Tensors in files: names, shapes and types from the headers, values memory-mapped when asked for.

Opening a file checks that it is whole and holds tensors alone; no value is read before `read`.
"""

import functools
import hashlib
import re
import zipfile
from collections.abc import Iterable, Mapping
from math import prod
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from vla_cache_ros.core.errors import CheckpointError
from vla_cache_ros.core.json_text import need, parse_json, parse_object

LFS_POINTER = b'version https://git-lfs.github.com/spec/'
ZIP_START = b'PK\x03\x04'
PICKLE_START = b'\x80'
NO_MEMORY = 'Cannot allocate memory'  # strerror(ENOMEM), as torch quotes it
HEADER_LIMIT_BYTES = 100_000_000  # of the safetensors format

# Type names in a safetensors header -> torch's.
SAFETENSORS_DTYPES = {
    'F64': torch.float64,
    'F32': torch.float32,
    'F16': torch.float16,
    'BF16': torch.bfloat16,
    'F8_E4M3': torch.float8_e4m3fn,
    'F8_E4M3FNUZ': torch.float8_e4m3fnuz,
    'F8_E5M2': torch.float8_e5m2,
    'F8_E5M2FNUZ': torch.float8_e5m2fnuz,
    'F8_E8M0': torch.float8_e8m0fnu,
    'I64': torch.int64,
    'I32': torch.int32,
    'I16': torch.int16,
    'I8': torch.int8,
    'U8': torch.uint8,
    'BOOL': torch.bool,
}
FINGERPRINT_SAMPLES = 64  # of each file
FINGERPRINT_SAMPLE_BYTES = 1 << 16
LOADABLE = (torch.float32, torch.float16, torch.bfloat16)

# Names that only quantised checkpoints have: bitsandbytes, GPTQ and AWQ.
QUANTISED_NAME = re.compile(
    r'\.(absmax|nested_absmax|quant_map|nested_quant_map|quant_state\..+|SCB|weight_format'
    r'|qweight|qzeros|g_idx)$'
)


class TensorFile(Protocol):
    """Tensors by name, read one at a time."""

    @property
    def paths(self) -> tuple[Path, ...]:
        """The files that are behind it."""
        ...

    def names(self) -> tuple[str, ...]:
        """Names of all tensors."""
        ...

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of one tensor, from the header."""
        ...

    def dtype(self, name: str) -> torch.dtype:
        """Element type of one tensor, from the header."""
        ...

    def read(self, name: str) -> Tensor:
        """One tensor on the CPU, memory-mapped: its pages are read as they are used."""
        ...


class SafetensorsFile:
    """One safetensors file: 8 bytes of header length, a JSON header, the values."""

    def __init__(self, path: Path) -> None:
        """Read and check the header.

        Raises:
            CheckpointError: The file is missing, truncated, damaged or of another kind.
        """
        self.paths: tuple[Path, ...] = (path,)
        self._header = _safetensors_header(path)

    def names(self) -> tuple[str, ...]:
        """Names of all tensors."""
        return tuple(self._header)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of one tensor."""
        return tuple(self._header[name]['shape'])

    def dtype(self, name: str) -> torch.dtype:
        """Element type of one tensor."""
        return SAFETENSORS_DTYPES[self._header[name]['dtype']]

    def read(self, name: str) -> Tensor:
        """One tensor, memory-mapped."""
        try:
            return self._mapped.get_tensor(name)
        except SafetensorError as error:
            raise CheckpointError(
                f'{self.paths[0]} is damaged ({error}); copy it again.'
            ) from error

    @functools.cached_property
    def _mapped(self) -> Any:
        return safe_open(self.paths[0], framework='pt', device='cpu')


class TorchFile:
    """One torch .pt file: nested dictionaries of tensors, their names joined by dots."""

    def __init__(self, path: Path, *, key: str = '', strip: str = '') -> None:
        """Map the file; only its table of contents is read.

        Args:
            path: The file.
            key: The entry of the outermost dictionary that holds the tensors; '' is all of it.
            strip: A prefix of every name that is left out, such as a data-parallel 'module.'.

        Raises:
            CheckpointError: The file is missing, truncated or damaged, holds more than tensors,
                or cannot be memory-mapped.
        """
        self.paths: tuple[Path, ...] = (path,)
        content = _load_mapped(path)
        if key:
            if key not in content:
                raise CheckpointError(
                    f'{path} has no entry {key!r}; it holds: {", ".join(map(str, content))}. '
                    f'A checkpoint of this format is saved as {{{key!r}: tensors by name}}.'
                )
            content = content[key]
        self._tensors = {
            name.removeprefix(strip): tensor for name, tensor in _flatten(content, path)
        }

    def names(self) -> tuple[str, ...]:
        """Names of all tensors."""
        return tuple(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of one tensor."""
        return tuple(self._tensors[name].shape)

    def dtype(self, name: str) -> torch.dtype:
        """Element type of one tensor."""
        return self._tensors[name].dtype

    def read(self, name: str) -> Tensor:
        """One tensor, memory-mapped."""
        return self._tensors[name]


class JoinedFiles:
    """Several files as one; the names of each may get a prefix."""

    def __init__(self, parts: Iterable[tuple[str, TensorFile]]) -> None:
        """Join them.

        Args:
            parts: Prefix of the names, and file.

        Raises:
            CheckpointError: Two files hold a tensor of the same name.
        """
        self._places: dict[str, tuple[TensorFile, str]] = {}
        paths: list[Path] = []
        for prefix, file in parts:
            paths += file.paths
            for name in file.names():
                if prefix + name in self._places:
                    first = self._places[prefix + name][0].paths[0]
                    raise CheckpointError(
                        f'tensor {prefix + name} is in {first} and again in {file.paths[0]}; '
                        'files of two checkpoints are mixed in this folder: keep those of one.'
                    )
                self._places[prefix + name] = (file, name)
        self.paths: tuple[Path, ...] = tuple(paths)

    def names(self) -> tuple[str, ...]:
        """Names of all tensors."""
        return tuple(self._places)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of one tensor."""
        file, inner = self._places[name]
        return file.shape(inner)

    def dtype(self, name: str) -> torch.dtype:
        """Element type of one tensor."""
        file, inner = self._places[name]
        return file.dtype(inner)

    def read(self, name: str) -> Tensor:
        """One tensor, memory-mapped."""
        file, inner = self._places[name]
        return file.read(inner)


def open_safetensors(folder: Path) -> TensorFile:
    """Open a folder's safetensors: one file, or the shards that its index lists.

    Raises:
        CheckpointError: A shard or the index is missing, a file is truncated or damaged, or the
            index names tensors that its shards do not hold.
    """
    index = folder / 'model.safetensors.index.json'
    single = folder / 'model.safetensors'
    if not index.is_file():
        if not single.is_file() and any(folder.glob('model-*-of-*.safetensors')):
            raise CheckpointError(
                f'{index} is missing, but shards are there; copy it again from where the '
                'checkpoint came from: it says which shard holds which tensor.'
            )
        return SafetensorsFile(single)
    weight_map = read_json(index).get('weight_map')
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f'{index} has no weight_map; copy the file again.')
    if not all(
        isinstance(shard, str) and Path(shard).name == shard for shard in weight_map.values()
    ):
        raise CheckpointError(
            f'{index} lists shards that are no names of files beside it; copy the file again.'
        )
    shards = sorted(set(weight_map.values()))
    missing = [shard for shard in shards if not (folder / shard).is_file()]
    if missing:
        raise CheckpointError(
            f'{len(missing)} of {len(shards)} shards that {index} lists are missing: '
            f'{", ".join(missing)}; copy them into {folder}.'
        )
    files = {shard: SafetensorsFile(folder / shard) for shard in shards}
    held = {shard: set(file.names()) for shard, file in files.items()}
    absent = [name for name, shard in weight_map.items() if name not in held[shard]]
    if absent:
        raise CheckpointError(
            f'{index} lists {len(absent)} tensors that their shards do not hold, first '
            f'{absent[0]} in {weight_map[absent[0]]}; index and shards are of two checkpoints: '
            'copy all of them again.'
        )
    return JoinedFiles(('', file) for file in files.values())


def refuse_quantised(files: TensorFile) -> None:
    """Refuse tensors that are not plain fp32, fp16 or bf16 weights.

    Raises:
        CheckpointError: It names them.
    """
    float8 = [name for name in files.names() if str(files.dtype(name)).startswith('torch.float8')]
    if float8:
        raise CheckpointError(
            f'{len(float8)} tensors are fp8: '
            + _listed(f'{name} ({str(files.dtype(name))[6:]})' for name in float8)
            + '. Valid: fp32, fp16 and bf16. fp8 weights mean nothing without the scales they '
            'were quantised with: save the checkpoint in bf16 where it was made '
            '(model.to(torch.bfloat16).save_pretrained(...)).'
        )
    quantised = [name for name in files.names() if QUANTISED_NAME.search(name)]
    if quantised:
        raise CheckpointError(
            f'the weights are quantised (bitsandbytes, GPTQ or AWQ): {_listed(quantised)}. '
            'Valid: fp32, fp16 and bf16. Save the checkpoint without quantisation, e.g. '
            'model.dequantize() or from_pretrained(..., torch_dtype=torch.bfloat16) before '
            'save_pretrained(...).'
        )


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file that holds an object.

    Raises:
        CheckpointError: It is missing, unreadable or something else.
    """
    try:
        content = parse_json(path.read_bytes())
    except FileNotFoundError:
        raise CheckpointError(f'{path} is missing; copy the checkpoint folder again.') from None
    except ValueError as error:
        _refuse_lfs_pointer(path)
        raise CheckpointError(f'{path} is not readable JSON: {error}') from error
    if not isinstance(content, dict):
        raise CheckpointError(f'{path} holds no JSON object; copy the file again.')
    return content


def fingerprint(paths: Iterable[Path]) -> str:
    """Name weights without reading them all: a hash of names, sizes and samples of each file.

    The samples lie evenly over a file, begin and end included: fine-tuning often leaves the first
    and last tensors as they are (embeddings, norms) and changes what lies between. A 15 GB
    checkpoint is named within milliseconds.
    """
    digest = hashlib.sha256()
    for path in sorted(paths):
        size = path.stat().st_size
        digest.update(f'{path.name} {size} '.encode())
        last = max(0, size - FINGERPRINT_SAMPLE_BYTES)
        with path.open('rb') as file:
            for index in range(FINGERPRINT_SAMPLES):
                file.seek(index * last // (FINGERPRINT_SAMPLES - 1))
                digest.update(file.read(FINGERPRINT_SAMPLE_BYTES))
    return digest.hexdigest()


def _safetensors_header(path: Path) -> dict[str, dict[str, Any]]:
    size = _file_size(path)
    _refuse_lfs_pointer(path)
    with path.open('rb') as file:
        length = int.from_bytes(file.read(8), 'little')
        if size < 8 or length > HEADER_LIMIT_BYTES:
            raise CheckpointError(f'{path} is not a safetensors file; copy it again.')
        if 8 + length > size:
            raise _truncated(path, size, 8 + length)
        try:
            header = parse_object(file.read(length))
            header.pop('__metadata__', None)
            for entry in header.values():
                _check_types(need(entry, dict, 'an entry'))
            end = (
                8
                + length
                + max((entry['data_offsets'][1] for entry in header.values()), default=0)
            )
        except (ValueError, KeyError) as error:
            raise CheckpointError(
                f'{path} has a damaged header ({error}); copy it again.'
            ) from error
    if end != size:
        raise _truncated(path, size, end)
    for name, entry in header.items():
        _check_entry(path, name, entry)
    return header


def _check_types(entry: Mapping[str, Any]) -> None:
    """Check that a header's entry is of the kinds that its format says.

    Raises:
        ValueError: One is not.
        KeyError: One is missing.
    """
    need(entry['dtype'], str, 'dtype')
    numbers = [*need(entry['shape'], list, 'shape'), *need(entry['data_offsets'], list, 'offsets')]
    if len(entry['data_offsets']) != 2 or not all(need(n, int, 'a size') >= 0 for n in numbers):
        raise ValueError('a size is negative, or there are not two offsets')


def _check_entry(path: Path, name: str, entry: Mapping[str, Any]) -> None:
    dtype = SAFETENSORS_DTYPES.get(entry['dtype'])
    if dtype is None:
        raise CheckpointError(
            f'{path}: tensor {name} is of type {entry["dtype"]}; valid: fp32 (F32), fp16 (F16) '
            'and bf16 (BF16). Save the checkpoint in bf16 where it was made.'
        )
    start, stop = entry['data_offsets']
    if stop - start != prod(entry['shape']) * dtype.itemsize:
        raise CheckpointError(
            f'{path}: tensor {name} {entry["shape"]} {entry["dtype"]} takes {stop - start} bytes, '
            'which is not its size; the header is damaged: copy the file again.'
        )


def _load_mapped(path: Path) -> dict[str, Any]:
    """A .pt file's dictionary, its tensors mapped; never executes anything that is in the file."""
    size = _file_size(path)
    _refuse_lfs_pointer(path)
    with path.open('rb') as file:
        start = file.read(4)
    if start != ZIP_START:
        if start[:1] == PICKLE_START:
            raise CheckpointError(
                f'{path} is in the file format of torch before 1.6, which cannot be '
                f'memory-mapped; write it anew: python -c "import torch; '
                f"torch.save(torch.load('{path}', map_location='cpu', weights_only=True), "
                f"'{path}')\""
            )
        raise CheckpointError(f'{path} is not a torch file; copy it again.')
    if not zipfile.is_zipfile(path):
        raise CheckpointError(
            f'{path} is truncated: {size} bytes are there, and the end of the archive is not '
            'among them; copy it again.'
        )
    try:
        forbidden = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        if forbidden:
            raise CheckpointError(
                f'{path} asks for more than tensors: {_listed(sorted(forbidden))}. Loading it '
                'would run code from the file; such files are never executed here. Valid: a '
                'dictionary of tensors. Where you trust its origin, load it there and save '
                'model.state_dict() alone.'
            )
        content = torch.load(path, map_location='cpu', mmap=True, weights_only=True)
    except CheckpointError:
        raise
    except Exception as error:  # torch raises whatever its reader meets in a damaged archive
        if NO_MEMORY in str(error):
            raise CheckpointError(
                f'{path} ({size / 1e9:.1f} GB) cannot be mapped: this kernel promises no more '
                'than memory and swap hold. Allow it with: sysctl vm.overcommit_memory=1 (only '
                'the tensors in use take memory), or add swap.'
            ) from error
        raise CheckpointError(
            f'{path} is damaged ({(str(error) or type(error).__name__).splitlines()[0]}); copy it '
            'again.'
        ) from error
    if not isinstance(content, dict):
        raise CheckpointError(
            f'{path} holds a {type(content).__name__}; valid: a dictionary of tensors, as '
            'torch.save(model.state_dict(), path) writes it.'
        )
    return content


def _flatten(content: Any, path: Path, prefix: str = '') -> Iterable[tuple[str, Tensor]]:
    for key, value in content.items():
        name = f'{prefix}{key}'
        if isinstance(value, Tensor):
            yield name, value
        elif isinstance(value, dict):
            yield from _flatten(value, path, f'{name}.')
        else:
            raise CheckpointError(
                f'{path}: {name} is a {type(value).__name__}; valid: tensors, and dictionaries '
                'of tensors.'
            )


def _file_size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        raise CheckpointError(f'{path} is missing; copy the checkpoint folder again.') from None


def _refuse_lfs_pointer(path: Path) -> None:
    with path.open('rb') as file:
        if file.read(len(LFS_POINTER)) == LFS_POINTER:
            raise CheckpointError(
                f'{path} is a git-lfs pointer, not the file itself; get the content with: '
                f'git -C {path.parent} lfs pull'
            )


def _truncated(path: Path, size: int, expected: int) -> CheckpointError:
    return CheckpointError(
        f'{path} is {"truncated" if size < expected else "damaged"}: its header speaks of '
        f'{expected} bytes, the file has {size}; copy it again.'
    )


def _listed(names: Iterable[str], limit: int = 8) -> str:
    names = list(names)
    more = f' and {len(names) - limit} more' if len(names) > limit else ''
    return ', '.join(names[:limit]) + more
