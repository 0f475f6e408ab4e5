"""The small VLA as a policy: one observation in, one action chunk out, under the cache.

The hot loop is `VlaPolicy.act`; everything else here prepares it.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vla_cache_models.attendance import resolve_attendance
from vla_cache_models.decoder import DecoderConfig
from vla_cache_models.probe import AttentionProbe
from vla_cache_models.small.checkpoint import Checkpoint, load_checkpoint
from vla_cache_models.small.network import VlaConfig, tower_layout
from vla_cache_ros.core.config import ReuseConfig, preset
from vla_cache_ros.core.controller import PlannedStep, ReuseController
from vla_cache_ros.core.errors import ObservationError, UnknownNameError
from vla_cache_ros.core.kv_cache import KVCache
from vla_cache_ros.core.layout import TokenLayout
from vla_cache_ros.core.timing import StageClock
from vla_cache_ros.core.types import ActionChunk, Observation, Proprioception, StepReport

DTYPES = {'float32': torch.float32, 'bfloat16': torch.bfloat16}


@dataclass(frozen=True)
class Prompt:
    """An instruction as the network takes it."""

    instruction: str
    tokens: Tensor
    layout: TokenLayout
    visible: Tensor | None


class VlaPolicy:
    """A parallel VLA with cross-frame reuse of vision tokens.

    Attributes:
        execute_steps: Actions of each chunk to execute before the next refresh.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        reuse: ReuseConfig,
        *,
        partial_tower: bool = True,
        dtype: str = 'float32',
        device: str = 'cpu',
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """Allocate the caches.

        Args:
            checkpoint: Network, tokenizer and scales.
            reuse: Settings of the reuse.
            partial_tower: Whether the vision tower, too, runs only the patches that the first
                layer group needs, against a K/V cache of its own. False runs it whole, as
                published.
            dtype: 'float32' or 'bfloat16': the network's weights and activations.
            device: Where it runs.
            clock: Seconds, monotonic.

        Raises:
            UnknownNameError: The dtype is not one of the two.
        """
        if dtype not in DTYPES:
            raise UnknownNameError('dtype', dtype, DTYPES)
        self.execute_steps = checkpoint.execute_steps
        self.weights_sha256 = checkpoint.weights_sha256
        self._device = torch.device(device)
        self._model = checkpoint.model.to(self._device, DTYPES[dtype])
        self._config = self._model.config
        self._tokenizer = checkpoint.tokenizer
        self._scale = checkpoint.proprioception_scale
        self._partial_tower = partial_tower
        self._dtype = DTYPES[dtype]
        self._clock = clock
        self._reuse = reuse
        self._prompt: Prompt | None = None
        self._steps = 0

        self._layout = self._config.layout(self._config.text_tokens)
        self._tower_layout = tower_layout(self._layout)
        self._cache = self._allocate(self._config.decoder, self._layout.num_tokens)
        self._tower_cache = self._allocate(self._config.tower, self._layout.num_vision)
        self._controller = ReuseController(
            self._layout, self._config.decoder.layers, reuse, clock=clock
        )

    @property
    def chunk_size(self) -> int:
        """T, actions per chunk."""
        return self._config.chunk_size

    @property
    def camera_names(self) -> tuple[str, ...]:
        """The cameras that an observation must hold, in slot order."""
        return self._config.cameras

    @property
    def image_size_px(self) -> int:
        """Side of the square image that the network sees."""
        return self._config.image_size_px

    @property
    def layout(self) -> TokenLayout:
        """Token layout of the present instruction."""
        return self._layout if self._prompt is None else self._prompt.layout

    def reset(self, reason: str = 'reset') -> None:
        """Forget the episode; the next step recomputes everything."""
        self._controller.flush(reason)
        self._prompt = None
        self._steps = 0

    @torch.inference_mode()
    def act(self, observation: Observation) -> ActionChunk:
        """Compute the next chunk.

        Raises:
            ObservationError: A camera is missing, an image or the instruction cannot be used.
        """
        stages = StageClock(self._clock)
        with stages('preprocess'):
            images = self._images(observation.images)
            prompt = self._encode(observation.instruction)
            proprioception = self._normalise(observation.proprioception)
        step = self._controller.plan(images, observation.instruction)
        probe = self._probe(prompt, step)
        with stages('vision'):
            rest = self._model.embed_rest(proprioception, prompt.tokens)
            x = torch.cat((self._vision(images, step), rest), dim=1)
        with stages('decoder'):
            x = self._decode(x, step, prompt.layout, probe)
        with stages('head'):
            actions = self._model.decode_actions(x)[0].float().clamp(-1, 1).cpu().numpy()

        stage_ms = _in_order(stages.stage_ms, step)
        stage_ms['selection'] += self._controller.commit(
            step,
            relevance=None if probe.relevance is None else probe.relevance[0].cpu().numpy(),
            entropy=np.array([value.item() for value in probe.entropy.values()])
            if step.wants_entropy
            else None,
            step_ms=sum(stage_ms.values()),
        )
        report = StepReport(
            step=self._steps,
            mode=step.mode,
            stage_ms=stage_ms,
            plan=step.plan,
            flush_reason=step.flush_reason,
            keyframe_reason=step.keyframe_reason,
        )
        self._steps += 1
        return ActionChunk(actions, observation.stamp_ns, report)

    def _allocate(self, stack: DecoderConfig, num_tokens: int) -> KVCache:
        return KVCache(
            stack.layers,
            stack.kv_heads,
            num_tokens,
            stack.head_dim,
            dtype=self._dtype,
            device=self._device,
        )

    def _vision(self, images: Mapping[str, NDArray[np.uint8]], step: PlannedStep) -> Tensor:
        """Vision tokens of the first layer group's rows, [1, K - rest, D]."""
        start, stop = self._layout.vision
        needed = step.plan.recompute[0]
        cells = needed[(needed >= start) & (needed < stop)] - start
        stacked = torch.from_numpy(np.stack([images[name] for name in self.camera_names]))
        patches = self._model.patch_embedding.patchify(stacked[None].to(self._device))
        everything = len(cells) == self._layout.num_vision
        if everything or not self._partial_tower:
            rows = torch.arange(self._layout.num_vision, device=self._device)
            attendance = resolve_attendance(self._tower_layout)
            cache = self._tower_cache if self._partial_tower and step.mode != 'dense' else None
            tokens = self._model.embed_vision(patches, rows, attendance, cache)
            return tokens if everything else tokens[:, torch.from_numpy(cells).to(self._device)]
        rows = torch.from_numpy(cells).to(self._device)
        attendance = resolve_attendance(self._tower_layout, cells)
        return self._model.embed_vision(patches[:, rows], rows, attendance, self._tower_cache)

    def _decode(
        self, x: Tensor, step: PlannedStep, layout: TokenLayout, probe: AttentionProbe
    ) -> Tensor:
        """Run each layer group on its recomputed tokens; reused ones stay behind."""
        cache = self._cache if step.mode != 'dense' else None
        running = step.plan.recompute[0]
        for group, slots in zip(step.plan.groups, step.plan.recompute, strict=True):
            if len(slots) < len(running):
                rows = torch.from_numpy(np.searchsorted(running, slots)).to(self._device)
                x, running = x[:, rows], slots
            x = self._model.decoder(
                x,
                torch.from_numpy(slots).to(self._device),
                resolve_attendance(layout, slots),
                cache,
                group.start,
                group.stop,
                probe,
            )
        return x

    def _images(self, images: Mapping[str, NDArray[np.uint8]]) -> dict[str, NDArray[np.uint8]]:
        size = self._config.image_size_px
        prepared: dict[str, NDArray[np.uint8]] = {}
        for name in self.camera_names:
            if name not in images:
                raise ObservationError(
                    f'the observation holds no camera {name!r}; given: '
                    f'{", ".join(images) or "none"}; needed: {", ".join(self.camera_names)}.'
                )
            image = images[name]
            if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
                raise ObservationError(
                    f'camera {name!r}: image is {image.dtype} {list(image.shape)}; '
                    'valid: uint8 [H, W, 3], RGB.'
                )
            if not image.size:
                raise ObservationError(f'camera {name!r}: the image is empty.')
            if image.shape[:2] != (size, size):
                resized = cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA)
                image = np.asarray(resized, dtype=np.uint8)
            prepared[name] = image
        return prepared

    def _encode(self, instruction: str) -> Prompt:
        if self._prompt is None or self._prompt.instruction != instruction:
            tokens = self._tokenizer(instruction)
            words = sum(token != 0 for token in tokens)
            layout = self._config.layout(words)
            visible = None
            if self._reuse.uses_entropy and layout.attention != 'all':
                visible = torch.from_numpy(layout.visible()).to(self._device)
            self._prompt = Prompt(
                instruction, torch.tensor([tokens], device=self._device), layout, visible
            )
        return self._prompt

    def _normalise(self, state: Proprioception) -> Tensor:
        raw = np.concatenate(
            (state.ee_position_m, state.ee_quaternion_xyzw, state.gripper_position_m)
        )
        return torch.from_numpy(self._scale.normalise(raw))[None].to(self._device, self._dtype)

    def _probe(self, prompt: Prompt, step: PlannedStep) -> AttentionProbe:
        return AttentionProbe(
            prompt.layout,
            self._reuse.relevance_layer if step.wants_relevance else None,
            visible=prompt.visible,
            with_entropy=step.wants_entropy,
        )


