"""ROS messages <-> arrays: robot state, stamps.

Images are in image_conversions.py, so that guard and sink need not load OpenCV. Reading goes by
the fields alone: a recording is read by the same functions, without ROS.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from vla_cache_ros.core.gripper import GripperMap
from vla_cache_ros.core.types import Proprioception

if TYPE_CHECKING:
    from builtin_interfaces.msg import Time
    from geometry_msgs.msg import PoseStamped

_NANOSECONDS = 1_000_000_000


def stamp_to_ns(stamp: 'Time') -> int:
    """Nanoseconds of a stamp."""
    return stamp.sec * _NANOSECONDS + stamp.nanosec


def ns_to_stamp(stamp_ns: int) -> 'Time':
    """Stamp of so many nanoseconds."""
    from builtin_interfaces.msg import Time

    sec, nanosec = divmod(stamp_ns, _NANOSECONDS)
    return Time(sec=sec, nanosec=nanosec)


def to_proprioception(
    joints: Mapping[str, float], pose: 'PoseStamped', gripper: GripperMap
) -> Proprioception:
    """Read the arm's state.

    Args:
        joints: Joint -> position; those of the gripper are needed.
        pose: Of the end effector.
        gripper: Maps its joints onto the gripper that the policies were trained on.

    Raises:
        ObservationError: A value is NaN or infinite.
    """
    position, orientation = pose.pose.position, pose.pose.orientation
    return Proprioception(
        ee_position_m=np.array([position.x, position.y, position.z], np.float32),
        ee_quaternion_xyzw=np.array(
            [orientation.x, orientation.y, orientation.z, orientation.w], np.float32
        ),
        gripper_position_m=gripper.fingers([joints[name] for name in gripper.joint_names]),
    )


def pose_message(
    position_m: NDArray[np.floating], quaternion_xyzw: NDArray[np.floating], frame_id: str
) -> 'PoseStamped':
    """Build a pose message; the caller sets its stamp."""
    from geometry_msgs.msg import PoseStamped

    message = PoseStamped()
    message.header.frame_id = frame_id
    point, orientation = message.pose.position, message.pose.orientation
    point.x, point.y, point.z = (float(value) for value in position_m)
    orientation.x, orientation.y, orientation.z, orientation.w = (
        float(value) for value in quaternion_xyzw
    )
    return message
