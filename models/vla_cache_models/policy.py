"""A VLA as a policy: one observation in, one action chunk out, under the cache.

The hot loop is `VlaPolicy.act`; everything else here prepares it.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vla_cache_models.probe import AttentionProbe
from vla_cache_models.rows import decode, merge_caches, merge_probes
from vla_cache_models.vla import Inputs, Vla
from vla_cache_ros.core.config import ReuseConfig
from vla_cache_ros.core.controller import PlannedStep, ReuseController
from vla_cache_ros.core.errors import ConfigError, UnknownNameError
from vla_cache_ros.core.kv_cache import KVCache
from vla_cache_ros.core.layout import TokenLayout
from vla_cache_ros.core.plan import ReusePlan
from vla_cache_ros.core.timing import StageClock
from vla_cache_ros.core.types import ActionChunk, Observation, StepReport

DTYPES = {
    'float32': torch.float32,
    'bfloat16': torch.bfloat16,
    'float16': torch.float16,
}


class VlaPolicy:
    """A VLA with cross-frame reuse of vision tokens.

    Attributes:
        execute_steps: Actions of each chunk to execute before the next refresh.
        weights_sha256: Names the weights in reports.
    """

    def __init__(
        self,
        model: Vla,
        reuse: ReuseConfig,
        *,
        clock: Callable[[], float] = time.perf_counter,
        controller: ReuseController | None = None,
    ) -> None:
        """Allocate the K/V cache.

        Args:
            model: The model, on its device.
            reuse: Settings of the reuse.
            clock: Seconds, monotonic.
            controller: Plans the steps; None: one of its own. Replays give it a recorded one.

        Raises:
            ConfigError: The settings do not fit the model's decoder.
        """
        self.execute_steps = model.execute_steps
        self.weights_sha256 = model.weights_sha256
        self._model = model
        self._reuse = reuse
        self._layout = model.layout
        self._visible: Tensor | None = None
        self._steps = 0

        stack, weight = model.decoder.config, model.decoder.norm.weight
        self._device = weight.device
        self._clock = _finishing_clock(weight.device, clock)
        self._controller = controller or ReuseController(
            model.layout, stack.layers, reuse, clock=self._clock
        )
        self._cache = KVCache(
            stack.layers,
            stack.kv_heads,
            model.max_tokens,
            stack.head_dim,
            dtype=weight.dtype,
            device=weight.device,
        )

    @property
    def chunk_size(self) -> int:
        """T, actions per chunk."""
        return self._model.chunk_size

    @property
    def camera_names(self) -> tuple[str, ...]:
        """The cameras that an observation must hold, in slot order."""
        return self._model.cameras

    @property
    def image_size_px(self) -> int:
        """Side of the camera images that the training data had."""
        return self._model.camera_size_px

    @property
    def layout(self) -> TokenLayout:
        """Token layout of the present instruction."""
        return self._layout

    def reset(self, reason: str = 'reset') -> None:
        """Forget the episode; the next step recomputes everything."""
        self._controller.flush(reason)
        self._model.reset()
        self._layout = self._model.layout
        self._visible = None
        self._steps = 0

    def set_pressure(self, pressure: float) -> None:
        """Raise the reuse from the next step on, 0 not at all, 1 to its safe limit.

        Raises:
            ConfigError: The pressure is outside [0, 1].
        """
        self._controller.set_pressure(pressure)

    def switch_off(self, reason: str) -> None:
        """Have every step run dense, for that reason, until `switch_on`."""
        self._controller.switch_off(reason)

    def switch_on(self) -> None:
        """Allow reuse again."""
        self._controller.switch_on()

    def dense_twin(self) -> 'VlaPolicy':
        """A policy on the same weights that reuses nothing."""
        return VlaPolicy(self._model.share(), ReuseConfig(enabled=False))

    def follow(self, leader: 'VlaPolicy') -> None:
        """Take over what the next action of another one depends on besides the observation.

        Both then answer an observation alike, up to what the cache does: noise, ensemble and
        gripper are the same.
        """
        self._model.follow(leader._model)

    @torch.inference_mode()
    def act(self, observation: Observation) -> ActionChunk:
        """Compute the next chunk.

        Raises:
            ObservationError: A camera is missing, an image or the instruction cannot be used.
        """
        step = self.begin(observation)
        (actions,) = run_steps((step,))
        return self.finish(step, actions)

    def begin(self, observation: Observation) -> 'Step':
        """The step up to the network: inputs and plan. `run_steps`, then `finish` must follow.

        Raises:
            ObservationError: A camera is missing, an image or the instruction cannot be used.
        """
        stages = StageClock(self._clock)
        with stages('preprocess'):
            inputs = self._model.prepare(observation)
            self._settle_layout(inputs.prompt.layout)
        planned = self._controller.plan(inputs.frames, observation.instruction, self._layout)
        return Step(
            self._model,
            inputs,
            self._cache,
            self._layout,
            self._probe(planned),
            planned,
            stages,
            self._clock,
            observation.stamp_ns,
        )

    def widen(self, step: 'Step', plan: ReusePlan) -> None:
        """Have the step recompute more than it planned; see ReuseController.widen."""
        step.planned = self._controller.widen(step.planned, plan)

    def finish(self, step: 'Step', actions: NDArray[np.float32]) -> ActionChunk:
        """The step behind the network: commit and report; actions are the chunk, [T, 7]."""
        planned, probe = step.planned, step.probe
        stage_ms = _in_order(step.stages.stage_ms, planned)
        stage_ms['selection'] += self._controller.commit(
            planned,
            relevance=None if probe.relevance is None else probe.relevance[0],
            entropy=torch.stack(list(probe.entropy.values())) if planned.wants_entropy else None,
            step_ms=sum(stage_ms.values()),
        )
        report = StepReport(
            step=self._steps,
            mode=planned.mode,
            stage_ms=stage_ms,
            plan=planned.plan,
            flush_reason=planned.flush_reason,
            keyframe_reason=planned.keyframe_reason,
            off_reason=planned.off_reason,
            reuse_pressure=self._controller.pressure,
            frames=step.inputs.frames,
        )
        self._steps += 1
        return ActionChunk(
            actions,
            step.stamp_ns,
            report,
            instruction=step.inputs.prompt.instruction,
            prefix_steps=self._prefix_steps(step.inputs),
        )

    def _prefix_steps(self, inputs: Inputs) -> int:
        """How many committed actions the chunk begins with."""
        if inputs.committed is None or not self._model.continues:
            return 0
        return min(len(inputs.committed), self.chunk_size)

    def _settle_layout(self, layout: TokenLayout) -> None:
        """Take over the layout of a new instruction."""
        if layout is self._layout:
            return
        self._layout = layout
        masked = layout.causal or (self._reuse.uses_entropy and layout.attention != 'all')
        self._visible = torch.from_numpy(layout.visible()).to(self._device) if masked else None

    def _probe(self, step: PlannedStep) -> AttentionProbe:
        return AttentionProbe(
            self._layout,
            self._reuse.relevance_layer if step.wants_relevance else None,
            visible=self._visible,
            with_entropy=step.wants_entropy,
        )


@dataclass
class Step:
    """A policy step between its plan and its report.

    Attributes:
        model, inputs, cache, layout, probe: What it runs on.
        planned: What is to run.
        stages: Times so far.
        clock: Seconds; on a GPU it waits for the device.
        stamp_ns: The observation's stamp.
    """

    model: Vla
    inputs: Inputs
    cache: KVCache
    layout: TokenLayout
    probe: AttentionProbe
    planned: PlannedStep
    stages: StageClock
    clock: Callable[[], float]
    stamp_ns: int

    @property
    def needs_cache(self) -> bool:
        """Whether K/V must be kept: for later steps, or for what the head generates."""
        return self.keeps or self.model.generates

    @property
    def keeps(self) -> bool:
        """Whether K/V is kept for later steps."""
        return self.planned.mode != 'dense'


@torch.inference_mode()
def run_steps(steps: Sequence[Step]) -> list[NDArray[np.float32]]:
    """Run the network for one step, or for several sessions' steps as one batch.

    Vision and decoder run once for all, the heads one after another. A batch's stages are charged
    to its sessions in equal shares.

    Args:
        steps: On shared weights, with layouts of the same spans and with plans that run equally
            many tokens per group and camera. Their times are filled in.

    Returns:
        The chunks, each [T, 7].
    """
    first, together = steps[0], StageClock(steps[0].clock)
    plans = [step.planned.plan for step in steps]
    with together('vision'):
        x = first.model.embed_together(
            [step.model for step in steps],
            [step.inputs for step in steps],
            [plan.recompute[0] for plan in plans],
            keep=any(step.keeps for step in steps),
        )
    with together('decoder'):
        needs_cache = any(step.needs_cache for step in steps)
        cache = merge_caches([step.cache for step in steps]) if needs_cache else None
        probe = merge_probes([step.probe for step in steps])
        x = decode(first.model.decoder, x, plans, first.layout, cache, probe)
    chunks: list[NDArray[np.float32]] = []
    for row, step in enumerate(steps):
        for name, ms in together.stage_ms.items():
            step.stages.add(name, ms / len(steps))
        with step.stages('head'):
            own = x[row : row + 1]
            chunks.append(step.model.decode_actions(own, step.inputs, step.cache))
    return chunks


def _finishing_clock(device: torch.device, clock: Callable[[], float]) -> Callable[[], float]:
    """A clock that waits for the device, so that a stage's time is that of its own kernels."""
    if device.type != 'cuda':
        return clock

    def finished() -> float:
        torch.cuda.synchronize(device)
        return clock()

    return finished


