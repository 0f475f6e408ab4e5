"""Conventions of the robots that public checkpoints were trained on.

A checkpoint's actions are six end-effector deltas and a gripper in the convention of its training
data, 1 open and 0 closed. What differs from robot to robot: the units of the deltas, how the
rotation is written, what the gripper's command means, and how camera images are prepared. Ours is
that of `vla_cache_ros.core.types.ActionChunk`: axis-angle, and -1 open, +1 close.

    LIBERO        gripper = -sign(2 g - 1)
    Bridge        gripper = -1 where g > 0.5, else +1
    Google robot  gripper = what the closing changed by, g_before - g, held for 10 steps once it is
                  more than 0.5 (sticky); near 0 it holds
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from vla_cache_models.prismatic.preprocessing import ImageProtocol
from vla_cache_ros.core.errors import CheckpointError, UnknownNameError
from vla_cache_ros.core.types import Proprioception

ACTION_SIZE = 7


class GripperRule(Protocol):
    """From the checkpoint's gripper numbers to ours."""

    def __call__(self, gripper: NDArray[np.floating]) -> NDArray[np.floating]:
        """Map [T], 1 open and 0 closed, one number per executed control step, in order."""
        ...

    def reset(self) -> None:
        """Begin an episode."""
        ...


class StatelessGripper:
    """A gripper command that depends on the present number alone."""

    def __init__(self, rule: Callable[[NDArray[np.floating]], NDArray[np.floating]]) -> None:
        """Wrap the rule, [T] to [T]."""
        self._rule = rule

    def __call__(self, gripper: NDArray[np.floating]) -> NDArray[np.floating]:
        """See `GripperRule`."""
        return self._rule(gripper)

    def reset(self) -> None:
        """Nothing to forget."""


class StickyGripper:
    """Relative gripper command: each change of mind is sent for several steps.

    The reference g_before is the number at the last change, or the episode's first one.
    """

    THRESHOLD = 0.5

    def __init__(self, repeats: int) -> None:
        """Begin an episode.

        Args:
            repeats: Control steps for which a change is sent.
        """
        self._repeats = repeats
        self.reset()

    def reset(self) -> None:
        """See `GripperRule`."""
        self._reference: float | None = None
        self._sticky = 0.0
        self._left = 0

    def __call__(self, gripper: NDArray[np.floating]) -> NDArray[np.floating]:
        """See `GripperRule`; +1 closes, as ours."""
        return np.array([self._step(float(value)) for value in gripper])

    def _step(self, value: float) -> float:
        if self._reference is None:
            self._reference = value
        change = self._reference - value
        if abs(change) > self.THRESHOLD and not self._left:
            self._reference, self._sticky, self._left = value, change, self._repeats
        if not self._left:
            return change
        self._left -= 1
        return self._sticky


def _libero_gripper(gripper: NDArray[np.floating]) -> NDArray[np.floating]:
    return -np.sign(2 * gripper - 1)


def _binary_gripper(gripper: NDArray[np.floating]) -> NDArray[np.floating]:
    return np.where(gripper > 0.5, -1.0, 1.0)


