"""Forward kinematics and Jacobian of an arm, from its URDF, by pinocchio.

pinocchio is imported with the first arm, not with this module: a node that sends velocities alone
needs none of it. See docs/decisions/0011-kinematics.md.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vla_cache_ros.core.errors import ConfigError, RobotError

_MAX_BYTES = 32 * 1024**2  # no description is larger; a mistaken path may be


@dataclass(frozen=True)
class Pose:
    """Where the tool is.

    Attributes:
        position_m: [3], in the base's frame.
        rotation: [3, 3], from the tool's frame to the base's.
    """

    position_m: NDArray[np.float64]
    rotation: NDArray[np.float64]


class Kinematics:
    """The chain of joints from a base link to a tip link; all other joints stand still.

    Attributes:
        joint_names: The chain's N joints, in the order of every vector of joints here.
        lower: Least position, [N], radians or metres; -inf for a continuous joint.
        upper: Greatest position, [N].
        max_speed: Greatest speed, [N], per second; inf where the description names none.
    """

    def __init__(
        self, urdf: str, base_link: str, tip_link: str, joint_names: Sequence[str] = ()
    ) -> None:
        """Read a description.

        Args:
            urdf: The description itself, XML.
            base_link: Link whose frame poses are given in.
            tip_link: Link whose origin is the tool's point.
            joint_names: The chain's joints in the order that is wanted; empty: from base to tip.

        Raises:
            RobotError: The description cannot be read, or has no such link, joint or chain.
            ConfigError: pinocchio is not installed.
        """
        self._pin = pin = _pinocchio()
        whole = _whole_model(pin, urdf)
        chain = _chain(whole, base_link, tip_link)
        names = [whole.names[joint] for joint in chain]
        self.joint_names = tuple(joint_names) or tuple(names)
        if sorted(self.joint_names) != sorted(names):
            raise RobotError(
                f'joint_names are {", ".join(self.joint_names)}; between {base_link} and '
                f'{tip_link} the description has: {", ".join(names)}. Name those, in any order.'
            )
        others = [joint for joint in range(1, whole.njoints) if joint not in chain]
        self._model = pin.buildReducedModel(whole, others, pin.neutral(whole))
        self._data = self._model.createData()
        self._neutral = pin.neutral(self._model)
        self._tip = self._model.getFrameId(tip_link)
        joints = [self._model.joints[self._model.getJointId(name)] for name in self.joint_names]
        self._columns = [joint.idx_v for joint in joints]
        bounded = [joint.nq == 1 for joint in joints]  # a continuous one is a point on a circle
        rows = [joint.idx_q for joint in joints]
        self.lower = np.where(bounded, self._model.lowerPositionLimit[rows], -np.inf)
        self.upper = np.where(bounded, self._model.upperPositionLimit[rows], np.inf)
        speed = self._model.velocityLimit[self._columns]
        self.max_speed = np.where(speed > 0, speed, np.inf)
        # The base stands still in the model: all other joints are locked.
        pin.framesForwardKinematics(self._model, self._data, self._neutral)
        base = self._data.oMf[self._model.getFrameId(base_link)]
        self._from_base = base.copy()

    def pose(self, joints: NDArray[np.float64]) -> Pose:
        """Where the tool is.

        Args:
            joints: Positions, [N], radians or metres.
        """
        self._pin.framesForwardKinematics(self._model, self._data, self._configuration(joints))
        tip = self._from_base.actInv(self._data.oMf[self._tip])
        return Pose(tip.translation.copy(), tip.rotation.copy())

    def jacobian(self, joints: NDArray[np.float64]) -> NDArray[np.float64]:
        """How the tool moves with the joints.

        Returns:
            J [6, N] with (v, w) = J dq/dt: velocity of the tool's point, then angular velocity,
            both along the base's axes.
        """
        pin = self._pin
        whole = pin.computeFrameJacobian(
            self._model,
            self._data,
            self._configuration(joints),
            self._tip,
            pin.LOCAL_WORLD_ALIGNED,
        )
        turned = self._from_base.rotation.T @ whole.reshape(2, 3, -1)
        return turned.reshape(6, -1)[:, self._columns]

    def quaternion_xyzw(self, rotation: NDArray[np.float64]) -> NDArray[np.float64]:
        """A rotation matrix [3, 3] as a unit quaternion, [4]."""
        return self._pin.Quaternion(rotation).normalize().coeffs()

    def exp(self, axis_angle: NDArray[np.float64]) -> NDArray[np.float64]:
        """The rotation [3, 3] about an axis-angle vector [3]."""
        return self._pin.exp3(axis_angle)

    def log(self, rotation: NDArray[np.float64]) -> NDArray[np.float64]:
        """The axis-angle vector [3] of a rotation [3, 3], at most pi long."""
        return self._pin.log3(rotation)

    def ordered(self, names: Iterable[str], positions: Iterable[float]) -> NDArray[np.float64]:
        """Pick the chain's joints out of a joint state.

        Returns:
            Positions, [N].

        Raises:
            RobotError: A joint is missing, or its position is NaN or infinite.
        """
        known = dict(zip(names, positions, strict=False))
        missing = [name for name in self.joint_names if name not in known]
        if missing:
            raise RobotError(
                f'joint states lack {", ".join(missing)}; they hold: {", ".join(known)}.'
            )
        joints = np.array([known[name] for name in self.joint_names], np.float64)
        if not np.isfinite(joints).all():
            raise RobotError(f'joint states hold NaN or infinity: {joints.tolist()}.')
        return joints

    def _configuration(self, joints: NDArray[np.float64]) -> NDArray[np.float64]:
        """The model's own vector: a continuous joint is a cosine and a sine there."""
        tangent = np.zeros(self._model.nv)
        tangent[self._columns] = joints
        return self._pin.integrate(self._model, self._neutral, tangent)


