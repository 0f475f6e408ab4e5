"""Shape of a VLA of the OpenVLA family."""

from dataclasses import dataclass

from vla_cache_models.decoder import DecoderConfig
from vla_cache_models.prismatic.towers import TowerConfig

LLAMA_2_7B = DecoderConfig(width=4096, layers=32, heads=32, kv_heads=32, mlp_width=11008)
"""Llama-2-7B's decoder, with its own norm epsilon of 1e-5."""

DINOSIGLIP_224 = (
    TowerConfig('vit_large_patch14_reg4_dinov2.lvd142m', 224),
    TowerConfig('vit_so400m_patch14_siglip_224', 224),
)
"""DINOv2 ViT-L/14 with registers and SigLIP SO400M/14, the towers of all three models."""


@dataclass(frozen=True)
class PrismaticConfig:
    """Towers, projector and decoder; the heads belong to each model.

    Attributes:
        towers: The vision towers, in the order in which their channels are concatenated.
        decoder: The decoder.
        vocabulary_size: Rows of the text embedding, padding included.
        pad_to_multiple_of: The vocabulary was padded up to a multiple of this.
        num_action_bins: Edges of the action bins; OpenVLA alone uses them.
    """

    towers: tuple[TowerConfig, ...] = DINOSIGLIP_224
    decoder: DecoderConfig = LLAMA_2_7B
    vocabulary_size: int = 32_064
    pad_to_multiple_of: int = 64
    num_action_bins: int = 256
