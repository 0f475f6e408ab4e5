"""What `VlaPolicy` needs of a model: the seam between the hot loop and the four models."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from vla_cache_models.decoder import Decoder
from vla_cache_ros.core.config import ReuseConfig
from vla_cache_ros.core.errors import ObservationError
from vla_cache_ros.core.kv_cache import KVCache
from vla_cache_ros.core.layout import TokenLayout
from vla_cache_ros.core.types import Observation


@dataclass(frozen=True)
class Prompt:
    """An instruction as a model takes it.

    Attributes:
        instruction: The words.
        tokens: Their ids, int64 [1, n].
        layout: The token layout that they lead to.
    """

    instruction: str
    tokens: Tensor
    layout: TokenLayout


@dataclass(frozen=True)
class Inputs:
    """An observation as a model takes it.

    Attributes:
        frames: Camera name -> the picture that the network sees, uint8 [S, S, 3]; patches are
            compared on these.
        prompt: The instruction.
        proprioception: Normalised, [1, n]; None for models without it.
        committed: See Observation; [d, 7], for heads that continue them.
    """

    frames: Mapping[str, NDArray[np.uint8]]
    prompt: Prompt
    proprioception: Tensor | None = None
    committed: NDArray[np.float32] | None = None


class Vla(Protocol):
    """A vision-language-action model whose decoder runs any subset of its tokens.

    Attributes:
        name: Which model this is, as presets and reports name it.
        cameras: Names of the cameras, in slot order.
        camera_size_px: Side of the camera images that the training data had.
        chunk_size: T, actions per chunk.
        execute_steps: Actions of a chunk to execute before the next refresh.
        weights_sha256: Names the weights in reports.
        decoder: The decoder.
        max_tokens: Slots that the K/V cache must have: the longest sequence, generated tokens
            included, and one dummy slot behind it, which engines pad with.
        generates: Whether `decode_actions` goes on decoding against the K/V cache, so that dense
            steps fill it, too.
        continues: Whether the chunk begins with the actions that are committed already
            (Observation.committed); else they are ignored.
    """

    name: str
    cameras: tuple[str, ...]
    camera_size_px: int
    chunk_size: int
    execute_steps: int
    weights_sha256: str
    max_tokens: int
    generates: bool
    continues: bool

    @property
    def decoder(self) -> Decoder:
        """The decoder."""
        ...

    @property
    def layout(self) -> TokenLayout:
        """The token layout before there is an instruction; its vision spans hold for all."""
        ...

    def preset(self, name: str) -> ReuseConfig:
        """A reuse preset with this model's own counts and layers.

        Raises:
            UnknownNameError: There is no such preset.
        """
        ...

    def follow(self, leader: Any) -> None:
        """Take over the leader's noise, ensemble and gripper: the state between two steps."""
        ...

    def prepare(self, observation: Observation) -> Inputs:
        """Turn an observation into the network's inputs; changes nothing that a step keeps.

        Raises:
            ObservationError: It cannot be used.
        """
        ...

    def embed(self, inputs: Inputs, slots: NDArray[np.int64], *, keep: bool) -> Tensor:
        """Hidden states before the first decoder layer.

        Args:
            inputs: What `prepare` returned.
            slots: Ascending slots of the tokens that run, [K].
            keep: Whether K/V is kept for later steps.

        Returns:
            [1, K, D].
        """
        ...

    def embed_together(
        self,
        peers: Sequence[Any],
        inputs: Sequence[Inputs],
        slots: Sequence[NDArray[np.int64]],
        *,
        keep: bool,
    ) -> Tensor:
        """`embed` for sessions on the same weights.

        Args:
            peers: Their models, made by `share`; this one may be among them.
            inputs: One per session.
            slots: Likewise; equally many of each camera.
            keep: Whether K/V is kept for later steps.

        Returns:
            [B, K, D].
        """
        ...

    def decode_actions(
        self, hidden: Tensor, inputs: Inputs, cache: KVCache
    ) -> NDArray[np.float32]:
        """Actions from the hidden states behind the last decoder layer.

        Args:
            hidden: Of the rows that ran to the end, before the final norm, [1, K, D]; the tokens
                behind the vision tokens always run.
            inputs: What `prepare` returned.
            cache: The decoder's K/V.

        Returns:
            [T, 7], in ActionChunk's convention.
        """
        ...

    def reset(self) -> None:
        """Forget what is kept between the steps of an episode besides K/V."""
        ...

    @property
    def network(self) -> Any:
        """The network: weights, and the modules that the hot loop calls."""
        ...

    def share(self, network: Any = None) -> 'Vla':
        """Another one on the same weights, with a state of its own.

        Args:
            network: Takes the network's place, e.g. one whose modules run as engines.
        """
        ...


def camera_image(
    observation: Observation, name: str, needed: tuple[str, ...]
) -> NDArray[np.uint8]:
    """One camera's image, checked.

    Raises:
        ObservationError: It is missing, empty, or not uint8 [H, W, 3].
    """
    image = observation.images.get(name)
    if image is None:
        raise ObservationError(
            f'the observation holds no camera {name!r}; given: '
            f'{", ".join(observation.images) or "none"}; needed: {", ".join(needed)}.'
        )
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ObservationError(
            f'camera {name!r}: image is {image.dtype} {list(image.shape)}; '
            'valid: uint8 [H, W, 3], RGB.'
        )
    if not image.size:
        raise ObservationError(f'camera {name!r}: the image is empty.')
    return image


def committed_actions(observation: Observation) -> NDArray[np.float32] | None:
    """The actions that run while the observation is worked on, [d, 7], checked.

    Raises:
        ObservationError: They are not finite numbers [d, 7].
    """
    committed = observation.committed
    if committed is None or not len(committed):
        return None
    if committed.ndim != 2 or committed.shape[1] != 7 or not np.isfinite(committed).all():
        raise ObservationError(
            f'committed actions are {list(committed.shape)}; valid: [d, 7], all of them finite.'
        )
    return committed
