"""Fused vision towers: several vision transformers on one image, features side by side.

Each tower of n blocks, for its own normalised copy x of the image:

    t_0     = [class and register tokens | patches(x)] + positions      [B, R + P, D]
    t_i     = block_i(t_{i-1}),  i = 1 .. n - 1                         the last block is left out
    output  = t_{n-1} without the R leading tokens, not normalised      [B, P, D]

and the towers' outputs are concatenated along the channels. This is what OpenVLA, OpenVLA-OFT and
CogACT were trained on (Prismatic VLMs, arXiv 2402.07865, section 3: features of the second-to-last
block). The transformers are timm's; what only its last block, norm, pooling and head would read is
dropped once a tower is built.
"""

import difflib
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vla_cache_models.prismatic.timm_import import import_timm
from vla_cache_ros.core.errors import ConfigError

UNUSED_TOWER_MODULES = ('norm', 'fc_norm', 'attn_pool', 'head')
"""Children of a timm transformer, besides its last block, that these features do not need."""


@dataclass(frozen=True)
class TowerConfig:
    """One vision transformer.

    Attributes:
        timm_id: Its name in timm, e.g. 'vit_so400m_patch14_siglip_224'.
        image_size_px: Side of the image it sees.
        depth: Number n of blocks, the unused last one included; None: the model's own. Less than
            that is for timing alone: a checkpoint fits its own depth.
        activation: timm's name of the MLPs' activation, e.g. 'quick_gelu'; None: the model's own.
    """

    timm_id: str
    image_size_px: int = 224
    depth: int | None = None
    activation: str | None = None

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            ConfigError: The image is empty or there is no second-to-last block.
        """
        if self.image_size_px < 1:
            raise ConfigError(f'image_size_px is {self.image_size_px}; it must be at least 1.')
        if self.depth is not None and self.depth < 2:
            raise ConfigError(
                f'depth is {self.depth}; at least 2 blocks are needed, since the features are '
                'those of the second-to-last one.'
            )


class FusedTowers(nn.Module):
    """The towers of one model, in the order of their channels."""

    def __init__(self, configs: tuple[TowerConfig, ...]) -> None:
        """Build the towers with timm's initial weights; on the meta device: without memory.

        Args:
            configs: One per tower; all of them must cut the image into the same patches.

        Raises:
            ConfigError: There is no tower, the patches differ, timm has no such model or
                activation, the model is no plain vision transformer, or timm is not installed.
        """
        super().__init__()
        if not configs:
            raise ConfigError('there is no vision tower; name at least one model of timm.')
        self.configs = configs
        self.towers = nn.ModuleList(_build_tower(config) for config in configs)
        cuts = [
            f'{config.image_size_px} px into patches of {tower.patch_embed.patch_size[0]} px'
            for config, tower in zip(configs, self._transformers, strict=True)
        ]
        if len(set(cuts)) > 1:
            described = '; '.join(
                f'{config.timm_id} cuts {cut}' for config, cut in zip(configs, cuts, strict=True)
            )
            raise ConfigError(
                f'fused towers must cut the image alike, but {described}. '
                'Choose models and image sizes that agree.'
            )

    @property
    def width(self) -> int:
        """Channels of a patch's features, over all towers."""
        return sum(tower.embed_dim for tower in self._transformers)

    @property
    def grid(self) -> int:
        """Patches along a side; the image has P = grid * grid."""
        return self._transformers[0].patch_embed.grid_size[0]

    @property
    def patch_size_px(self) -> int:
        """Side of a patch."""
        return self._transformers[0].patch_embed.patch_size[0]

    @property
    def unused_tensors(self) -> tuple[str, ...]:
        """Tensors that checkpoints hold and nothing reads: fnmatch patterns of names in here."""
        return tuple(
            f'towers.{index}.{child}.*'
            for index, tower in enumerate(self._transformers)
            for child in (f'blocks.{len(tower.blocks)}', *UNUSED_TOWER_MODULES)
        )

    def forward(self, pixels: Tensor) -> Tensor:
        """Compute the features of every patch.

        Args:
            pixels: Normalised images, one copy per tower, [B, 3 * towers, S, S].

        Returns:
            [B, P, width], patches row by row.
        """
        copies = pixels.split(3, dim=1)
        features = [
            tower.forward_features(copy)[:, tower.num_prefix_tokens :]
            for tower, copy in zip(self._transformers, copies, strict=True)
        ]
        return torch.cat(features, dim=-1)

    @property
    def _transformers(self) -> tuple[Any, ...]:
        return tuple(self.towers)  # for type checkers, timm's attributes are opaque


def _build_tower(config: TowerConfig) -> nn.Module:
    """Build a transformer and drop what comes after its second-to-last block."""
    timm = import_timm()
    if not timm.is_model(config.timm_id):
        similar = difflib.get_close_matches(config.timm_id, timm.list_models(), n=5, cutoff=0.4)
        raise ConfigError(
            f'timm {timm.__version__} has no model {config.timm_id!r}; similar ones: '
            f'{", ".join(similar) or "none"}. timm.list_models() lists all.'
        )
    try:
        tower = timm.create_model(
            config.timm_id,
            num_classes=0,
            img_size=config.image_size_px,
            act_layer=config.activation,  # None, here and below: the model's own
            depth=config.depth,
        )
    except KeyError as error:
        raise ConfigError(
            f'timm has no activation {config.activation!r} (for {config.timm_id}); it has gelu, '
            'gelu_tanh, quick_gelu, relu, silu and others, see timm.layers.'
        ) from error
    except TypeError as error:
        raise _not_a_transformer(config) from error
    if not isinstance(tower, timm.models.VisionTransformer):
        raise _not_a_transformer(config)
    patch_size_px = tower.patch_embed.patch_size[0]
    if config.image_size_px < patch_size_px:
        raise ConfigError(
            f'image_size_px is {config.image_size_px}, smaller than a patch of {patch_size_px} px '
            f'of {config.timm_id}.'
        )
    tower.prune_intermediate_layers([len(tower.blocks) - 2], prune_norm=True, prune_head=True)
    return tower


def _not_a_transformer(config: TowerConfig) -> ConfigError:
    return ConfigError(
        f'{config.timm_id} is no plain vision transformer (timm.models.VisionTransformer) that '
        'takes an image size and a depth; the towers of the OpenVLA family are.'
    )
