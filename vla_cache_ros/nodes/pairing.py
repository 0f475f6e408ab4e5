"""Pairing of images and robot states into one observation, by their stamps."""

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

STATE_HISTORY = 16
"""States kept for pairing: 0.8 s at 20 Hz."""


@dataclass(frozen=True)
class Drop:
    """An input that was not used.

    Attributes:
        reason: Short name that is counted, e.g. 'unpaired_image'.
        detail: What was wrong and what would have been valid.
        stamp_ns: Stamp of the input.
    """

    reason: str
    detail: str
    stamp_ns: int


@dataclass(frozen=True)
class PairedInputs:
    """Inputs of one observation, all within the tolerance of one another.

    Attributes:
        images: Camera -> uint8 [H, W, 3].
        joints: The joint-state message nearest to the oldest image.
        pose: The pose message nearest to the oldest image.
        stamp_ns: Stamp of the oldest image.
    """

    images: Mapping[str, NDArray[np.uint8]]
    joints: Any
    pose: Any
    stamp_ns: int


class Pairing:
    """Keeps the newest image of each camera and a short history of states, and pairs them."""

    def __init__(self, camera_names: Sequence[str], tolerance_ns: int, silence_ns: int) -> None:
        """Start empty.

        Args:
            camera_names: The cameras that an observation must hold.
            tolerance_ns: Greatest difference of stamps within one observation.
            silence_ns: A camera whose newest image is older than this, measured against another
                camera's, counts as missing.
        """
        self._camera_names = tuple(camera_names)
        self._tolerance_ns = tolerance_ns
        self._silence_ns = silence_ns
        self._images: dict[str, tuple[int, NDArray[np.uint8]]] = {}
        self._newest_ns: dict[str, int] = {}
        self._first_ns: int | None = None
        self._joints: deque[tuple[int, Any]] = deque(maxlen=STATE_HISTORY)
        self._poses: deque[tuple[int, Any]] = deque(maxlen=STATE_HISTORY)

    def clear(self) -> None:
        """Forget everything, the newest stamps included."""
        self._images.clear()
        self._newest_ns.clear()
        self._first_ns = None
        self._joints.clear()
        self._poses.clear()

    def add_joints(self, message: Any, stamp_ns: int) -> None:
        """Keep a joint-state message."""
        self._joints.append((stamp_ns, message))

    def add_pose(self, message: Any, stamp_ns: int) -> None:
        """Keep an end-effector pose message."""
        self._poses.append((stamp_ns, message))

    def add_image(self, camera: str, pixels: NDArray[np.uint8], stamp_ns: int) -> Drop | None:
        """Keep an image as its camera's newest.

        Returns:
            What was dropped thereby: this image, when its stamp does not move on
            ('repeated_stamp') or the clock went backwards ('clock_backwards': everything kept is
            then forgotten); or the image it replaces, when that never found its counterparts
            ('unpaired_image', 'missing_camera').
        """
        newest_ns = self._newest_ns.get(camera)
        if newest_ns is not None and stamp_ns < newest_ns:
            self.clear()
            return Drop(
                'clock_backwards',
                f'{camera} image is stamped {(newest_ns - stamp_ns) / 1e9:.3f} s before its '
                'predecessor; pairing starts anew with the next images.',
                stamp_ns,
            )
        if stamp_ns == newest_ns:
            return Drop(
                'repeated_stamp',
                f'{camera} image repeats the stamp {stamp_ns} ns; valid: the time of its capture.',
                stamp_ns,
            )
        if self._first_ns is None:
            self._first_ns = stamp_ns
        replaced = self._images.get(camera)
        self._images[camera] = (stamp_ns, pixels)
        self._newest_ns[camera] = stamp_ns
        return None if replaced is None else self._explain_unpaired(camera, replaced[0])

    def take(self) -> PairedInputs | None:
        """Take out the images of one observation, or None while something is missing."""
        if len(self._images) < len(self._camera_names):
            return None
        stamps = [stamp_ns for stamp_ns, _ in self._images.values()]
        oldest_ns = min(stamps)
        if max(stamps) - oldest_ns > self._tolerance_ns:
            return None
        joints = self._nearest(self._joints, oldest_ns)
        pose = self._nearest(self._poses, oldest_ns)
        if joints is None or pose is None:
            return None
        images = {name: self._images[name][1] for name in self._camera_names}
        self._images.clear()
        return PairedInputs(images, joints, pose, oldest_ns)

    def _nearest(self, history: deque[tuple[int, Any]], stamp_ns: int) -> Any:
        """Message nearest to a stamp, or None when none is within the tolerance."""
        if not history:
            return None
        nearest_ns, message = min(history, key=lambda entry: abs(entry[0] - stamp_ns))
        return message if abs(nearest_ns - stamp_ns) <= self._tolerance_ns else None

    def _explain_unpaired(self, camera: str, stamp_ns: int) -> Drop:
        """Say why an image was replaced before it could be used."""
        horizon_ns = self._newest_ns[camera] - self._silence_ns
        silent = [
            name
            for name in self._camera_names
            if self._newest_ns.get(name, self._first_ns or 0) < horizon_ns
        ]
        if silent:
            return Drop(
                'missing_camera',
                f'no image from {", ".join(silent)} within {self._silence_ns / 1e9:g} s of '
                f'{camera}; valid: images of {", ".join(self._camera_names)}.',
                stamp_ns,
            )
        lacking = [
            name
            for name in self._camera_names
            if name != camera and abs(self._newest_ns.get(name, 0) - stamp_ns) > self._tolerance_ns
        ]
        lacking += [
            name
            for name, history in (('joint states', self._joints), ('pose', self._poses))
            if self._nearest(history, stamp_ns) is None
        ]
        return Drop(
            'unpaired_image',
            f'{camera} image found no {", ".join(lacking) or "partner"} within '
            f'{self._tolerance_ns / 1e9:g} s of its stamp.',
            stamp_ns,
        )