@dataclass(frozen=True)
class Embodiment:
    """Conventions of one robot and its data.

    Attributes:
        name: What it is called on the command line.
        key_prefixes: It is chosen for unnorm_keys that begin with one of these.
        cameras: Names in our Observation, the primary one first; a model with one camera takes
            that.
        camera_size_px: Side of the camera images, before they are prepared.
        images: How camera images are prepared.
        gripper: From the data's gripper numbers to ours; holds the episode's state.
        euler: Whether the data write rotations as roll, pitch, yaw; else as axis-angle.
        shares_of_limits: Whether the deltas are shares of the controller's limits, clipped to
            [-1, 1] as the controller does; else metres and radians.
        ensemble_horizon: Chunks that CogACT's adaptive ensemble averages; None: no ensemble.
        execute_steps: Actions of a chunk to execute before the next refresh.
    """

    name: str
    key_prefixes: tuple[str, ...]
    cameras: tuple[str, ...]
    camera_size_px: int
    images: ImageProtocol
    gripper: GripperRule
    euler: bool
    shares_of_limits: bool
    ensemble_horizon: int | None
    execute_steps: int

    def to_actions(self, chunk: NDArray[np.floating]) -> NDArray[np.float32]:
        """Convert de-normalised actions to the convention of ActionChunk.

        Args:
            chunk: [T, 7], the actions that will be executed: the gripper takes each as one
                control step.

        Raises:
            CheckpointError: The actions have another length.
        """
        if chunk.ndim != 2 or chunk.shape[1] != ACTION_SIZE:
            raise CheckpointError(
                f'the checkpoint gives actions {list(chunk.shape)}; valid: [T, {ACTION_SIZE}], '
                'one arm with a gripper. Choose an unnorm_key of a robot with one arm.'
            )
        rotation = euler_to_axis_angle(chunk[:, 3:6]) if self.euler else chunk[:, 3:6]
        deltas = np.concatenate((chunk[:, :3], rotation), axis=1)
        if self.shares_of_limits:
            deltas = deltas.clip(-1, 1)
        gripper = self.gripper(chunk[:, 6])
        return np.concatenate((deltas, gripper[:, None]), axis=1, dtype=np.float32)

    def from_actions(self, actions: NDArray[np.floating]) -> NDArray[np.float64]:
        """The inverse of `to_actions`, [T, 7].

        NaN stands for a gripper that the action does not determine: a relative command says what
        changes, and near 0 nothing does.
        """
        rotation = axis_angle_to_euler(actions[:, 3:6]) if self.euler else actions[:, 3:6]
        gripper = np.full(len(actions), np.nan)
        if isinstance(self.gripper, StatelessGripper):
            gripper = np.where(actions[:, 6] == 0, np.nan, (1 - np.sign(actions[:, 6])) / 2)
        return np.concatenate(
            (actions[:, :3], rotation, gripper[:, None]), axis=1, dtype=np.float64
        )

    def reset(self) -> None:
        """Begin an episode."""
        self.gripper.reset()

    def fresh(self) -> 'Embodiment':
        """The same conventions with a gripper state of their own, at an episode's begin."""
        gripper = copy.copy(self.gripper)
        gripper.reset()
        return replace(self, gripper=gripper)


# Images of Bridge and of the Google robot as in SimplerEnv: neither JPEG nor crop.
_AS_RENDERED = ImageProtocol(mirror=False, jpeg_round_trip=False, crop_area=1.0)
_CAMERAS = ('agentview', 'wrist')

EMBODIMENTS = {
    embodiment.name: embodiment
    for embodiment in (
        Embodiment(
            name='libero',
            key_prefixes=('libero_',),
            cameras=_CAMERAS,
            camera_size_px=256,
            # The published rotation by 180 degrees of the simulator's upside-down images; ours
            # are upright.
            images=ImageProtocol(mirror=True, jpeg_round_trip=True, crop_area=0.9),
            gripper=StatelessGripper(_libero_gripper),
            euler=False,
            shares_of_limits=True,
            ensemble_horizon=None,
            execute_steps=8,
        ),
        Embodiment(
            name='bridge',
            key_prefixes=('bridge',),
            cameras=_CAMERAS,
            camera_size_px=256,
            images=_AS_RENDERED,
            gripper=StatelessGripper(_binary_gripper),
            euler=True,
            shares_of_limits=False,
            ensemble_horizon=7,
            execute_steps=1,
        ),
        Embodiment(
            name='google_robot',
            key_prefixes=('fractal',),
            cameras=_CAMERAS,
            camera_size_px=256,
            images=_AS_RENDERED,
            gripper=StickyGripper(repeats=10),
            euler=True,
            shares_of_limits=False,
            ensemble_horizon=2,
            execute_steps=1,
        ),
        # A robot of one's own, fine-tuned with OpenVLA's recipe: augmented images, hence the crop.
        Embodiment(
            name='finetuned',
            key_prefixes=(),
            cameras=_CAMERAS,
            camera_size_px=256,
            images=ImageProtocol(mirror=False, jpeg_round_trip=True, crop_area=0.9),
            gripper=StatelessGripper(_binary_gripper),
            euler=True,
            shares_of_limits=False,
            ensemble_horizon=None,
            execute_steps=8,
        ),
        # Open X-Embodiment's convention.
        Embodiment(
            name='generic',
            key_prefixes=(),
            cameras=_CAMERAS,
            camera_size_px=256,
            images=_AS_RENDERED,
            gripper=StatelessGripper(_binary_gripper),
            euler=True,
            shares_of_limits=False,
            ensemble_horizon=None,
            execute_steps=1,
        ),
    )
}


