"""OpenVLA-OFT: a whole chunk from one bidirectional pass (arXiv:2502.19645)."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vla_cache_models.prismatic.config import PrismaticConfig
from vla_cache_models.prismatic.embodiment import libero_state
from vla_cache_models.prismatic.layouts import oft_layout, oft_readout
from vla_cache_models.prismatic.network import PrismaticVlm
from vla_cache_models.prismatic.oft_head import L1ActionHead, ProprioceptionProjector
from vla_cache_models.prismatic.vla import Interface, PrismaticVla
from vla_cache_models.vla import Inputs
from vla_cache_ros.core.errors import CheckpointError
from vla_cache_ros.core.kv_cache import KVCache
from vla_cache_ros.core.layout import TokenLayout
from vla_cache_ros.core.types import Proprioception

CHUNK_SIZE = 8
ACTION_SIZE = 7
PROPRIOCEPTION_SIZE = 8
STOP_ID = 2


class OpenVlaOftNetwork(PrismaticVlm):
    """The vision-language model with proprioception and the L1 head."""

    def __init__(self, config: PrismaticConfig) -> None:
        """Build the network."""
        super().__init__(config)
        width = config.decoder.width
        self.proprioception_projector = ProprioceptionProjector(PROPRIOCEPTION_SIZE, width)
        self.action_head = L1ActionHead(width, CHUNK_SIZE, ACTION_SIZE)

    def read_actions(self, hidden: Tensor) -> Tensor:
        """Normalised chunk [1, T, A] from the read-out rows [1, T A, D]."""
        return self.action_head(self.decoder.norm(hidden))


class OpenVlaOft(PrismaticVla):
    """OpenVLA-OFT behind `VlaPolicy`, with the embodiment's first two cameras."""

    name = 'openvla_oft'
    published_preset = 'paper'
    num_cameras = 2
    chunk_size = CHUNK_SIZE
    execute_steps = CHUNK_SIZE

    def __init__(self, network: OpenVlaOftNetwork, interface: Interface) -> None:
        """Wire a loaded network.

        Raises:
            CheckpointError: The statistics lack proprioception.
        """
        if interface.norm_stats.proprioception is None:
            raise CheckpointError(
                f'norm_stats of {interface.norm_stats.key!r} hold no proprioception (key '
                "'proprio'), which OpenVLA-OFT takes; use the dataset_statistics.json written "
                'beside the fine-tuned weights.'
            )
        super().__init__(network, interface)
        self._proprioception = interface.norm_stats.proprioception
        self._oft: OpenVlaOftNetwork = network
        self._stop = torch.tensor([[STOP_ID]], device=self._device)
        slots = (1, CHUNK_SIZE * ACTION_SIZE, network.config.decoder.width)
        self._slots = torch.zeros(slots, device=self._device, dtype=self._dtype)

    def decode_actions(
        self, hidden: Tensor, inputs: Inputs, cache: KVCache
    ) -> NDArray[np.float32]:
        """The chunk [8, 7]."""
        # Nothing behind the vision tokens is ever dropped: count from the end.
        behind = hidden.shape[1] - inputs.prompt.layout.num_tokens
        start, stop = oft_readout(inputs.prompt.layout)
        chunk = self._oft.read_actions(hidden[:, start + behind : stop + behind])
        return self._actions(chunk[0].float().cpu().numpy())

    def _layout_of(self, prompt_length: int) -> TokenLayout:
        return oft_layout(
            self.cameras, self._network.vision.grid, prompt_length, CHUNK_SIZE * ACTION_SIZE
        )

    def _between(self, inputs: Inputs) -> tuple[Tensor, ...]:
        assert inputs.proprioception is not None
        return (self._oft.proprioception_projector(inputs.proprioception)[:, None],)

    def _closing(self) -> tuple[Tensor, ...]:
        return self._slots, self._network.text_embedding(self._stop)

    def _normalise(self, state: Proprioception) -> Tensor:
        normalised = self._proprioception.normalise(libero_state(state))
        return torch.from_numpy(normalised)[None].to(self._device, self._dtype)
