"""Compare an engine with PyTorch on recorded frames, and bless it or not.

Two policies on the same weights see the same observations: one in PyTorch, which plans, and one on
the engine, which runs the same plans. So a difference is the engine's, and not that of a plan
which rounding tipped to another token. Both the dense and the cached path are compared.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vla_cache_ros.core.config import ReuseConfig
from vla_cache_ros.core.controller import PlannedStep, ReuseController
from vla_cache_ros.core.errors import ConfigError
from vla_cache_ros.core.types import Observation
from vla_cache_trt.build import Wanted, build_engines, fitting_manifest, load_engines
from vla_cache_trt.manifest import Verification
from vla_cache_trt.store import mark_verified, now

if TYPE_CHECKING:
    from vla_cache_models.vla import Vla
    from vla_cache_trt.runtime import EngineSet

MOTION_AXES = 6
"""Axes of an action before the gripper's, which a model may binarise."""


@dataclass(frozen=True)
class Thresholds:
    """What an engine must reach.

    Attributes:
        motion: Greatest difference of an action's motion axes, full speed being 1. Of models that
            generate tokens the median step is judged: one token on the brink changes all that
            follow it.
        gripper: Least share of gripper commands that agree within 0.1.
        hidden_cosine: Least cosine similarity of a step's hidden states behind the last layer.
        relevance_cosine: Least cosine similarity of a step's relevance.
    """

    motion: float
    gripper: float
    hidden_cosine: float
    relevance_cosine: float


THRESHOLDS: Mapping[str, Thresholds] = {
    'fp32': Thresholds(1e-4, 1.0, 0.99999, 0.9999),
    'fp16': Thresholds(0.02, 0.98, 0.9995, 0.999),
    'bf16': Thresholds(0.1, 0.95, 0.995, 0.99),
    'int8': Thresholds(0.2, 0.9, 0.98, 0.97),
}
"""Precision -> thresholds; fp16 and bf16 round at 2^-11 and 2^-9, int8 weights at 2^-8."""

LEAST = ('gripper', 'hidden_cosine', 'relevance_cosine')
"""Figures that must not be below their threshold; the others must not be above."""


class RecordingController(ReuseController):
    """Plans as ever, and keeps plans and relevance."""

    def __init__(self, *arguments: Any) -> None:
        """See ReuseController."""
        super().__init__(*arguments)
        self.steps: list[PlannedStep] = []
        self.relevance: list[Any] = []

    def plan(self, *arguments: Any) -> PlannedStep:
        """Plan a step and keep the plan."""
        step = super().plan(*arguments)
        self.steps.append(step)
        return step

    def commit(self, step: PlannedStep, relevance: Any = None, *rest: Any, **named: Any) -> float:
        """Record that the step ran."""
        self.relevance.append(_numbers(relevance))
        return super().commit(step, relevance, *rest, **named)


class ReplayController(RecordingController):
    """Gives out plans that another one made.

    Steps that wanted entropies want none here: those run in PyTorch, and the engine is to be seen.
    """

    def __init__(self, given: Sequence[PlannedStep], *arguments: Any) -> None:
        """Take the plans.

        Args:
            given: One per step.
            *arguments: See ReuseController.
        """
        super().__init__(*arguments)
        self._given = iter(given)

    def plan(self, *arguments: Any) -> PlannedStep:
        """The next plan."""
        return replace(next(self._given), wants_entropy=False)

    def commit(self, step: PlannedStep, relevance: Any = None, *rest: Any, **named: Any) -> float:
        """Keep the relevance."""
        self.relevance.append(_numbers(relevance))
        return 0.0


class HiddenTap:
    """A model that keeps the hidden states behind its decoder."""

    def __init__(self, model: 'Vla') -> None:
        """Wrap a model."""
        self._model = model
        self.hidden: list[NDArray[np.float32]] = []

    def __getattr__(self, name: str) -> Any:
        """Everything else is the model's."""
        return getattr(self._model, name)

    def decode_actions(self, hidden: Any, *rest: Any) -> NDArray[np.float32]:
        """Keep the hidden states and go on."""
        self.hidden.append(hidden.detach().float().cpu().numpy().copy())
        return self._model.decode_actions(hidden, *rest)


@dataclass(frozen=True)
class Trace:
    """What one policy did, step by step: actions [T, 7], hidden [1, K, D], relevance [V]."""

    actions: list[NDArray[np.float32]]
    hidden: list[NDArray[np.float32]]
    relevance: list[NDArray[np.float32] | None]