def _in_order(measured: Mapping[str, float], step: PlannedStep) -> dict[str, float]:
    """Stage times in the order of execution, the planner's two behind the preprocessing."""
    planned = {'diff': step.diff_ms, 'selection': step.selection_ms}
    rest = {name: ms for name, ms in measured.items() if name != 'preprocess'}
    return {'preprocess': measured['preprocess'], **planned, **rest}


def _check_placement(dtype: str, device: str) -> None:
    """Check number format and device before anything is read."""
    if dtype not in DTYPES:
        raise UnknownNameError('dtype', dtype, DTYPES)
    try:
        kind = torch.device(device).type
    except RuntimeError as error:
        raise UnknownNameError('device', device, ('cpu', 'cuda', 'cuda:1')) from error
    if kind == 'cuda' and not torch.cuda.is_available():
        raise ConfigError(
            f'device is {device!r}, but torch {torch.__version__} sees no NVIDIA GPU here; take '
            'cpu, or install a CUDA build of torch and the driver (`vla-cache doctor`).'
        )


def load_model(
    checkpoint: Path | str,
    *,
    unnorm_key: str = '',
    embodiment: str = '',
    dtype: str = 'float32',
    device: str = 'cpu',
    on_progress: Callable[[int, int], None] | None = None,
) -> Vla:
    """Load a checkpoint folder: this project's own, OpenVLA, OpenVLA-OFT or CogACT.

    Args:
        checkpoint: The folder.
        unnorm_key: Dataset whose statistics scale the actions; empty where there is only one.
        embodiment: Conventions of the robot; empty: by unnorm_key.
        dtype: One of DTYPES.
        device: Where it runs.
        on_progress: Called with the bytes read so far and in all.

    Raises:
        CheckpointError: The folder cannot be loaded; nothing was allocated for it.
        ConfigError: The checkpoint has several datasets and no key was given, or it takes none.
        UnknownNameError: Unknown dtype, device, dataset or embodiment.
    """
    _check_placement(dtype, device)
    folder = Path(checkpoint)
    from vla_cache_models.loading.formats import detect_format

    if detect_format(folder) == 'small':
        if unnorm_key or embodiment:
            raise ConfigError(
                f'{folder} holds the small VLA, which has one set of statistics and one robot; '
                'leave unnorm_key and embodiment empty.'
            )
        from vla_cache_models.small.checkpoint import load_checkpoint
        from vla_cache_models.small.vla import SmallVla

        return SmallVla(load_checkpoint(folder, device), dtype=DTYPES[dtype], device=device)
    from vla_cache_models.prismatic.build import load_vla

    return load_vla(
        folder,
        unnorm_key=unnorm_key,
        embodiment=embodiment,
        dtype=DTYPES[dtype],
        device=device,
        on_progress=on_progress,
    )


