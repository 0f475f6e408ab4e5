"""OpenVLA: seven action tokens, decoded greedily one by one (arXiv:2406.09246)."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vla_cache_models.attendance import one_row
from vla_cache_models.prismatic.action_tokens import ActionTokens
from vla_cache_models.prismatic.config import PrismaticConfig
from vla_cache_models.prismatic.layouts import openvla_layout
from vla_cache_models.prismatic.network import PrismaticVlm
from vla_cache_models.prismatic.vla import Interface, PrismaticVla
from vla_cache_models.vla import Inputs
from vla_cache_ros.core.kv_cache import KVCache
from vla_cache_ros.core.layout import TokenLayout

ACTION_SIZE = 7


class OpenVlaNetwork(PrismaticVlm):
    """The vision-language model with its language head."""

    def __init__(self, config: PrismaticConfig) -> None:
        """Build the network."""
        super().__init__(config)
        self.lm_head = nn.Linear(config.decoder.width, config.vocabulary_size, bias=False)

    def next_token(self, hidden: Tensor) -> Tensor:
        """The most likely next id, int64 [1, 1], from the last row's hidden state [1, 1, D]."""
        return self.lm_head(self.decoder.norm(hidden)).argmax(dim=-1)


class OpenVla(PrismaticVla):
    """OpenVLA behind `VlaPolicy`.

    The prompt is the prefill that the cache serves. The generated tokens' K/V lie in the slots
    behind it, where the next step overwrites them.
    """

    name = 'openvla'
    published_preset = 'paper_openvla'
    chunk_size = 1
    execute_steps = 1
    generates = True
    num_generated = ACTION_SIZE

    def __init__(self, network: OpenVlaNetwork, interface: Interface) -> None:
        """Wire a loaded network; it sees the embodiment's first camera."""
        super().__init__(network, interface)
        config = network.config
        self._tokens = ActionTokens(
            config.vocabulary_size, config.pad_to_multiple_of, config.num_action_bins
        )
        self._language: OpenVlaNetwork = network

    def decode_actions(
        self, hidden: Tensor, inputs: Inputs, cache: KVCache
    ) -> NDArray[np.float32]:
        """Generate the action tokens; one action [1, 7]."""
        network, slot = self._language, inputs.prompt.layout.num_tokens
        ids = [network.next_token(hidden[:, -1:])]
        for position in range(slot, slot + ACTION_SIZE - 1):
            x = network.decoder(
                network.text_embedding(ids[-1]),
                torch.tensor([position], device=self._device),
                one_row(position),
                cache,
            )
            ids.append(network.next_token(x))
        return self._actions(self._tokens.decode(torch.cat(ids, dim=1).cpu().numpy()))

    def _layout_of(self, prompt_length: int) -> TokenLayout:
        return openvla_layout(self.cameras, self._network.vision.grid, prompt_length)
