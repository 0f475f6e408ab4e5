"""ROS messages <-> arrays: robot state, action chunks, stamps.

Images are in image_conversions.py, so that guard and sink need not load OpenCV.
"""

import array
import math
from collections.abc import Sequence

import numpy as np
from builtin_interfaces.msg import Time
from geometry_msgs.msg import PoseStamped
from numpy.typing import NDArray
from sensor_msgs.msg import JointState
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

from vla_cache_ros.core.errors import ObservationError
from vla_cache_ros.core.types import Proprioception

ACTION_NAMES = ('ee_x', 'ee_y', 'ee_z', 'ee_rx', 'ee_ry', 'ee_rz', 'gripper')
"""What the seven numbers of an action are called in a JointTrajectory."""

_NANOSECONDS = 1_000_000_000


def stamp_to_ns(stamp: Time) -> int:
    """Nanoseconds of a stamp."""
    return stamp.sec * _NANOSECONDS + stamp.nanosec


def ns_to_stamp(stamp_ns: int) -> Time:
    """Stamp of so many nanoseconds."""
    sec, nanosec = divmod(stamp_ns, _NANOSECONDS)
    return Time(sec=sec, nanosec=nanosec)


def to_proprioception(
    joints: JointState, pose: PoseStamped, gripper_joint_names: Sequence[str]
) -> Proprioception:
    """Read the arm's state.

    Raises:
        ObservationError: A finger joint is missing, or a value is NaN or infinite.
    """
    positions = dict(zip(joints.name, joints.position, strict=False))
    missing = [name for name in gripper_joint_names if name not in positions]
    if missing:
        raise ObservationError(
            f'joint states lack {", ".join(missing)}; they hold: {", ".join(positions)}. '
            'Set gripper_joint_names to the finger joints of your robot.'
        )
    position, orientation = pose.pose.position, pose.pose.orientation
    return Proprioception(
        ee_position_m=np.array([position.x, position.y, position.z], np.float32),
        ee_quaternion_xyzw=np.array(
            [orientation.x, orientation.y, orientation.z, orientation.w], np.float32
        ),
        gripper_position_m=np.array([positions[name] for name in gripper_joint_names], np.float32),
    )


def pose_message(
    position_m: NDArray[np.float32], quaternion_xyzw: NDArray[np.float32], frame_id: str
) -> PoseStamped:
    """Build a pose message; the caller sets its stamp."""
    message = PoseStamped()
    message.header.frame_id = frame_id
    point, orientation = message.pose.position, message.pose.orientation
    point.x, point.y, point.z = (float(value) for value in position_m)
    orientation.x, orientation.y, orientation.z, orientation.w = (
        float(value) for value in quaternion_xyzw
    )
    return message


def actions_to_trajectory(
    actions: NDArray[np.float32], stamp_ns: int, control_frequency_hz: float = math.inf
) -> JointTrajectory:
    """Build the message of an action chunk or of one command.

    See docs/decisions/0003-action-topic.md for why it is a JointTrajectory.

    Args:
        actions: [T, 7]; T = 0 says "no action follows from this observation".
        stamp_ns: A chunk: stamp of the image behind it. A command: time that it is meant for.
        control_frequency_hz: Rate of the chunk's actions; point k is due k periods after the
            chunk begins.
    """
    message = JointTrajectory()
    message.header.stamp = ns_to_stamp(stamp_ns)
    message.joint_names = list(ACTION_NAMES)
    message.points = [
        JointTrajectoryPoint(positions=array.array('d', action.tolist())) for action in actions
    ]
    for index, point in enumerate(message.points[1:], start=1):
        sec, nanosec = divmod(round(index * _NANOSECONDS / control_frequency_hz), _NANOSECONDS)
        point.time_from_start.sec, point.time_from_start.nanosec = sec, nanosec
    return message


def trajectory_to_actions(message: JointTrajectory) -> NDArray[np.float32]:
    """Read an action chunk or a command.

    NaN passes: the guard, which counts and reports it, is the one to refuse it.

    Returns:
        [T, 7] float32, T = 0 for an empty message.

    Raises:
        ObservationError: The names are not `ACTION_NAMES` or a point does not hold seven numbers.
    """
    if tuple(message.joint_names) != ACTION_NAMES:
        raise ObservationError(
            f'action names {list(message.joint_names)}; valid: {", ".join(ACTION_NAMES)}.'
        )
    for index, point in enumerate(message.points):
        if len(point.positions) != len(ACTION_NAMES):
            raise ObservationError(
                f'action {index} holds {len(point.positions)} numbers; valid: {len(ACTION_NAMES)}.'
            )
    return np.array([point.positions for point in message.points], np.float32).reshape(
        -1, len(ACTION_NAMES)
    )