def make_policy(
    model: Vla, cache: str | ReuseConfig = 'safe', *, auto_off: bool = True
) -> VlaPolicy:
    """A policy on a model's weights, with a state of its own.

    Args:
        model: Stays as it is; any number of policies may share its weights.
        cache: A preset of vla_cache_ros.core.config, or settings.
        auto_off: False forbids the reuse to switch itself off, whatever the settings say.

    Raises:
        UnknownNameError: There is no such preset.
    """
    reuse = cache if isinstance(cache, ReuseConfig) else model.preset(cache)
    return VlaPolicy(model.share(), replace(reuse, auto_off=reuse.auto_off and auto_off))


def load_policy(
    checkpoint: Path | str,
    cache: str | ReuseConfig = 'safe',
    *,
    unnorm_key: str = '',
    embodiment: str = '',
    dtype: str = 'float32',
    device: str = 'cpu',
    auto_off: bool = True,
) -> VlaPolicy:
    """Load a checkpoint folder as a policy; see `load_model` and `make_policy`."""
    model = load_model(
        checkpoint, unnorm_key=unnorm_key, embodiment=embodiment, dtype=dtype, device=device
    )
    return make_policy(model, cache, auto_off=auto_off)


def random_model(
    name: str,
    *,
    layers: int | None = None,
    tower_depth: int | None = None,
    dtype: str = 'float32',
    device: str = 'cpu',
    seed: int = 0,
) -> Vla:
    """A published model at full width with seeded random weights, for timing.

    Args:
        name: 'openvla', 'openvla_oft' or 'cogact'.
        layers: Decoder layers; None: all 32.
        tower_depth: Blocks of each vision tower; None: all.
        dtype: One of DTYPES.
        device: Where it runs.
        seed: Another seed, other weights.

    Raises:
        UnknownNameError: Unknown model or dtype.
        ConfigError: The depths do not fit.
    """
    _check_placement(dtype, device)
    from vla_cache_models.prismatic.build import random_vla

    return random_vla(
        name,
        layers=layers,
        tower_depth=tower_depth,
        dtype=DTYPES[dtype],
        device=device,
        seed=seed,
    )
