"""What the three models have in common behind `VlaPolicy`."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vla_cache_models.decoder import Decoder
from vla_cache_models.prismatic.embodiment import Embodiment
from vla_cache_models.prismatic.network import PrismaticVlm
from vla_cache_models.prismatic.norm_stats import NormStats
from vla_cache_models.prismatic.preprocessing import ImageTransform
from vla_cache_models.prismatic.prompt import LlamaPrompt
from vla_cache_models.vla import Inputs, Prompt, camera_image, committed_actions
from vla_cache_ros.core.config import BASELINES, ReuseConfig, baseline, preset
from vla_cache_ros.core.kv_cache import KVCache
from vla_cache_ros.core.layout import TokenLayout
from vla_cache_ros.core.types import Observation, Proprioception

SHORTEST_PROMPT = 2
"""BOS and one more id: the layout before there is an instruction."""


@dataclass(frozen=True)
class Interface:
    """How observations go into a checkpoint's network and actions come out.

    Attributes:
        prompt: Encodes instructions.
        transform: Turns camera images into the network's pictures.
        norm_stats: Ranges of actions and proprioception of one dataset.
        embodiment: Conventions of that dataset's robot.
        weights_sha256: Names the weights in reports.
    """

    prompt: LlamaPrompt
    transform: ImageTransform
    norm_stats: NormStats
    embodiment: Embodiment
    weights_sha256: str = ''


class PrismaticVla(ABC):
    """See `vla_cache_models.vla.Vla`; a model adds its layout, its extra tokens and its head."""

    name: str
    published_preset: str
    num_cameras = 1
    chunk_size: int
    execute_steps: int
    generates = False
    continues = False
    num_generated = 0

    def __init__(self, network: PrismaticVlm, interface: Interface) -> None:
        """Wire a loaded network.

        Args:
            network: In eval mode, on its device.
            interface: What the checkpoint says besides weights.
        """
        self._network = network
        self._interface = interface
        self._prompt: Prompt | None = None
        weight = network.decoder.norm.weight
        self._device, self._dtype = weight.device, weight.dtype

        self.cameras = interface.embodiment.cameras[: self.num_cameras]
        self.camera_size_px = interface.embodiment.camera_size_px
        self.weights_sha256 = interface.weights_sha256
        self._layout = self._layout_of(SHORTEST_PROMPT)
        self.max_tokens = (
            self._layout_of(interface.prompt.max_tokens).num_tokens + self.num_generated + 1
        )

    @property
    def decoder(self) -> Decoder:
        """The decoder."""
        return self._network.decoder

    @property
    def layout(self) -> TokenLayout:
        """The layout of an empty instruction."""
        return self._layout

    def preset(self, name: str) -> ReuseConfig:
        """A reuse preset.

        'paper' holds the published counts for this model. 'safe' adds to them what the published
        method lacks: a second change criterion, age limits, keyframes, the camera-motion guard and
        the automatic off; it takes entropies at keyframes alone, where they cost no step extra.
        The baselines are made from this 'safe'.

        Raises:
            UnknownNameError: There is no such preset.
        """
        layers = self._network.config.decoder.layers
        if name == 'paper':
            return preset(self.published_preset, layers)
        if name == 'safe':
            ours = preset('safe', layers)
            return replace(
                preset(self.published_preset, layers),
                difference_threshold=ours.difference_threshold,
                entropy_refresh='keyframe',
                age_limit_steps=ours.age_limit_steps,
                age_stagger_steps=ours.age_stagger_steps,
                keyframe_period_steps=ours.keyframe_period_steps,
                camera_motion_fraction=ours.camera_motion_fraction,
                auto_off=ours.auto_off,
            )
        if name in BASELINES:
            return baseline(name, self.preset('safe'))
        return preset(name, layers)

    def prepare(self, observation: Observation) -> Inputs:
        """Preprocess as the checkpoint's training data were.

        Raises:
            ObservationError: A camera is missing, an image or the instruction cannot be used.
        """
        interface = self._interface
        frames = {
            name: interface.transform.view(
                camera_image(observation, name, self.cameras), interface.embodiment.images
            )
            for name in self.cameras
        }
        return Inputs(
            frames,
            self._encode(observation.instruction),
            self._normalise(observation.proprioception),
            committed=committed_actions(observation) if self.continues else None,
        )

    def embed(self, inputs: Inputs, slots: NDArray[np.int64], *, keep: bool) -> Tensor:
        """The sequence [BOS][vision].. at the given slots, [1, K, D].

        The towers and the projector always run whole, as published: their attention mixes all
        patches of a picture, so an unchanged patch has no unchanged feature.
        """
        pictures = [inputs.frames[name] for name in self.cameras]
        pixels = self._interface.transform.pixel_values(pictures, self._device, self._dtype)
        text = self._network.text_embedding(inputs.prompt.tokens)
        sequence = torch.cat(
            (
                text[:, :1],
                self._network.embed_vision(pixels),
                *self._between(inputs),
                text[:, 1:],
                *self._closing(),
            ),
            dim=1,
        )
        if len(slots) == sequence.shape[1]:
            return sequence
        return sequence[:, torch.from_numpy(slots).to(self._device)]

    def embed_together(
        self,
        peers: Sequence['PrismaticVla'],
        inputs: Sequence[Inputs],
        slots: Sequence[NDArray[np.int64]],
        *,
        keep: bool,
    ) -> Tensor:
        """The same for several sessions, [B, K, D]; the towers run one picture set at a time."""
        embedded = [
            peer.embed(own, rows, keep=keep)
            for peer, own, rows in zip(peers, inputs, slots, strict=True)
        ]
        return torch.cat(embedded)

    @abstractmethod
    def decode_actions(
        self, hidden: Tensor, inputs: Inputs, cache: KVCache
    ) -> NDArray[np.float32]:
        """Actions from the hidden states; each model has its own head."""

    def reset(self) -> None:
        """Forget the gripper's state."""
        self._interface.embodiment.reset()

    def follow(self, leader: 'PrismaticVla') -> None:
        """Take over the leader's gripper."""
        embodiment = self._interface.embodiment
        gripper = copy.copy(leader._interface.embodiment.gripper)
        self._interface = replace(self._interface, embodiment=replace(embodiment, gripper=gripper))

    @property
    def network(self) -> Any:
        """The network."""
        return self._network

    def share(self, network: Any = None) -> 'PrismaticVla':
        """Another one on the same weights, with a gripper state of its own."""
        embodiment = self._interface.embodiment.fresh()
        return type(self)(
            self._network if network is None else network,
            replace(self._interface, embodiment=embodiment),
        )

    @abstractmethod
    def _layout_of(self, prompt_length: int) -> TokenLayout:
        """The layout for a prompt of so many ids, BOS included."""

    def _between(self, inputs: Inputs) -> tuple[Tensor, ...]:
        """Tokens between vision and prompt, each [1, n, D]."""
        return ()

    def _closing(self) -> tuple[Tensor, ...]:
        """Tokens behind the prompt, each [1, n, D]."""
        return ()

    def _normalise(self, state: Proprioception) -> Tensor | None:
        return None

    def _encode(self, instruction: str) -> Prompt:
        if self._prompt is None or self._prompt.instruction != instruction:
            ids = self._interface.prompt(instruction)
            self._prompt = Prompt(
                instruction,
                torch.tensor([ids], device=self._device),
                self._layout_of(len(ids)),
            )
        return self._prompt

    def _actions(self, normalised: NDArray[np.floating]) -> NDArray[np.float32]:
        """Actions in ActionChunk's convention from what the head gives, [T, A]."""
        physical = self._interface.norm_stats.action.denormalise(normalised)
        return self._interface.embodiment.to_actions(physical)
