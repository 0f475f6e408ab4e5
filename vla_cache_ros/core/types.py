"""The data that the domains exchange: observations, action chunks, step reports.

All frozen; arrays are made read-only where a receiver keeps them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from vla_cache_ros.core.errors import ObservationError
from vla_cache_ros.core.plan import ReusePlan


@dataclass(frozen=True)
class Proprioception:
    """State of the arm.

    Attributes:
        ee_position_m: End-effector position in the robot's base or world frame, [3], metres.
        ee_quaternion_xyzw: End-effector orientation, unit quaternion, [4].
        gripper_position_m: Finger positions, [2], metres (LIBERO: +-0.04 open, 0 closed).
    """

    ee_position_m: NDArray[np.float32]
    ee_quaternion_xyzw: NDArray[np.float32]
    gripper_position_m: NDArray[np.float32]

    def __post_init__(self) -> None:
        """Check shapes and finiteness.

        Raises:
            ObservationError: A field has the wrong shape or holds NaN or infinity.
        """
        for name, size in (
            ('ee_position_m', 3),
            ('ee_quaternion_xyzw', 4),
            ('gripper_position_m', 2),
        ):
            value = np.asarray(getattr(self, name), dtype=np.float32)
            if value.shape != (size,):
                raise ObservationError(
                    f'proprioception field {name} has shape {value.shape}; valid: ({size},).'
                )
            if not np.isfinite(value).all():
                raise ObservationError(
                    f'proprioception field {name} holds NaN or infinity: {value}; '
                    'check the joint-state or pose source.'
                )
            object.__setattr__(self, name, value)


@dataclass(frozen=True)
class Observation:
    """What the policy sees at one tick.

    Attributes:
        images: Camera name -> upright RGB image, uint8 [H, W, 3].
        proprioception: State of the arm.
        instruction: The task in words.
        stamp_ns: Capture time of the oldest image used, nanoseconds of the graph's clock.
        committed: Actions that run while this observation is worked on, [d, 7], the first one at
            the observation's stamp; None where nothing is committed. A policy that can, continues
            them (real-time chunking's hard prefix); one that cannot, ignores them.
    """

    images: Mapping[str, NDArray[np.uint8]]
    proprioception: Proprioception
    instruction: str
    stamp_ns: int = 0
    committed: NDArray[np.float32] | None = None


@dataclass(frozen=True)
class StepReport:
    """What one policy step did and how long each stage of it took.

    Attributes:
        step: Policy steps since the last reset, from 0.
        mode: 'dense' (cache off), 'keyframe' (all tokens recomputed, K/V stored) or 'cached'.
        stage_ms: Stage name -> milliseconds, in the order of execution. Names: preprocess, diff,
            selection, vision, decoder, head (OpenVLA: its generated tokens; CogACT: its sampling).
        plan: The reuse plan that was executed.
        flush_reason: Why the cache was flushed before this step; empty when it was not.
        keyframe_reason: Why everything was recomputed although a cache existed; empty otherwise.
        off_reason: Why reuse is switched off; empty while it is on.
        reuse_pressure: How far late refreshes have raised the reuse, 0 to 1 (its safe limit).
        frames: Camera name -> the picture that the patches of the plan are cut from, uint8
            [S, S, 3]: cropped or mirrored where the model's training data were.
    """

    step: int
    mode: str
    stage_ms: Mapping[str, float]
    plan: ReusePlan
    flush_reason: str = ''
    keyframe_reason: str = ''
    off_reason: str = ''
    reuse_pressure: float = 0.0
    frames: Mapping[str, NDArray[np.uint8]] = field(
        default_factory=dict[str, NDArray[np.uint8]], repr=False, compare=False
    )

    @property
    def total_ms(self) -> float:
        """Sum of all stages, milliseconds."""
        return sum(self.stage_ms.values())


@dataclass(frozen=True)
class ActionChunk:
    """Actions for the next T control steps.

    Attributes:
        actions: [T, 7] float32: six end-effector deltas (x, y, z, then axis-angle), then the
            gripper (-1 open, +1 close; near 0, a relative gripper holds). Deltas of LIBERO's
            models are shares of the controller's limits, in [-1, 1]; those of the OpenVLA
            family's other embodiments are metres and radians.
        stamp_ns: Stamp of the observation that the chunk was computed from.
        report: What the policy did to compute it.
        instruction: The task that it was computed for.
        prefix_steps: So many of the first actions were given as `Observation.committed`.
    """

    actions: NDArray[np.float32]
    stamp_ns: int
    report: StepReport | None = field(default=None, compare=False)
    instruction: str = ''
    prefix_steps: int = 0
