"""The small VLA behind `VlaPolicy`, with a vision tower that runs changed patches alone."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vla_cache_models.attendance import resolve_attendance
from vla_cache_models.decoder import Decoder
from vla_cache_models.rows import merge_caches, merge_slots, take_rows
from vla_cache_models.small.checkpoint import Checkpoint
from vla_cache_models.small.network import tower_layout
from vla_cache_models.vla import Inputs, Prompt, camera_image
from vla_cache_ros.core.config import ReuseConfig, preset
from vla_cache_ros.core.kv_cache import KVCache
from vla_cache_ros.core.layout import TokenLayout
from vla_cache_ros.core.types import Observation, Proprioception

LATE_DIFFERENCE_THRESHOLD = 0.03
"""Limit of `safe` under pressure, by docs/benchmarks.md: the last threshold at which fewer than
one in a hundred of the gripper's commands differ from the dense ones."""

LATE_KEYFRAME_POSTPONE_STEPS = 16
"""Of `safe` under pressure: one age limit, within which every token was recomputed anyway."""


class SmallVla:
    """See `vla_cache_models.vla.Vla`."""

    name = 'small'
    generates = False
    continues = False

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = 'cpu',
        network: Any = None,
    ) -> None:
        """Place the network and allocate the tower's K/V cache.

        Args:
            checkpoint: Network, tokenizer and scales.
            dtype: The network's weights and activations.
            device: Where it runs.
            network: Takes the checkpoint's network's place; already on its device.
        """
        self._network = checkpoint.model.to(device, dtype) if network is None else network
        self._config = config = self._network.config
        self._tokenizer = checkpoint.tokenizer
        self._scale = checkpoint.proprioception_scale
        self._checkpoint = checkpoint
        self._dtype = dtype
        self._device = torch.device(device)
        self._prompt: Prompt | None = None

        self.cameras = config.cameras
        self.camera_size_px = config.image_size_px
        self.chunk_size = config.chunk_size
        self.execute_steps = checkpoint.execute_steps
        self.weights_sha256 = checkpoint.weights_sha256
        self._layout = config.layout(config.text_tokens)
        self.max_tokens = self._layout.num_tokens + 1
        self._tower_layout = tower_layout(self._layout)
        self._tower_cache = KVCache(
            config.tower.layers,
            config.tower.kv_heads,
            self._layout.num_vision + 1,
            config.tower.head_dim,
            dtype=dtype,
            device=device,
        )

    @property
    def decoder(self) -> Decoder:
        """The decoder."""
        return self._network.decoder

    @property
    def layout(self) -> TokenLayout:
        """The layout of the longest instruction."""
        return self._layout

    def preset(self, name: str) -> ReuseConfig:
        """A reuse preset with the relevance layer that this network was trained with."""
        reuse = preset(name, self._config.decoder.layers)
        reuse = replace(reuse, relevance_layer=self._config.relevance_layer)
        if name != 'safe':
            return reuse
        return replace(
            reuse,
            difference_threshold_limit=LATE_DIFFERENCE_THRESHOLD,
            keyframe_postpone_steps=LATE_KEYFRAME_POSTPONE_STEPS,
        )

    def prepare(self, observation: Observation) -> Inputs:
        """Resize the images, encode the instruction, normalise the proprioception.

        Raises:
            ObservationError: A camera is missing, an image or the instruction cannot be used.
        """
        frames = {
            name: self._resized(camera_image(observation, name, self.cameras))
            for name in self.cameras
        }
        return Inputs(
            frames,
            self._encode(observation.instruction),
            self._normalise(observation.proprioception),
        )

    def embed(self, inputs: Inputs, slots: NDArray[np.int64], *, keep: bool) -> Tensor:
        """Vision tokens of the given slots, then all that lies behind them, [1, K, D].

        The tower, too, runs the given patches alone, against a K/V cache of its own.
        """
        return self.embed_together((self,), (inputs,), (slots,), keep=keep)

    def embed_together(
        self,
        peers: Sequence['SmallVla'],
        inputs: Sequence[Inputs],
        slots: Sequence[NDArray[np.int64]],
        *,
        keep: bool,
    ) -> Tensor:
        """The same for several sessions at once, [B, K, D]; the tower's batch is theirs."""
        states = [own.proprioception for own in inputs if own.proprioception is not None]
        tokens = torch.cat([own.prompt.tokens for own in inputs])
        rest = self._network.embed_rest(torch.cat(states), tokens)
        return torch.cat((self._vision(peers, inputs, slots, keep), rest), dim=1)

    def decode_actions(
        self, hidden: Tensor, inputs: Inputs, cache: KVCache
    ) -> NDArray[np.float32]:
        """The chunk [T, 7], clipped to the controller's range."""
        return self._network.decode_actions(hidden)[0].float().clamp(-1, 1).cpu().numpy()

    def reset(self) -> None:
        """Nothing is kept between steps besides K/V."""

    @property
    def network(self) -> Any:
        """The network."""
        return self._network

    def follow(self, leader: 'SmallVla') -> None:
        """Nothing: a chunk depends on its observation alone."""

    def share(self, network: Any = None) -> 'SmallVla':
        """Another one on the same weights, with a tower cache of its own."""
        return SmallVla(
            self._checkpoint,
            dtype=self._dtype,
            device=self._device,
            network=self._network if network is None else network,
        )

    def _vision(
        self,
        peers: Sequence['SmallVla'],
        inputs: Sequence[Inputs],
        slots: Sequence[NDArray[np.int64]],
        keep: bool,
    ) -> Tensor:
        start, stop = self._layout.vision
        cells = merge_slots([own[(own >= start) & (own < stop)] - start for own in slots])
        frames = np.stack([own.frames[name] for own in inputs for name in self.cameras])
        stacked = torch.from_numpy(frames).unflatten(0, (len(inputs), -1))
        patches = self._network.patch_embedding.patchify(stacked.to(self._device))
        everything = cells.shape[-1] == self._layout.num_vision
        attendance = resolve_attendance(
            self._tower_layout, None if everything else cells, self._device
        )
        rows = torch.from_numpy(cells).to(self._device)
        cache = merge_caches([peer._tower_cache for peer in peers]) if keep else None
        chosen = patches if everything else take_rows(patches, rows)
        return self._network.embed_vision(chosen, rows, attendance, cache)

    def _resized(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        size = self._config.image_size_px
        if image.shape[:2] == (size, size):
            return image
        resized = cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA)
        return np.asarray(resized, dtype=np.uint8)

    def _encode(self, instruction: str) -> Prompt:
        if self._prompt is None or self._prompt.instruction != instruction:
            tokens = self._tokenizer(instruction)
            words = sum(token != 0 for token in tokens)
            self._prompt = Prompt(
                instruction,
                torch.tensor([tokens], device=self._device),
                self._config.layout(words),
            )
        return self._prompt

    def _normalise(self, state: Proprioception) -> Tensor:
        raw = np.concatenate(
            (state.ee_position_m, state.ee_quaternion_xyzw, state.gripper_position_m)
        )
        return torch.from_numpy(self._scale.normalise(raw))[None].to(self._device, self._dtype)
