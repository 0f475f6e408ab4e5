"""The state around the pure plan: references, ages, flushes, keyframes, automatic off.

One policy step is plan() -> the model runs -> commit(). What happens between the two may fail: the
next plan() then finds the step uncommitted, takes the cache as damaged and starts from a keyframe.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from vla_cache_ros.core.auto_off import AutoOff
from vla_cache_ros.core.config import ReuseConfig
from vla_cache_ros.core.errors import ConfigError, VlaCacheError
from vla_cache_ros.core.layout import TokenLayout
from vla_cache_ros.core.patches import PatchFrame, PatchReference, check_images, prepare_frame
from vla_cache_ros.core.plan import ReusePlan
from vla_cache_ros.core.planner import PlanInputs, dense_plan, layer_groups, make_plan
from vla_cache_ros.core.random_choice import RandomChoice, computed_vision
from vla_cache_ros.core.schedule import reuse_ratios


@dataclass(frozen=True)
class PlannedStep:
    """What one step is to run, and why.

    Attributes:
        plan: The reuse plan to execute.
        mode: 'dense' (reuse off: K/V need not be kept), 'keyframe' (all recomputed, K/V kept) or
            'cached'.
        flush_reason: Why the cache was flushed before this step; empty when it was not.
        keyframe_reason: Why everything is recomputed without a flush; empty otherwise.
        off_reason: Why reuse is off; empty when it is on.
        wants_relevance: Whether commit() wants text-to-vision attention of this step.
        wants_entropy: Whether commit() wants attention entropies of this step.
        diff_ms: Time of the patch comparison, milliseconds.
        selection_ms: Time of the selection, milliseconds; commit() takes the rest of the overhead.
    """

    plan: ReusePlan
    mode: str
    flush_reason: str = ''
    keyframe_reason: str = ''
    off_reason: str = ''
    wants_relevance: bool = False
    wants_entropy: bool = False
    diff_ms: float = 0.0
    selection_ms: float = 0.0


@dataclass(frozen=True)
class _Source:
    """What the cached K/V depend on besides pixels; a change of it flushes."""

    cameras: tuple[str, ...]
    sizes: tuple[tuple[int, int], ...]
    instruction: str

    def change_from(self, before: '_Source') -> str:
        if self.cameras != before.cameras:
            return 'camera set change'
        if self.sizes != before.sizes:
            return 'resolution change'
        return 'instruction change' if self.instruction != before.instruction else ''


class ReuseController:
    """Decides each step's reuse plan and keeps the record of what the cache holds."""

    def __init__(
        self,
        layout: TokenLayout,
        num_layers: int,
        config: ReuseConfig,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """Start with an empty cache.

        Args:
            layout: The model's token layout.
            num_layers: L.
            config: The reuse configuration.
            clock: Seconds, monotonic; injected in tests.

        Raises:
            ConfigError: The configuration does not fit the decoder.
        """
        layer_groups(config, num_layers)
        self.layout = layout
        self.num_layers = num_layers
        self.config = config
        self._effective = config
        self._pressure = 0.0
        self._off_reason = ''
        self._clock = clock
        self._auto_off = AutoOff(config)
        self._reference: PatchReference | None = None
        self._source: _Source | None = None
        self._relevance: NDArray[np.float32] | None = None
        self._ratios: NDArray[np.float64] | None = None
        self._random = (
            RandomChoice(config.choice_seed, layout) if config.choice == 'random' else None
        )
        self._flush_reason = ''
        self._steps_since_keyframe = 0
        self._pending: PlannedStep | None = None
        self._pending_rule: ReusePlan | None = None
        self._pending_frame: PatchFrame | None = None
        self._pending_since = 0.0

    def plan(
        self,
        images: Mapping[str, NDArray[np.uint8]],
        instruction: str,
        layout: TokenLayout | None = None,
    ) -> PlannedStep:
        """Plan a step.

        Args:
            images: Camera name -> uint8 [H, W, 3], as the model sees them.
            instruction: The task in words.
            layout: The token layout where it depends on the instruction; None: as before. Its
                vision spans are always the same.

        Raises:
            ObservationError: An image cannot be used; the state is unchanged.
            ConfigError: The layout has other vision spans.
        """
        started = self._clock()
        if layout is not None and layout != self.layout:
            if layout.cameras != self.layout.cameras:
                raise ConfigError(
                    f'the vision spans changed from {self.layout.cameras} to {layout.cameras}; '
                    'another set of cameras needs another ReuseController.'
                )
            self.layout = layout
        source = _Source(tuple(images), check_images(images, self.layout), instruction)
        if self._pending is not None:
            self.flush('fault')
        if self._source is not None and (change := source.change_from(self._source)):
            self.flush(change)
        step = self._decide(images, started)
        self._source = source
        self._flush_reason = ''
        self._pending = step
        self._pending_since = started
        return step

    def widen(self, step: PlannedStep, plan: ReusePlan) -> PlannedStep:
        """Have the planned step recompute more than planned, as a batch may need it to.

        Args:
            step: What plan() returned.
            plan: Recomputes in each group at least what the step's plan does.

        Returns:
            The step to run and to commit.

        Raises:
            VlaCacheError: The step is not the one planned last, or the plan leaves out a token
                that has to run.
        """
        if self._pending is not step:
            raise VlaCacheError('widen() takes the step that plan() returned last.')
        for planned, given in zip(step.plan.recompute, plan.recompute, strict=True):
            if not np.isin(planned, given, assume_unique=True).all():
                raise VlaCacheError('a wider plan recomputes all that the planned one does.')
        self._pending = replace(step, plan=plan)
        if self._random is None:
            self._pending_rule = plan
        return self._pending

    def commit(
        self,
        step: PlannedStep,
        relevance: Tensor | NDArray[np.float32] | None = None,
        entropy: Tensor | NDArray[np.float64] | None = None,
        step_ms: float | None = None,
    ) -> float:
        """Record that the planned step ran: its tokens' pixels become the reference.

        Args:
            step: What plan() returned.
            relevance: Text-to-vision attention of this step, [V]; None keeps the earlier one.
            entropy: Attention entropy per layer, [L], nats; None keeps the earlier schedule.
            step_ms: Time of the whole policy step up to here, milliseconds; None: since plan()
                was called.

        Returns:
            Time that this took (references, schedule), milliseconds: overhead of the step, too.

        Raises:
            VlaCacheError: The step is not the one planned last, was flushed or committed since, or
                the relevance or the entropies have the wrong size. The next step is a keyframe.
        """
        if self._pending is not step:
            raise VlaCacheError('commit() takes, once, the step that plan() returned last.')
        started = self._clock()
        if step_ms is None:
            step_ms = (started - self._pending_since) * 1e3
        if self._pending_frame is not None:
            self._take_statistics(relevance, entropy)
            self._take_reference(step, self._pending_frame)
        self._pending = None
        self._pending_frame = None
        commit_ms = (self._clock() - started) * 1e3
        self._auto_off.record(step.mode == 'cached', step_ms + commit_ms)
        return commit_ms

    @property
    def pressure(self) -> float:
        """How far late refreshes have raised the reuse: 0 not at all, 1 to its safe limit."""
        return self._pressure

    def set_pressure(self, pressure: float) -> None:
        """Raise the reuse from the next step on, within the limits of the settings.

        Raises:
            ConfigError: The pressure is outside [0, 1].
        """
        self._effective = self.config.under_pressure(pressure)
        self._pressure = pressure

    def switch_off(self, reason: str) -> None:
        """Have every step run dense, for that reason, until `switch_on`."""
        self._off_reason = reason

    def switch_on(self) -> None:
        """Allow reuse again; the next step is a keyframe."""
        self._off_reason = ''

    def flush(self, reason: str) -> None:
        """Take the cache as empty; the next step is a keyframe and reports the reason."""
        self._reference = None
        self._source = None
        self._relevance = None
        self._ratios = None
        self._pending = None
        self._pending_frame = None
        self._flush_reason = reason

    def _decide(self, images: Mapping[str, NDArray[np.uint8]], started: float) -> PlannedStep:
        off_reason = 'switched off'
        if self.config.enabled:
            off_reason = self._off_reason or self._auto_off.reason
        if off_reason:
            self._reference = None
            self._pending_frame = None
            plan = dense_plan(self.config, self.layout, self.num_layers)
            return PlannedStep(plan, 'dense', self._flush_reason, off_reason=off_reason)

        self._pending_frame = frame = prepare_frame(images, self.layout)
        keyframe_reason = '' if self._flush_reason else self._keyframe_reason()
        if self._reference is None or keyframe_reason:
            held = None if self._reference is None else self._random or self._reference
            age = None if held is None else held.age.copy()
            return PlannedStep(
                dense_plan(self.config, self.layout, self.num_layers, age),
                'keyframe',
                self._flush_reason,
                keyframe_reason,
                wants_relevance=self.config.uses_relevance,
                wants_entropy=self.config.uses_entropy,
                diff_ms=(self._clock() - started) * 1e3,
            )

        change = self._reference.compare(frame)
        compared = self._clock()
        inputs = PlanInputs(change, self._reference.age, self._relevance, self._ratios)
        plan = make_plan(inputs, self._effective, self.layout, self.num_layers)
        self._pending_rule = plan
        if self._random is not None:
            plan = self._random.draw(plan, self.layout)
        return PlannedStep(
            plan,
            'cached',
            wants_relevance=self.config.uses_relevance,
            wants_entropy=self.config.uses_entropy and self.config.entropy_refresh == 'step',
            diff_ms=(compared - started) * 1e3,
            selection_ms=(self._clock() - compared) * 1e3,
        )

    def _keyframe_reason(self) -> str:
        if self._reference is None:
            return 'probe' if self._auto_off.probing else 'first step'
        period = self._effective.keyframe_period_steps
        if period is not None and self._steps_since_keyframe >= period:
            return 'period'
        if self.config.uses_relevance and self._relevance is None:
            return 'no relevance yet'
        if self.config.uses_entropy and self._ratios is None:
            return 'no entropy yet'
        return ''

    def _take_statistics(
        self,
        relevance: Tensor | NDArray[np.float32] | None,
        entropy: Tensor | NDArray[np.float64] | None,
    ) -> None:
        if relevance is not None:
            self._relevance = _vector(relevance, self.layout.num_vision, 'relevance')
        if entropy is not None and self.config.uses_entropy:
            values = _vector(entropy, self.num_layers, 'entropy')
            self._ratios = reuse_ratios(
                values, self.config.schedule, growth=self.config.growth, gain=self.config.gain
            )

    def _take_reference(self, step: PlannedStep, frame: PatchFrame) -> None:
        if step.mode == 'keyframe' or self._reference is None or self._pending_rule is None:
            self._reference = PatchReference(frame, self.layout)
            self._steps_since_keyframe = 1
            if self._random is not None:
                self._random.restart(frame)
            return
        computed = computed_vision(self._pending_rule.recompute[-1], self.layout)
        self._reference.update(frame, computed)
        self._steps_since_keyframe += 1
        if self._random is not None:
            self._random.ran(step.plan, self.layout)


def _vector(values: Tensor | NDArray[np.generic], size: int, name: str) -> NDArray[np.float32]:
    """A finite float32 vector on the host."""
    if isinstance(values, Tensor):
        values = values.detach().float().cpu().numpy()
    vector = np.array(values, dtype=np.float32)
    if vector.shape != (size,):
        raise VlaCacheError(f'{name} has shape {list(vector.shape)}; valid: [{size}].')
    if not np.isfinite(vector).all():
        raise VlaCacheError(
            f'{name} holds NaN or infinity: the model failed; its K/V will be recomputed.'
        )
    return vector
