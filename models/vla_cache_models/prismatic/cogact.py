"""CogACT: one cognition feature conditions a diffusion transformer (arXiv:2411.19650).

The cache serves the vision-language pass; the diffusion transformer runs whole at every one of its
sampling steps.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vla_cache_models.prismatic.action_ensemble import AdaptiveEnsemble
from vla_cache_models.prismatic.config import PrismaticConfig
from vla_cache_models.prismatic.ddim import DdimSchedule, NoiseSource
from vla_cache_models.prismatic.dit import DiffusionTransformer, DitConfig, guided_noise
from vla_cache_models.prismatic.layouts import cogact_layout
from vla_cache_models.prismatic.network import PrismaticVlm
from vla_cache_models.prismatic.vla import Interface, PrismaticVla
from vla_cache_models.vla import Inputs
from vla_cache_ros.core.kv_cache import KVCache
from vla_cache_ros.core.layout import TokenLayout

GUIDANCE_SCALE = 1.5
GRIPPER_THRESHOLD = 0.5
NOISE_SEED = 0
"""Each episode starts with the same noise, so that dense and cached episodes are pairs."""


class CogActNetwork(PrismaticVlm):
    """The vision-language model with the diffusion transformer."""

    def __init__(self, config: PrismaticConfig, dit: DitConfig) -> None:
        """Build the network."""
        super().__init__(config)
        self.action_model = DiffusionTransformer(dit)

    def cognition(self, hidden: Tensor) -> Tensor:
        """The cognition feature [1, 1, D]: the last row behind the final norm."""
        return self.decoder.norm(hidden[:, -1:])

    def predict_noise(self, x: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        """The noise [1, T, A] in x [1, T, A] at diffusion step t [1], guided."""
        return guided_noise(self.action_model, x, t, condition, GUIDANCE_SCALE)


class CogAct(PrismaticVla):
    """CogACT behind `VlaPolicy`.

    Where the embodiment has an ensemble horizon, each call gives one action, the adaptive ensemble
    of what the last chunks predict for it; else the whole chunk.
    """

    name = 'cogact'
    published_preset = 'paper_openvla'

    def __init__(self, network: CogActNetwork, interface: Interface) -> None:
        """Wire a loaded network; it sees the embodiment's first camera."""
        super().__init__(network, interface)
        self._cogact: CogActNetwork = network
        self._schedule = DdimSchedule()
        self._noise = NoiseSource(NOISE_SEED)
        horizon = interface.embodiment.ensemble_horizon
        self._ensemble = None if horizon is None else AdaptiveEnsemble(horizon)
        chunk_size = network.action_model.config.chunk_size
        self.chunk_size = chunk_size if horizon is None else 1
        self.execute_steps = interface.embodiment.execute_steps if horizon is None else 1
        self.continues = horizon is None

    def decode_actions(
        self, hidden: Tensor, inputs: Inputs, cache: KVCache
    ) -> NDArray[np.float32]:
        """The chunk [T, 7], or the ensembled action [1, 7]; it continues what is committed."""
        dit = self._cogact.action_model
        condition = self._cogact.cognition(hidden).to(dit.positional_embedding.dtype)
        noise = self._noise.draw((1, dit.config.chunk_size, dit.config.action_size), self._device)
        chunk = self._schedule.sample(
            lambda x, t: self._cogact.predict_noise(x, t, condition),
            noise,
            self._known(inputs.committed),
        )
        normalised = chunk[0].float().clamp(-1, 1).cpu().numpy()
        normalised[:, 6] = normalised[:, 6] >= GRIPPER_THRESHOLD
        physical = self._interface.norm_stats.action.denormalise(normalised)
        if self._ensemble is not None:
            physical = self._ensemble.combine(physical)[None]
        return self._interface.embodiment.to_actions(physical)

    def _known(self, committed: NDArray[np.float32] | None) -> Tensor | None:
        """The chunk's entries that are committed, as the head scales them, [1, T, A]; else NaN."""
        if committed is None:
            return None
        config = self._cogact.action_model.config
        prefix = committed[: config.chunk_size]
        interface = self._interface
        physical = interface.embodiment.from_actions(prefix)
        known = np.full((config.chunk_size, config.action_size), np.nan, np.float32)
        known[: len(prefix)] = interface.norm_stats.action.normalise_actions(physical)
        return torch.from_numpy(known)[None].to(self._device)

    def reset(self) -> None:
        """Start the noise, the ensemble and the gripper anew."""
        super().reset()
        self._noise.reset()
        if self._ensemble is not None:
            self._ensemble.reset()

    def follow(self, leader: PrismaticVla) -> None:
        """Take over the leader's noise, ensemble and gripper."""
        super().follow(leader)
        assert isinstance(leader, CogAct)
        self._noise.follow(leader._noise)
        if self._ensemble is not None and leader._ensemble is not None:
            self._ensemble.follow(leader._ensemble)

    def _layout_of(self, prompt_length: int) -> TokenLayout:
        return cogact_layout(self.cameras, self._network.vision.grid, prompt_length)
