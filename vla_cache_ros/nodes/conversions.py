"""ROS messages <-> arrays: images, robot state, action chunks, stamps.

Images are read in place where their encoding allows (rgb8, rgba8): the array is a view of the
message's own memory, whatever its row step.
"""

import array
import math
from collections.abc import Sequence

import cv2
import numpy as np
from builtin_interfaces.msg import Time
from geometry_msgs.msg import PoseStamped
from numpy.typing import NDArray
from sensor_msgs.msg import Image, JointState
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

from vla_cache_ros.core.errors import ObservationError
from vla_cache_ros.core.types import Proprioception

CHANNELS = {'rgb8': 3, 'bgr8': 3, 'rgba8': 4, 'bgra8': 4, 'mono8': 1}
"""Valid image encodings -> bytes per pixel."""

ACTION_NAMES = ('ee_x', 'ee_y', 'ee_z', 'ee_rx', 'ee_ry', 'ee_rz', 'gripper')
"""What the seven numbers of an action are called in a JointTrajectory."""

_TO_RGB = {
    'bgr8': cv2.COLOR_BGR2RGB,
    'bgra8': cv2.COLOR_BGRA2RGB,
    'mono8': cv2.COLOR_GRAY2RGB,
}
_NANOSECONDS = 1_000_000_000


def stamp_to_ns(stamp: Time) -> int:
    """Nanoseconds of a stamp."""
    return stamp.sec * _NANOSECONDS + stamp.nanosec


def ns_to_stamp(stamp_ns: int) -> Time:
    """Stamp of so many nanoseconds."""
    sec, nanosec = divmod(stamp_ns, _NANOSECONDS)
    return Time(sec=sec, nanosec=nanosec)


def image_to_rgb(message: Image) -> NDArray[np.uint8]:
    """Read an image message.

    Returns:
        uint8 [H, W, 3], RGB. For rgb8 and rgba8 a view of the message's memory.

    Raises:
        ObservationError: Unknown encoding, no pixels, or `step` or the data's length do not fit.
    """
    channels = CHANNELS.get(message.encoding)
    if channels is None:
        raise ObservationError(
            f'image encoding {message.encoding!r} is unknown; valid: {", ".join(CHANNELS)}.'
        )
    if message.height == 0 or message.width == 0:
        raise ObservationError(
            f'image is empty: {message.width}x{message.height} pixels; valid: at least 1x1.'
        )
    row_bytes = message.width * channels
    if message.step < row_bytes:
        raise ObservationError(
            f'image step {message.step} is shorter than a row; valid: at least width x channels '
            f'= {message.width} x {channels} = {row_bytes} bytes.'
        )
    # The last row need not be padded.
    needed = (message.height - 1) * message.step + row_bytes
    if len(message.data) < needed:
        raise ObservationError(
            f'image data hold {len(message.data)} bytes; valid: {message.height * message.step} '
            f'= height x step = {message.height} x {message.step}.'
        )
    pixels = np.ndarray(
        (message.height, message.width, channels),
        dtype=np.uint8,
        buffer=memoryview(message.data),
        strides=(message.step, channels, 1),
    )
    if message.encoding in _TO_RGB:
        return cv2.cvtColor(pixels, _TO_RGB[message.encoding]).astype(np.uint8, copy=False)
    return pixels[..., :3]


def rgb_to_image(pixels: NDArray[np.uint8], stamp: Time, frame_id: str) -> Image:
    """Build an rgb8 message with one copy of the pixels.

    Args:
        pixels: uint8 [H, W, 3].
        stamp: Capture time.
        frame_id: The camera's optical frame.

    Raises:
        ObservationError: The array is not an RGB image.
    """
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
        raise ObservationError(
            f'image is {pixels.dtype} {pixels.shape}; valid: uint8 (height, width, 3).'
        )
    message = Image()
    message.header.stamp = stamp
    message.header.frame_id = frame_id
    message.height, message.width = pixels.shape[:2]
    message.encoding = 'rgb8'
    message.step = 3 * message.width
    # rclpy copies an array.array in one go; a list or bytes it checks element by element.
    data = array.array('B')
    data.frombytes(np.ascontiguousarray(pixels).data.cast('B'))
    message.data = data
    return message


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
