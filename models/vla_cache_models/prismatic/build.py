"""The three models by name: networks without memory, models around loaded ones, random weights."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

from vla_cache_models.loading.formats import PrismaticCheckpoint, open_checkpoint
from vla_cache_models.loading.load import Progress, load_weights, random_weights
from vla_cache_models.loading.tensor_files import fingerprint, read_json
from vla_cache_models.prismatic.cogact import CogAct, CogActNetwork
from vla_cache_models.prismatic.config import PrismaticConfig
from vla_cache_models.prismatic.dit import DIT_SIZES, DitConfig
from vla_cache_models.prismatic.embodiment import embodiment_for
from vla_cache_models.prismatic.network import PrismaticVlm
from vla_cache_models.prismatic.norm_stats import (
    Bounds,
    NormStats,
    choose_norm_stats,
    read_norm_stats,
)
from vla_cache_models.prismatic.openvla import OpenVla, OpenVlaNetwork
from vla_cache_models.prismatic.openvla_oft import (
    PROPRIOCEPTION_SIZE,
    OpenVlaOft,
    OpenVlaOftNetwork,
)
from vla_cache_models.prismatic.preprocessing import ImageTransform
from vla_cache_models.prismatic.prompt import (
    COGACT_SUFFIX,
    LlamaPrompt,
    StandInTokenizer,
    TokenizerFile,
)
from vla_cache_models.prismatic.vla import Interface, PrismaticVla
from vla_cache_ros.core.errors import CheckpointError, UnknownNameError


@dataclass(frozen=True)
class ModelKind:
    """One of the three models.

    Attributes:
        network: Builds its network.
        vla: Wires a loaded network to its interface.
        suffix: Ids that always end its prompt; empty: as LlamaPrompt does without.
        unknown_robot: Embodiment of datasets that EMBODIMENTS does not know.
        kept: Start of its parameters' names -> the type they keep whatever the rest is in.
    """

    network: Callable[[PrismaticConfig, DitConfig], PrismaticVlm]
    vla: Callable[..., PrismaticVla]
    suffix: tuple[int, ...] = ()
    unknown_robot: str = 'generic'
    kept: Mapping[str, torch.dtype] = field(default_factory=dict)


KINDS = {
    'openvla': ModelKind(lambda config, _: OpenVlaNetwork(config), OpenVla),
    'openvla_oft': ModelKind(
        lambda config, _: OpenVlaOftNetwork(config), OpenVlaOft, unknown_robot='finetuned'
    ),
    # Published with its diffusion transformer in float32 beside a bfloat16 language model.
    'cogact': ModelKind(
        CogActNetwork, CogAct, COGACT_SUFFIX, kept={'action_model.': torch.float32}
    ),
}
PREPROCESSOR_NAME = 'preprocessor_config.json'
FULL_DIT = DitConfig(*DIT_SIZES['B'])


def model_kind(name: str) -> ModelKind:
    """Look a model up.

    Raises:
        UnknownNameError: There is no such model.
    """
    if name not in KINDS:
        raise UnknownNameError('model', name, KINDS)
    return KINDS[name]


def empty_network(name: str, config: PrismaticConfig, dit: DitConfig = FULL_DIT) -> PrismaticVlm:
    """A network on the meta device: names and shapes, no memory.

    Args:
        name: One of KINDS.
        config: Towers, projector and decoder.
        dit: CogACT's diffusion transformer; the others have none.

    Raises:
        UnknownNameError: There is no such model.
    """
    kind = model_kind(name)
    with torch.device('meta'):
        return kind.network(config, dit)


def load_vla(
    folder: Path,
    *,
    unnorm_key: str = '',
    embodiment: str = '',
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = 'cpu',
    on_progress: Progress | None = None,
) -> PrismaticVla:
    """Load a checkpoint of a public layout; all that can be wrong is found before its weights.

    Args:
        folder: The checkpoint.
        unnorm_key: Dataset whose statistics scale the actions; empty where there is only one.
        embodiment: One of EMBODIMENTS; empty: by the dataset's key.
        dtype: Of the weights; CogACT's diffusion transformer stays float32, as published.
        device: Where it runs.
        on_progress: Called with the bytes read so far and in all.

    Raises:
        CheckpointError: A file is missing, damaged or does not fit.
        ConfigError: There are several datasets and no key was given.
        UnknownNameError: There is no such dataset or embodiment.
    """
    checkpoint = open_checkpoint(folder)
    kind = model_kind(checkpoint.format)
    stats = choose_norm_stats(read_norm_stats(checkpoint.raw_config, folder), unnorm_key)
    interface = Interface(
        prompt=LlamaPrompt(TokenizerFile(folder), kind.suffix),
        transform=image_transform(checkpoint),
        norm_stats=stats,
        embodiment=embodiment_for(stats.key, embodiment, kind.unknown_robot),
        weights_sha256=fingerprint(checkpoint.files.paths),
    )
    network = empty_network(checkpoint.format, checkpoint.config, checkpoint.dit or FULL_DIT)
    load_weights(
        network,
        checkpoint.files,
        checkpoint.table,
        device,
        dtype,
        kept=kind.kept,
        on_progress=on_progress,
    )
    return kind.vla(network, interface)


def random_vla(
    name: str,
    config: PrismaticConfig | None = None,
    *,
    layers: int | None = None,
    tower_depth: int | None = None,
    dit: DitConfig = FULL_DIT,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = 'cpu',
    seed: int = 0,
) -> PrismaticVla:
    """A model with seeded random weights, for timing without a checkpoint.

    Its actions mean nothing. Instructions go through a stand-in tokenizer, actions stay in
    [-1, 1], images are taken as LIBERO's.

    Args:
        name: One of KINDS.
        config: Shape; None: the published one.
        layers: Decoder layers; None: all.
        tower_depth: Blocks of each vision tower; None: all.
        dit: CogACT's diffusion transformer; its condition takes the decoder's width.
        dtype: Of the weights; CogACT's diffusion transformer stays float32, as published.
        device: Where it runs.
        seed: Another seed, other weights.

    Raises:
        UnknownNameError: There is no such model.
        ConfigError: The depths do not fit.
    """
    kind = model_kind(name)
    config = PrismaticConfig() if config is None else config
    if layers is not None:
        config = replace(config, decoder=replace(config.decoder, layers=layers))
    if tower_depth is not None:
        towers = tuple(replace(tower, depth=tower_depth) for tower in config.towers)
        config = replace(config, towers=towers)
    dit = replace(dit, condition_width=config.decoder.width)
    network = random_weights(empty_network(name, config, dit), seed, device, dtype)
    for prefix, kept in kind.kept.items():
        network.get_submodule(prefix.rstrip('.')).to(kept)
    interface = Interface(
        prompt=LlamaPrompt(StandInTokenizer(), kind.suffix),
        transform=replace(
            ImageTransform.dinosiglip_224(), image_size_px=config.towers[0].image_size_px
        ),
        norm_stats=NormStats('random', _unit_bounds(7), _unit_bounds(PROPRIOCEPTION_SIZE)),
        embodiment=embodiment_for('libero_random'),
        weights_sha256=f'random weights, seed {seed}',
    )
    return kind.vla(network, interface)


def image_transform(checkpoint: PrismaticCheckpoint) -> ImageTransform:
    """How a checkpoint's images are prepared.

    Raises:
        CheckpointError: The folder does not say it, or contradicts itself.
    """
    size = checkpoint.config.towers[0].image_size_px
    path = checkpoint.folder / PREPROCESSOR_NAME
    if path.is_file():
        transform = ImageTransform.from_preprocessor_config(read_json(path))
    elif checkpoint.format == 'cogact':  # whose public folders have no such file
        transform = replace(ImageTransform.dinosiglip_224(), image_size_px=size)
    else:
        raise CheckpointError(
            f'{path} is missing: it says how images are resized and normalised; copy it from the '
            'model that the checkpoint was fine-tuned from.'
        )
    if transform.image_size_px != size:
        raise CheckpointError(
            f'{path} makes pictures of {transform.image_size_px} px and the towers of config.json '
            f'see {size} px; the two files belong to different models.'
        )
    return transform


def _unit_bounds(size: int) -> Bounds:
    return Bounds(-np.ones(size), np.ones(size), np.ones(size, dtype=np.bool_))
