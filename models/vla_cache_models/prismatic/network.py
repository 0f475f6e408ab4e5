"""Towers, projector, text embedding and decoder: what the three models have in common."""

import torch.nn.functional as F
from torch import Tensor, nn

from vla_cache_models.decoder import Decoder
from vla_cache_models.prismatic.config import PrismaticConfig
from vla_cache_models.prismatic.towers import FusedTowers


class Projector(nn.Module):
    """Vision features -> tokens of the decoder.

    Fused towers: V -> 4V -> D -> D; one tower: V -> D -> D. Exact GELU between.
    """

    def __init__(self, vision_width: int, width: int, *, fused: bool) -> None:
        """Build the layers, named as in the checkpoints."""
        super().__init__()
        inner = 4 * vision_width if fused else width
        self.fc1 = nn.Linear(vision_width, inner)
        self.fc2 = nn.Linear(inner, width)
        self.fc3 = nn.Linear(width, width) if fused else None

    def forward(self, features: Tensor) -> Tensor:
        """Map [B, P, V] to [B, P, D]."""
        tokens = self.fc2(F.gelu(self.fc1(features)))
        return tokens if self.fc3 is None else self.fc3(F.gelu(tokens))


class PrismaticVlm(nn.Module):
    """The vision-language model."""

    def __init__(self, config: PrismaticConfig) -> None:
        """Build the network; under torch.device('meta') it takes no memory."""
        super().__init__()
        self.config = config
        width = config.decoder.width
        self.vision = FusedTowers(config.towers)
        self.projector = Projector(self.vision.width, width, fused=len(config.towers) > 1)
        self.text_embedding = nn.Embedding(config.vocabulary_size, width)
        self.decoder = Decoder(config.decoder)

    def embed_vision(self, pixels: Tensor) -> Tensor:
        """Vision tokens of all cameras, in slot order.

        Args:
            pixels: Normalised pictures of C cameras, the towers' channels stacked, [C, 3T, S, S].

        Returns:
            [1, C P, D].
        """
        return self.projector(self.vision(pixels)).flatten(0, 1)[None]