def verify_engines(
    wanted: Wanted,
    observations: Sequence[Observation],
    frames_from: str = '',
    on_progress: Callable[[str, int, int], None] | None = None,
) -> Verification:
    """Compare an engine with PyTorch and write the result into its manifest.

    Args:
        wanted: Which engine.
        observations: Of one episode, in order.
        frames_from: Where they come from, in words.
        on_progress: Called as the work goes on.

    Raises:
        EngineError: The engine cannot be loaded.
        ConfigError: There are no observations.
    """
    if not observations:
        raise ConfigError('there are no frames to compare on; record some with `vla-cache bench`.')
    if fitting_manifest(wanted) is None:  # nothing to compile, but a record to keep
        build_engines(wanted)
    engines = load_engines(wanted)
    figures = compare(wanted.model, engines, wanted.reuse, observations, on_progress)
    thresholds = THRESHOLDS[wanted.precision]
    verification = Verification(
        passed=not failures(figures, thresholds),
        figures=figures,
        thresholds=vars(thresholds),
        frames=len(observations),
        frames_from=frames_from,
        created=now(),
    )
    mark_verified(wanted.folder, verification, wanted.build_command)
    return verification


def compare(
    model: 'Vla',
    engines: 'EngineSet',
    reuse: ReuseConfig,
    observations: Sequence[Observation],
    on_progress: Callable[[str, int, int], None] | None = None,
) -> dict[str, dict[str, float]]:
    """Arm ('dense', 'cached') -> figure -> value.

    Args:
        model: On torch's own network.
        engines: Of its graphs.
        reuse: What the cached arm runs with; where it is off there is no cached arm.
        observations: Of one episode, in order.
        on_progress: Called as the work goes on.
    """
    from vla_cache_trt.runtime import attach

    arms = {'dense': replace(reuse, enabled=False)}
    if reuse.enabled:
        arms['cached'] = replace(reuse, auto_off=False)
    figures = {}
    on_engines = attach(model, engines)
    for index, (arm, settings) in enumerate(arms.items()):
        if on_progress is not None:
            on_progress(f'comparing {arm} steps', index, len(arms))
        layers = model.decoder.config.layers
        planner = RecordingController(model.layout, layers, settings)
        reference = trace(model.share(), settings, planner, observations)
        replayed = ReplayController(planner.steps, model.layout, layers, settings)
        figures[arm] = differences(
            reference, trace(on_engines, settings, replayed, observations), model.generates
        )
    return figures


def trace(
    model: 'Vla',
    reuse: ReuseConfig,
    controller: RecordingController,
    observations: Sequence[Observation],
) -> Trace:
    """Run a policy over observations.

    Args:
        model: With a state of its own.
        reuse: Its settings.
        controller: Gives the plans.
        observations: Of one episode, in order.
    """
    from vla_cache_models.policy import VlaPolicy

    tap: Any = HiddenTap(model)
    model.reset()
    policy = VlaPolicy(tap, reuse, controller=controller)
    actions = [policy.act(observation).actions for observation in observations]
    return Trace(actions, tap.hidden, controller.relevance)


def differences(reference: Trace, engine: Trace, generates: bool) -> dict[str, float]:
    """Figures of one arm; see `Thresholds`, and besides the greatest and the mean differences.

    Args:
        reference: In PyTorch.
        engine: The same steps on an engine.
        generates: Whether the model generates tokens.
    """
    gaps = [abs(a - b) for a, b in zip(reference.actions, engine.actions, strict=True)]
    motion = np.array([gap[:, :MOTION_AXES].max() for gap in gaps], dtype=np.float64)
    gripper = np.concatenate([gap[:, MOTION_AXES:].ravel() for gap in gaps])
    hidden = [abs(a - b) for a, b in zip(reference.hidden, engine.hidden, strict=True)]
    cosines = [_cosine(a, b) for a, b in zip(reference.hidden, engine.hidden, strict=True)]
    relevance = [
        _cosine(a, b)
        for a, b in zip(reference.relevance, engine.relevance, strict=True)
        if a is not None and b is not None
    ]
    figures = {
        'motion': float(np.median(motion) if generates else motion.max()),
        'motion_max': float(motion.max()),
        'motion_mean': float(np.mean([gap[:, :MOTION_AXES].mean() for gap in gaps])),
        'gripper': float((gripper <= 0.1).mean()),
        'hidden_cosine': float(np.min(cosines)),
        'hidden_max': float(np.max([gap.max() for gap in hidden])),
        'hidden_mean': float(np.mean([gap.mean() for gap in hidden])),
    }
    if relevance:
        figures['relevance_cosine'] = float(np.min(relevance))
    return figures


def failures(figures: Mapping[str, Mapping[str, float]], thresholds: Thresholds) -> list[str]:
    """Every figure that misses its threshold, in words; NaN misses each."""
    missed = []
    for arm, values in figures.items():
        for name, limit in vars(thresholds).items():
            if name not in values:
                continue
            value = values[name]
            if not (value >= limit if name in LEAST else value <= limit):
                bound = 'at least' if name in LEAST else 'at most'
                missed.append(f'{arm}: {name} is {value:.6g}; valid: {bound} {limit:g}')
    return missed


def _numbers(values: Any) -> NDArray[np.float32] | None:
    return None if values is None else np.asarray(values.detach().float().cpu().numpy()).copy()


def _cosine(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    """Cosine similarity of two tensors, each as one vector, in double precision."""
    x, y = a.ravel().astype(np.float64), b.ravel().astype(np.float64)
    scale = np.linalg.norm(x) * np.linalg.norm(y)
    return float(x @ y / scale) if scale else float(np.array_equal(x, y))