def _in_order(measured: Mapping[str, float], step: PlannedStep) -> dict[str, float]:
    """Stage times in the order of execution, the planner's two behind the preprocessing."""
    planned = {'diff': step.diff_ms, 'selection': step.selection_ms}
    rest = {name: ms for name, ms in measured.items() if name != 'preprocess'}
    return {'preprocess': measured['preprocess'], **planned, **rest}


def preset_for(config: VlaConfig, name: str) -> ReuseConfig:
    """A reuse preset with the relevance layer that this network was trained with."""
    return replace(preset(name, config.decoder.layers), relevance_layer=config.relevance_layer)


def load_policy(
    checkpoint: Path | str,
    cache: str | ReuseConfig = 'safe',
    *,
    dtype: str = 'float32',
    device: str = 'cpu',
    auto_off: bool = True,
) -> VlaPolicy:
    """Load a checkpoint folder as a policy.

    Args:
        checkpoint: Folder with config.json and model.safetensors.
        cache: A preset of vla_cache_ros.core.config, or settings.
        dtype: 'float32' or 'bfloat16'.
        device: Where it runs.
        auto_off: False forbids the reuse to switch itself off, whatever the settings say.

    Raises:
        CheckpointError: The folder cannot be loaded.
        UnknownNameError: Unknown preset or dtype.
    """
    loaded = load_checkpoint(Path(checkpoint), device)
    reuse = cache if isinstance(cache, ReuseConfig) else preset_for(loaded.model.config, cache)
    reuse = replace(reuse, auto_off=reuse.auto_off and auto_off)
    partial_tower = not (isinstance(cache, str) and cache.startswith('paper'))
    return VlaPolicy(loaded, reuse, partial_tower=partial_tower, dtype=dtype, device=device)
