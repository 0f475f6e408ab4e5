"""What a checkpoint folder holds and whether it loads, from headers alone.

The network is built on the meta device, so a report of seven billion parameters takes no memory.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from vla_cache_models.decoder import DecoderConfig
from vla_cache_models.loading.formats import (
    CONFIG_NAME,
    PrismaticCheckpoint,
    detect_format,
    open_checkpoint,
)
from vla_cache_models.loading.load import LoadPlan, plan_load
from vla_cache_models.loading.names import NameTable, Rename
from vla_cache_models.loading.tensor_files import TensorFile, open_safetensors, read_json
from vla_cache_ros.core.errors import CheckpointError
from vla_cache_ros.core.layout import TokenLayout

Found = TypeVar('Found')

EXAMPLE_INSTRUCTION = 'pick up the milk and place it in the basket'
OWN_NAMES = NameTable('small', (Rename('{rest}', '{rest}'),))


@dataclass(frozen=True)
class TokenSpan:
    """Tokens of one kind.

    Attributes:
        name: Which ones.
        start: First slot.
        stop: One past the last slot.
    """

    name: str
    start: int
    stop: int


@dataclass(frozen=True)
class CheckpointReport:
    """What is in a folder.

    Attributes:
        folder: Where it is.
        format: 'small', 'openvla', 'openvla_oft' or 'cogact'.
        files: Name -> size in bytes, of the files that hold weights.
        architecture: Part -> its shape in words.
        parameters: Part -> how many of its numbers the network needs.
        dtypes: Element type -> how many tensors of the files have it.
        tokens: Spans of the sequence for EXAMPLE_INSTRUCTION, in slot order.
        unnorm_keys: Datasets whose statistics the folder holds.
        problems: What keeps it from loading, besides single tensors.
        missing: Tensors that the network needs and the files lack, under the files' names.
        unexpected: Tensors that the network has no place for.
        misshaped: Tensors of another shape or type, one line each.
        unused: Tensor -> why the network leaves it in the file.
    """

    folder: Path
    format: str
    files: Mapping[str, int] = field(default_factory=dict)
    architecture: Mapping[str, str] = field(default_factory=dict)
    parameters: Mapping[str, int] = field(default_factory=dict)
    dtypes: Mapping[str, int] = field(default_factory=dict)
    tokens: tuple[TokenSpan, ...] = ()
    unnorm_keys: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    misshaped: tuple[str, ...] = ()
    unused: Mapping[str, str] = field(default_factory=dict)

    @property
    def loads(self) -> bool:
        """Whether nothing keeps it from loading."""
        return not (self.problems or self.missing or self.unexpected or self.misshaped)

    @property
    def total_parameters(self) -> int:
        """Numbers of the whole network."""
        return sum(self.parameters.values())

    @property
    def total_bytes(self) -> int:
        """Size of the files that hold weights."""
        return sum(self.files.values())

    def to_json(self) -> dict[str, Any]:
        """Everything, as json.dumps takes it."""
        return {
            **asdict(self),
            'folder': str(self.folder),
            'loads': self.loads,
            'total_parameters': self.total_parameters,
            'total_bytes': self.total_bytes,
        }


def inspect_checkpoint(folder: Path) -> CheckpointReport:
    """Look at a checkpoint without loading it.

    Args:
        folder: In one of the layouts of `vla_cache_models.loading.formats`.

    Raises:
        CheckpointError: The folder has none of these layouts. What else is wrong with it stands
            in the report.
    """
    name = detect_format(folder)
    try:
        return _inspect_small(folder) if name == 'small' else _inspect_prismatic(folder)
    except CheckpointError as error:
        return CheckpointReport(folder, name, files=_weight_files(folder), problems=(str(error),))


def _inspect_small(folder: Path) -> CheckpointReport:
    from vla_cache_models.small.checkpoint import read_architecture
    from vla_cache_models.small.network import ParallelVla

    config = read_architecture(folder, read_json(folder / CONFIG_NAME))
    with torch.device('meta'):
        network = ParallelVla(config)
    files = open_safetensors(folder)
    patches = config.image_size_px // config.patch_size_px
    return _report(
        folder,
        'small',
        network,
        files,
        plan_load(network, files, OWN_NAMES),
        architecture={
            'cameras': ', '.join(config.cameras),
            'vision': f'{config.image_size_px} px, {patches} x {patches} patches; '
            + _stack_in_words(config.tower),
            'decoder': _stack_in_words(config.decoder),
            'vocabulary': f'{config.vocabulary_size} words',
            'actions': f'{config.chunk_size} x {config.action_size}',
        },
        layout=config.layout(config.text_tokens),
    )


def _inspect_prismatic(folder: Path) -> CheckpointReport:
    from vla_cache_models.prismatic import openvla
    from vla_cache_models.prismatic.build import FULL_DIT, empty_network, image_transform
    from vla_cache_models.prismatic.norm_stats import read_norm_stats

    opened = open_checkpoint(folder)
    problems: list[str] = []
    network = empty_network(opened.format, opened.config, opened.dit or FULL_DIT)
    layout = _prismatic_layout(opened, network.vision.grid, problems)
    _attempt(problems, lambda: image_transform(opened))
    stats = _attempt(problems, lambda: read_norm_stats(opened.raw_config, folder)) or {}
    if opened.format == 'openvla_oft' and not any(one.proprioception for one in stats.values()):
        problems.append(
            "no statistics of proprioception ('proprio') in dataset_statistics.json, which "
            'OpenVLA-OFT takes; copy the file that was written beside the fine-tuned weights.'
        )
    config = opened.config
    grid, width = network.vision.grid, network.vision.width
    return _report(
        folder,
        opened.format,
        network,
        opened.files,
        plan_load(network, opened.files, opened.table),
        architecture={
            'vision': ' and '.join(tower.timm_id for tower in config.towers)
            + f', {config.towers[0].image_size_px} px, {grid} x {grid} patches, width {width}',
            'decoder': _stack_in_words(config.decoder),
            'vocabulary': f'{config.vocabulary_size} rows, padded to a multiple of '
            f'{config.pad_to_multiple_of}',
            'actions': _actions_in_words(opened),
        },
        layout=layout,
        generated=openvla.ACTION_SIZE if opened.format == 'openvla' else 0,
        unnorm_keys=tuple(stats),
        problems=tuple(problems),
    )


def _report(
    folder: Path,
    name: str,
    network: nn.Module,
    files: TensorFile,
    plan: LoadPlan,
    *,
    architecture: Mapping[str, str],
    layout: TokenLayout,
    generated: int = 0,
    unnorm_keys: tuple[str, ...] = (),
    problems: tuple[str, ...] = (),
) -> CheckpointReport:
    parameters: Counter[str] = Counter()
    for key, tensor in network.state_dict().items():
        parameters[key.partition('.')[0]] += tensor.numel()
    dtypes = Counter(str(files.dtype(key)).removeprefix('torch.') for key in files.names())
    return CheckpointReport(
        folder=folder,
        format=name,
        files={str(path.relative_to(folder)): path.stat().st_size for path in files.paths},
        architecture=architecture,
        parameters=dict(parameters),
        dtypes=dict(dtypes),
        tokens=tuple(_spans(layout, generated)),
        unnorm_keys=unnorm_keys,
        problems=problems,
        missing=plan.missing,
        unexpected=plan.unexpected,
        misshaped=plan.misshaped,
        unused=plan.unused,
    )


def _prismatic_layout(opened: PrismaticCheckpoint, grid: int, problems: list[str]) -> TokenLayout:
    """The layout of an example; without a tokenizer, of about its length."""
    from vla_cache_models.prismatic import layouts, openvla_oft
    from vla_cache_models.prismatic.build import model_kind
    from vla_cache_models.prismatic.prompt import LlamaPrompt, StandInTokenizer, TokenizerFile

    encode = _attempt(problems, lambda: TokenizerFile(opened.folder)) or StandInTokenizer()
    length = len(LlamaPrompt(encode, model_kind(opened.format).suffix)(EXAMPLE_INSTRUCTION))
    if opened.format == 'openvla_oft':
        slots = openvla_oft.CHUNK_SIZE * openvla_oft.ACTION_SIZE
        return layouts.oft_layout(('primary', 'wrist'), grid, length, slots)
    if opened.format == 'cogact':
        return layouts.cogact_layout(('primary',), grid, length)
    return layouts.openvla_layout(('primary',), grid, length)


def _attempt(problems: list[str], call: Callable[[], Found]) -> Found | None:
    """Call; what goes wrong with the checkpoint joins the problems."""
    try:
        return call()
    except CheckpointError as error:
        problems.append(str(error))
        return None


def _spans(layout: TokenLayout, generated: int) -> Iterable[TokenSpan]:
    spans = [TokenSpan('BOS', 0, layout.cameras[0].start)]
    spans += [TokenSpan(f'vision {span.name}', span.start, span.stop) for span in layout.cameras]
    spans += [
        TokenSpan('proprioception', layout.vision[1], layout.text[0]),
        TokenSpan('text', *layout.text),
        TokenSpan('padding', layout.text[1], layout.actions[0]),
        TokenSpan('actions', *layout.actions),
        TokenSpan('end', layout.actions[1], layout.num_tokens),
        TokenSpan('actions, generated', layout.num_tokens, layout.num_tokens + generated),
    ]
    return (span for span in spans if span.start < span.stop)


def _actions_in_words(opened: PrismaticCheckpoint) -> str:
    from vla_cache_models.prismatic import openvla, openvla_oft

    if opened.dit is not None:
        dit = opened.dit
        return (
            f'{dit.chunk_size} x {dit.action_size}, from a diffusion transformer: {dit.depth} '
            f'blocks, width {dit.width}, {dit.heads} heads'
        )
    if opened.format == 'openvla_oft':
        return f'{openvla_oft.CHUNK_SIZE} x {openvla_oft.ACTION_SIZE}, from an L1 head'
    return f'1 x {openvla.ACTION_SIZE}, one token of {opened.config.num_action_bins} bins each'


def _stack_in_words(stack: DecoderConfig) -> str:
    grouped = f' ({stack.kv_heads} for keys and values)' * (stack.kv_heads != stack.heads)
    return (
        f'{stack.layers} layers, width {stack.width}, {stack.heads} heads{grouped}, '
        f'MLP {stack.mlp_width}'
    )


def _weight_files(folder: Path) -> dict[str, int]:
    """Every file that may hold weights, where they cannot be opened."""
    paths = (*folder.glob('*.safetensors'), *folder.glob('*.pt'), *folder.glob('checkpoints/*.pt'))
    return {str(path.relative_to(folder)): path.stat().st_size for path in sorted(paths)}
