"""Weights of a network that was built on the meta device: planned first, then read, once.

The plan compares every name, shape and type with the files' headers and gathers all problems.
Only then is memory taken: each parameter once, on its device in its final type, filled tensor by
tensor from the mapped file. Besides the network, one tensor exists at a time.
"""

import fnmatch
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from types import MappingProxyType
from typing import TypeVar

import torch
from torch import Tensor, nn

from vla_cache_models.loading.names import NameTable, Unused
from vla_cache_models.loading.tensor_files import LOADABLE, TensorFile
from vla_cache_ros.core.errors import CheckpointError

Network = TypeVar('Network', bound=nn.Module)
Progress = Callable[[int, int], None]
"""Called with the bytes read so far and in all."""

DROPPED = "nothing reads it, the features are the second-to-last block's"
SEED_BYTES = 8
TOKEN_STD = 0.02


@dataclass(frozen=True)
class Copy:
    """One tensor of the files and the rows of ours that it fills.

    Attributes:
        theirs: Name in the files.
        ours: Name in the network.
        start: First row.
        stop: One past the last row; 0 for a tensor without rows.
    """

    theirs: str
    ours: str
    start: int
    stop: int


@dataclass(frozen=True)
class LoadPlan:
    """What goes where, and what does not fit.

    Attributes:
        copies: In the files' order.
        missing: Names in the file that the network needs and the files lack.
        unexpected: Names in the files that no rule knows or the network has no place for.
        misshaped: One line for each tensor of another shape or type than the network needs.
        unused: Name in the files -> why it stays there.
    """

    copies: tuple[Copy, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    misshaped: tuple[str, ...]
    unused: Mapping[str, str]

    @property
    def problems(self) -> tuple[str, ...]:
        """Every problem, one line each."""
        return (
            *(f'missing {name}' for name in self.missing),
            *(f'unexpected {name}' for name in self.unexpected),
            *self.misshaped,
        )


def plan_load(model: nn.Module, files: TensorFile, table: NameTable) -> LoadPlan:
    """Compare a network with the files' headers; reads no values.

    Args:
        model: The network, on any device; the meta device takes no memory.
        files: The checkpoint.
        table: Names of its format.
    """
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    dropped = _dropped(model)
    blocks: dict[str, list[str]] = {}
    unexpected: list[str] = []
    unused: dict[str, str] = {}
    for theirs in files.names():
        target = table.target(theirs)
        if isinstance(target, Unused):
            unused[theirs] = target.why
        elif target is None:
            unexpected.append(theirs)
        elif target.ours in expected:
            blocks.setdefault(target.ours, [''] * target.parts)[target.part] = theirs
        elif any(fnmatch.fnmatchcase(target.ours, pattern) for pattern in dropped):
            unused[theirs] = DROPPED
        else:
            unexpected.append(theirs)

    missing: list[str] = []
    misshaped: list[str] = []
    copies: list[Copy] = []
    for ours, shape in expected.items():
        sources = table.sources(ours) or (ours,)
        present = blocks.get(ours, [''] * len(sources))
        if not all(present):
            missing += [name for name, found in zip(sources, present, strict=True) if not found]
            continue
        found_problems = _compare(ours, shape, present, files)
        if found_problems:
            misshaped += found_problems
        else:
            copies += _stack(ours, present, files)
    # Disks read forward faster than back and forth.
    order = {name: index for index, name in enumerate(files.names())}
    copies.sort(key=lambda copy: order[copy.theirs])
    return LoadPlan(tuple(copies), tuple(missing), tuple(unexpected), tuple(misshaped), unused)


def load_weights(
    model: Network,
    files: TensorFile,
    table: NameTable,
    device: torch.device | str,
    dtype: torch.dtype,
    *,
    kept: Mapping[str, torch.dtype] = MappingProxyType({}),
    on_progress: Progress | None = None,
) -> Network:
    """Give a network on the meta device the weights of a checkpoint.

    Args:
        model: The network; its parameters are replaced.
        files: The checkpoint.
        table: Names of its format.
        device: Where the weights go.
        dtype: Their type there, whatever it is in the files.
        kept: Start of our names -> a type of their own, for parts that need another precision.
        on_progress: Called after each tensor.

    Returns:
        The same network, in eval mode and without gradients.

    Raises:
        CheckpointError: Tensors are missing, unexpected or mis-shaped; nothing was allocated.
    """
    plan = plan_load(model, files, table)
    if plan.problems:
        raise CheckpointError(_summary(plan.problems, files))
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    weights: dict[str, Tensor] = {}
    done = 0
    total = sum(_num_bytes(files, copy.theirs) for copy in plan.copies)
    for copy in plan.copies:
        if copy.ours not in weights:
            special = (kind for prefix, kind in kept.items() if copy.ours.startswith(prefix))
            weights[copy.ours] = torch.empty(
                shapes[copy.ours], dtype=next(special, dtype), device=device
            )
        rows = weights[copy.ours]
        if copy.stop:
            rows = rows[copy.start : copy.stop]
        rows.copy_(files.read(copy.theirs))
        done += _num_bytes(files, copy.theirs)
        if on_progress is not None:
            on_progress(done, total)
    return _adopt(model, weights)


def random_weights(
    model: Network, seed: int, device: torch.device | str, dtype: torch.dtype
) -> Network:
    """Give a network on the meta device seeded random weights, for timing without a checkpoint.

    Matrices and kernels: normal with deviation 1/sqrt(fan in), cut at two deviations, so that
    activations keep their scale through any depth; scales of norms 1, biases 0. A tensor's values
    depend on the seed, its name, its shape and the kind of device, on nothing else.

    Args:
        model: The network; its parameters are replaced.
        seed: Another seed, other weights.
        device: Where they go.
        dtype: Their type.

    Returns:
        The same network, in eval mode and without gradients.
    """
    weights = {
        name: _random(name, tensor.shape, seed, torch.device(device), dtype)
        for name, tensor in model.state_dict().items()
    }
    return _adopt(model, weights)


def _adopt(model: Network, weights: dict[str, Tensor]) -> Network:
    model.load_state_dict(weights, assign=True)
    return model.eval().requires_grad_(False)


def _dropped(model: nn.Module) -> tuple[str, ...]:
    """Patterns, in our names, of what the network's modules leave in the file on purpose."""
    return tuple(
        f'{prefix}.{pattern}' if prefix else pattern
        for prefix, module in model.named_modules()
        for pattern in getattr(module, 'unused_tensors', ())
    )


def _compare(
    ours: str, shape: tuple[int, ...], sources: Iterable[str], files: TensorFile
) -> list[str]:
    """Lines on what does not fit between our tensor and the file's ones it is stacked from."""
    sources = list(sources)
    wrong = [
        f'{name} is {_dtype_name(files.dtype(name))}, valid: fp32, fp16, bf16'
        for name in sources
        if files.dtype(name) not in LOADABLE
    ]
    if wrong:
        return wrong
    shapes = [files.shape(name) for name in sources]
    if len(sources) == 1:
        if shapes[0] != shape:
            return [f'{sources[0]} has shape {list(shapes[0])}, expected {list(shape)}']
        return []
    rows = sum(found[0] if found else 0 for found in shapes)
    if (rows, *shapes[0][1:]) == shape and len({found[1:] for found in shapes}) == 1:
        return []
    return [
        f'{", ".join(sources)} have shapes {", ".join(str(list(found)) for found in shapes)}, '
        f'expected {list(shape)} in all (here {ours})'
    ]


def _stack(ours: str, sources: Iterable[str], files: TensorFile) -> Iterator[Copy]:
    start = 0
    for theirs in sources:
        shape = files.shape(theirs)
        stop = start + shape[0] if shape else 0
        yield Copy(theirs, ours, start, stop)
        start = stop


def _random(
    name: str, shape: torch.Size, seed: int, device: torch.device, dtype: torch.dtype
) -> Tensor:
    weight = torch.empty(shape, dtype=dtype, device=device)
    if len(shape) < 2:
        return weight.zero_() if name.endswith('bias') else weight.fill_(1)
    digest = hashlib.sha256(f'{seed}:{name}'.encode()).digest()
    generator = torch.Generator(device).manual_seed(
        int.from_bytes(digest[:SEED_BYTES], 'little', signed=True)
    )
    # Learned tokens and positions are added to the input, not multiplied with it.
    added = name.endswith(('_token', 'pos_embed', 'positional_embedding'))
    std = TOKEN_STD if added else prod(shape[1:]) ** -0.5
    return weight.normal_(0, std, generator=generator).clamp_(-2 * std, 2 * std)


def _summary(problems: tuple[str, ...], files: TensorFile, limit: int = 8) -> str:
    shown = '; '.join(problems[:limit]) + ('; ...' if len(problems) > limit else '')
    return (
        f'{len(problems)} tensors in {files.paths[0].parent} do not fit the architecture: '
        f'{shown}. All of them: vla-cache inspect FOLDER.'
    )


def _num_bytes(files: TensorFile, name: str) -> int:
    return prod(files.shape(name)) * files.dtype(name).itemsize


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix('torch.')