def embodiment_for(unnorm_key: str, name: str = '', unknown: str = 'generic') -> Embodiment:
    """The embodiment of a dataset, with a gripper state of its own.

    Args:
        unnorm_key: Key of the dataset's statistics.
        name: One of EMBODIMENTS, to overrule the key; empty: by the key.
        unknown: One of EMBODIMENTS, for keys that no embodiment is chosen by.

    Raises:
        UnknownNameError: There is no such embodiment.
    """
    if name and name not in EMBODIMENTS:
        raise UnknownNameError('embodiment', name, EMBODIMENTS)
    fitting = (
        embodiment.name
        for embodiment in EMBODIMENTS.values()
        if unnorm_key.startswith(embodiment.key_prefixes)
    )
    return EMBODIMENTS[name or next(fitting, unknown)].fresh()


def euler_to_axis_angle(angles: NDArray[np.floating]) -> NDArray[np.float64]:
    """Roll, pitch, yaw about fixed x, y, z axes, in this order, to axis times angle.

    With the unit quaternion (v, w) of R_z(yaw) R_y(pitch) R_x(roll):

        axis angle = 2 atan2(|v|, w) v / |v|,   0 where |v| = 0

    Args:
        angles: [..., 3], radians.
    """
    half = np.asarray(angles, dtype=np.float64) / 2
    cx, cy, cz = np.moveaxis(np.cos(half), -1, 0)
    sx, sy, sz = np.moveaxis(np.sin(half), -1, 0)
    w = cx * cy * cz + sx * sy * sz
    x = sx * cy * cz - cx * sy * sz
    y = cx * sy * cz + sx * cy * sz
    z = cx * cy * sz - sx * sy * cz
    vector = np.stack((x, y, z), axis=-1)
    length = np.linalg.norm(vector, axis=-1)
    angle = 2 * np.arctan2(length, w)
    return vector * np.divide(angle, length, out=np.zeros_like(angle), where=length > 0)[..., None]


def axis_angle_to_euler(vectors: NDArray[np.floating]) -> NDArray[np.float64]:
    """The inverse of `euler_to_axis_angle`, [..., 3], pitch within [-pi/2, pi/2].

    Of the rotation matrix R = I + sin(a) K + (1 - cos(a)) K^2, K the cross product with the axis:

        roll = atan2(R21, R22),   pitch = -asin(R20),   yaw = atan2(R10, R00)
    """
    vectors = np.asarray(vectors, dtype=np.float64)
    angle = np.linalg.norm(vectors, axis=-1)
    axis = np.divide(
        vectors, angle[..., None], out=np.zeros_like(vectors), where=angle[..., None] > 0
    )
    x, y, z = np.moveaxis(axis, -1, 0)
    sine, versine = np.sin(angle), 1 - np.cos(angle)
    r00, r10 = 1 - versine * (y * y + z * z), versine * x * y + sine * z
    r20 = versine * x * z - sine * y
    r21, r22 = versine * y * z + sine * x, 1 - versine * (x * x + y * y)
    roll, yaw = np.arctan2(r21, r22), np.arctan2(r10, r00)
    return np.stack((roll, -np.arcsin(r20.clip(-1, 1)), yaw), axis=-1)


def libero_state(state: Proprioception) -> NDArray[np.float64]:
    """The state as LIBERO's fine-tuned checkpoints take it: position, axis-angle, fingers.

    With the quaternion (v, w), w clipped to [-1, 1] (robosuite's formula):

        axis angle = 2 acos(w) v / sqrt(1 - w^2),   0 where w = +-1

    Both signs of a quaternion are kept apart, as in training: (v, w) and (-v, -w) are one rotation
    and two states.

    Returns:
        [8], metres and radians, not normalised.
    """
    quaternion = state.ee_quaternion_xyzw.astype(np.float64)
    w = quaternion[3].clip(-1, 1)
    sine = np.sqrt(1 - w * w)
    axis_angle = quaternion[:3] * (2 * np.arccos(w) / sine) if sine else np.zeros(3)
    parts = (state.ee_position_m, axis_angle, state.gripper_position_m)
    return np.concatenate(parts, dtype=np.float64)
