"""From paired messages to the policy's observation: unpacked, looked at, mapped."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sensor_msgs.msg import CompressedImage, Image

from vla_cache_ros.core.errors import ObservationError
from vla_cache_ros.core.frame_watch import FrameLimits, FrameWatch
from vla_cache_ros.core.gripper import GripperMap
from vla_cache_ros.core.types import Observation
from vla_cache_ros.nodes.conversions import stamp_to_ns, to_proprioception
from vla_cache_ros.nodes.image_conversions import compressed_to_rgb, image_to_rgb
from vla_cache_ros.nodes.policy_requests import RefusedError, Request


class ObservationBuilder:
    """Builds observations, in the worker's thread: pictures that nobody acts on stay packed.

    Attributes:
        resized: The camera whose picture has just changed its size; empty otherwise.
    """

    def __init__(
        self, camera_names: Sequence[str], gripper: GripperMap, limits: FrameLimits
    ) -> None:
        """Start with no picture seen."""
        self.resized = ''
        self._gripper = gripper
        self._watches = {name: FrameWatch(limits) for name in camera_names}

    def build(self, request: Request, committed: NDArray[np.float32] | None) -> Observation:
        """Unpack one request.

        Raises:
            RefusedError: A picture is damaged, frozen or black.
            ObservationError: The robot's state holds NaN.
        """
        inputs = request.inputs
        self.resized = ''
        return Observation(
            images={name: self._picture(name, message) for name, message in inputs.images.items()},
            proprioception=to_proprioception(inputs.joints, inputs.pose, self._gripper),
            instruction=request.instruction,
            stamp_ns=inputs.stamp_ns,
            committed=committed,
        )

    def _picture(self, camera: str, message: Any) -> NDArray[np.uint8]:
        try:
            pixels = _unpack(message)
        except ObservationError as error:
            raise RefusedError('bad_image', f'{camera}: {error}') from error
        watch = self._watches[camera]
        if watch.is_resized(pixels):
            self.resized = camera
        reason, detail = watch.look(pixels, stamp_to_ns(message.header.stamp))
        if reason:
            raise RefusedError(reason, f'{camera}: {detail}')
        return pixels


def _unpack(message: Image | CompressedImage) -> NDArray[np.uint8]:
    if isinstance(message, CompressedImage):
        return compressed_to_rgb(message)
    return image_to_rgb(message)
