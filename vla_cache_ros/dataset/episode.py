"""One episode in memory: what the recorder makes, the writer stores, the reader yields."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vla_cache_ros.core.errors import DatasetError
from vla_cache_ros.dataset.layout import DatasetSpec

FIELD_OF_FEATURE = {
    'observation.state': 'state',
    'action': 'action',
    'action.executed': 'executed_action',
    'label.chunk': 'label_chunk',
    'label.valid': 'label_valid',
    'label.target_position_m': 'target_position_m',
    'label.goal_position_m': 'goal_position_m',
    'label.relevance': 'relevance',
    'label.policy_drives': 'policy_drives',
}
"""Feature name -> attribute of `Episode`."""


@dataclass(frozen=True)
class EpisodeInfo:
    """Where an episode came from.

    Attributes:
        instruction: The task in words.
        suite: Suite of the simulator.
        task: Task index in the suite.
        source: 'expert', or the name of a DAgger round.
        seed: Seed of the episode; `attempt` numbers the starts of one task from 0.
        attempt: Number of the attempt at this task.
        success: Whether the task was accomplished at the end.
        control_steps: Length of the recorded part in control steps.
    """

    instruction: str
    suite: str = ''
    task: int = 0
    source: str = 'expert'
    seed: int = 0
    attempt: int = 0
    success: bool = True
    control_steps: int = 0

    def as_dict(self) -> dict[str, Any]:
        """All fields but the instruction, which LeRobot keeps under its own name."""
        fields = asdict(self)
        del fields['instruction']
        return fields


@dataclass(frozen=True)
class Episode:
    """F stored frames and what the expert knew at each of them.

    Attributes:
        images: Camera -> upright RGB frames, uint8 [F, H, W, 3].
        state: ee_position_m (3), ee_quaternion_xyzw (4), gripper_position_m (2); float32 [F, 9].
        action: The expert's clean action at the frame, float32 [F, 7].
        executed_action: What the robot was in fact given, float32 [F, 7].
        label_chunk: The expert's clean actions at this and the next T - 1 control steps, each
            for the state that was visited then; float32 [F, T, 7].
        label_valid: Which of them exist (the episode may end sooner), bool [F, T].
        target_position_m: Object to grasp, world frame, float32 [F, 3].
        goal_position_m: Where it is to go, world frame, float32 [F, 3].
        relevance: Per patch the bits of `layout.RELEVANCE_BITS`, uint8 [F, C, rows, cols].
        policy_drives: Whether a policy, not the expert, chose the executed action, bool [F].
        info: Where the episode came from.
    """

    images: Mapping[str, NDArray[np.uint8]]
    state: NDArray[np.float32]
    action: NDArray[np.float32]
    executed_action: NDArray[np.float32]
    label_chunk: NDArray[np.float32]
    label_valid: NDArray[np.bool_]
    target_position_m: NDArray[np.float32]
    goal_position_m: NDArray[np.float32]
    relevance: NDArray[np.uint8]
    policy_drives: NDArray[np.bool_]
    info: EpisodeInfo = field(default_factory=lambda: EpisodeInfo(''))

    def __len__(self) -> int:
        """F, stored frames."""
        return len(self.state)

    def check(self, spec: DatasetSpec) -> None:
        """Compare with what the dataset's episodes have in common.

        Raises:
            DatasetError: A field has the wrong shape or type, or holds NaN or infinity.
        """
        frames = len(self)
        if not frames:
            raise DatasetError('an episode needs at least one frame.')
        if not self.info.instruction.strip():
            raise DatasetError('an episode needs an instruction.')
        if set(self.images) != set(spec.cameras):
            raise DatasetError(
                f'episode has cameras {sorted(self.images)}; valid: {sorted(spec.cameras)}.'
            )
        image = (frames, spec.image_size_px, spec.image_size_px, 3)
        for camera, video in self.images.items():
            _check_array(f'camera {camera}', video, image, np.dtype(np.uint8))
        for feature, (shape, dtype) in spec.array_shapes.items():
            value = getattr(self, FIELD_OF_FEATURE[feature])
            _check_array(feature, value, (frames, *shape) if shape != (1,) else (frames,), dtype)


def _check_array(
    name: str, value: NDArray[Any], shape: tuple[int, ...], dtype: np.dtype[Any]
) -> None:
    if value.shape != shape or value.dtype != dtype:
        raise DatasetError(
            f'{name} is {value.dtype} {list(value.shape)}; valid: {dtype} {list(shape)}.'
        )
    if dtype.kind == 'f' and not np.isfinite(value).all():
        raise DatasetError(f'{name} holds NaN or infinity.')