def read_urdf(path: str) -> str:
    """Read a description from a file.

    Raises:
        RobotError: It cannot be read, is too large, or is a xacro file that was not expanded.
    """
    try:
        if Path(path).stat().st_size > _MAX_BYTES:
            raise RobotError(f'{path} is larger than {_MAX_BYTES} bytes; valid: a URDF file.')
        text = Path(path).read_text(encoding='utf-8')
    except (OSError, UnicodeDecodeError) as error:
        raise RobotError(f'the description {path} cannot be read: {error}.') from error
    if '<xacro:' in text:
        raise RobotError(f'{path} is a xacro file; expand it first: xacro {path} > robot.urdf.')
    return text


def _pinocchio() -> Any:
    try:
        import pinocchio  # pyright: ignore[reportMissingImports]  # its path is set at run time
    except ImportError as error:
        raise ConfigError(
            f'kinematics need pinocchio ({error}): make setup-robot, '
            'or apt install ros-$ROS_DISTRO-pinocchio.'
        ) from error
    return pinocchio


def _whole_model(pin: Any, urdf: str) -> Any:
    try:
        return pin.buildModelFromXML(urdf)
    except (ValueError, RuntimeError) as error:
        raise RobotError(
            f'the robot description is no valid URDF ({error}); '
            f'it begins: {urdf[:60]!r}. Try check_urdf on it.'
        ) from error


def _chain(model: Any, base_link: str, tip_link: str) -> list[int]:
    """Ids of the joints from base to tip, the base's side first."""
    links = [frame.name for frame in model.frames if frame.type.name == 'BODY']
    for parameter, link in (('base_link', base_link), ('tip_link', tip_link)):
        if link not in links:
            raise RobotError(
                f'{parameter} {link!r} is no link of the description; valid: {", ".join(links)}.'
            )
    base, tip = (
        list(model.supports[model.frames[model.getFrameId(link)].parentJoint])
        for link in (base_link, tip_link)
    )
    chain = tip[len(base) :]
    if tip[: len(base)] != base or not chain:
        raise RobotError(
            f'no joint moves {tip_link!r} against {base_link!r}: base_link must come before '
            'tip_link in the tree, with joints between.'
        )
    wide = [model.names[joint] for joint in chain if model.joints[joint].nv != 1]
    if wide:
        raise RobotError(
            f'joints {", ".join(wide)} have more than one axis; '
            'valid: revolute, continuous, prismatic.'
        )
    return chain
