r"""Pairing of images and robot states into one observation, by their stamps.

Cameras need not run in step. Of the images that wait, the newest set is taken, one of each camera,
whose stamps lie within the tolerance t of its oldest one a:

    chosen_c = the first image of camera c with stamp >= a,    stamp(chosen_c) <= a + t

for the newest a for which there is such a set, and robot states within t of a. Whatever waits and
is older than what was taken has found no partner; no image is taken twice.
"""

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vla_cache_ros.core.time_series import TimeSeries

IMAGE_HISTORY = 32
"""Images of one camera that wait at most: half a second at 60 Hz."""


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
        images: Camera -> what was given as its image.
        joints: Joint -> position nearest to the oldest image.
        pose: The pose message nearest to the oldest image.
        stamp_ns: Stamp of the oldest image.
    """

    images: Mapping[str, Any]
    joints: Mapping[str, float]
    pose: Any
    stamp_ns: int


class Pairing:
    """Keeps a short history of each camera, of each joint and of the pose, and pairs them.

    Attributes:
        waits_for_state: Whether, at the last `take`, nothing but a robot state was lacking.
    """

    def __init__(
        self,
        camera_names: Sequence[str],
        joint_names: Sequence[str],
        *,
        tolerance_ns: int,
        silence_ns: int,
        on_drop: Callable[[Drop], None],
    ) -> None:
        """Start empty.

        Args:
            camera_names: The cameras that an observation must hold.
            joint_names: The joints that it must hold; each may come in messages of its own.
            tolerance_ns: Greatest difference of stamps within one observation.
            silence_ns: A camera whose newest image is older than this, measured against another
                camera's, counts as missing; an image that waited this long is given up.
            on_drop: Told of every image that was kept and is not used.
        """
        self._tolerance_ns = tolerance_ns
        self._silence_ns = silence_ns
        self._on_drop = on_drop
        self._waiting: dict[str, list[tuple[int, Any]]] = {name: [] for name in camera_names}
        self._newest_ns: dict[str, int] = {}
        self._first_ns: int | None = None
        horizon_ns = tolerance_ns + silence_ns
        self._joints = {name: TimeSeries[float](horizon_ns) for name in joint_names}
        self._poses: TimeSeries[Any] = TimeSeries(horizon_ns)
        self._other_joints: tuple[str, ...] = ()
        self.waits_for_state = False

    @property
    def waiting(self) -> int:
        """Images that wait for their counterparts."""
        return sum(map(len, self._waiting.values()))

    def clear(self) -> None:
        """Forget everything, the newest stamps included; images that waited are drops."""
        for camera, images in self._waiting.items():
            for stamp_ns, _ in images:
                self._on_drop(
                    Drop('voided_image', f'{camera} image: a reset came first.', stamp_ns)
                )
            images.clear()
        self._newest_ns.clear()
        self._first_ns = None
        for series in self._joints.values():
            series.clear()
        self._poses.clear()
        self.waits_for_state = False

    def add_joints(self, names: Sequence[str], positions: Sequence[float], stamp_ns: int) -> None:
        """Keep what a joint-state message says of the joints that are wanted."""
        wanted = [name for name in self._joints if name in names]
        for name in wanted:
            index = names.index(name)
            if index < len(positions):  # a message may hold velocities or efforts alone
                self._joints[name].add(stamp_ns, positions[index])
        if not wanted:
            self._other_joints = tuple(names)

    def add_pose(self, pose: Any, stamp_ns: int) -> None:
        """Keep an end-effector pose message."""
        self._poses.add(stamp_ns, pose)

    def add_image(self, camera: str, image: Any, stamp_ns: int) -> Drop | None:
        """Keep an image.

        Returns:
            None; or this image's own drop, when its stamp does not move on ('repeated_stamp') or
            the clock went backwards ('clock_backwards': everything kept is then forgotten).
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
        self._waiting[camera].append((stamp_ns, image))
        self._newest_ns[camera] = stamp_ns
        self._give_up(camera)
        return None

    def take(self) -> PairedInputs | None:
        """Take out the newest observation that is complete, or None while there is none."""
        self.waits_for_state = False
        if not all(self._waiting.values()):
            return None
        anchors = {stamp_ns for images in self._waiting.values() for stamp_ns, _ in images}
        for anchor_ns in sorted(anchors, reverse=True):
            chosen = self._set_from(anchor_ns)
            if chosen is None:
                continue
            joints, pose = self._state_at(anchor_ns)
            if pose is None or len(joints) < len(self._joints):
                self.waits_for_state = True
                continue
            images = {name: self._waiting[name][at][1] for name, at in chosen.items()}
            for name, at in chosen.items():
                self._outrun(name, at)
            return PairedInputs(images, joints, pose, anchor_ns)
        return None

    def _set_from(self, anchor_ns: int) -> dict[str, int] | None:
        """Camera -> index of its image in the set whose oldest image has this stamp."""
        chosen: dict[str, int] = {}
        for camera, images in self._waiting.items():
            at = bisect_left(images, anchor_ns, key=lambda entry: entry[0])
            if at == len(images) or images[at][0] > anchor_ns + self._tolerance_ns:
                return None
            chosen[camera] = at
        return chosen

    def _state_at(self, stamp_ns: int) -> tuple[dict[str, float], Any]:
        """The positions of those joints that are known then, and the pose."""
        tolerance_ns = self._tolerance_ns
        found = {name: s.nearest(stamp_ns, tolerance_ns) for name, s in self._joints.items()}
        joints = {name: position for name, position in found.items() if position is not None}
        return joints, self._poses.nearest(stamp_ns, tolerance_ns)

    def _outrun(self, camera: str, taken: int) -> None:
        """Drop what is older than the image that was taken, and take that out."""
        images = self._waiting[camera]
        for stamp_ns, _ in images[:taken]:
            self._on_drop(self._unpaired(camera, stamp_ns))
        del images[: taken + 1]

    def _give_up(self, camera: str) -> None:
        """Drop what has waited too long, or waits for a camera or a joint that is silent."""
        images = self._waiting[camera]
        newest_ns = images[-1][0]
        missing = self._missing(camera)
        oldest_ns = newest_ns if missing else newest_ns - self._silence_ns
        while len(images) > 1 and (images[0][0] < oldest_ns or len(images) > IMAGE_HISTORY):
            stamp_ns, _ = images.pop(0)
            drop = Drop(*missing, stamp_ns) if missing else self._unpaired(camera, stamp_ns)
            self._on_drop(drop)

    def _missing(self, camera: str) -> tuple[str, str] | None:
        """What no waiting will bring: the reason of the drop, and what would be valid."""
        horizon_ns = self._newest_ns[camera] - self._silence_ns
        silent = [
            name
            for name in self._waiting
            if self._newest_ns.get(name, self._first_ns or 0) < horizon_ns
        ]
        if silent:
            return 'missing_camera', (
                f'no image from {", ".join(silent)} within {self._silence_ns / 1e9:g} s of '
                f'{camera}; valid: images of {", ".join(self._waiting)}.'
            )
        unheard = [name for name, series in self._joints.items() if not len(series)]
        if unheard and self._other_joints:
            return 'missing_joint', (
                f'joint states lack {", ".join(unheard)}; they hold: '
                f'{", ".join(self._other_joints)}. Set gripper_joint_names to the finger joints '
                'of your robot, and joint_state_topics to where they are published.'
            )
        return None

    def _unpaired(self, camera: str, stamp_ns: int) -> Drop:
        """Say what an image has waited for."""
        lacking = [
            name
            for name in self._waiting
            if name != camera and abs(self._newest_ns.get(name, 0) - stamp_ns) > self._tolerance_ns
        ]
        joints, pose = self._state_at(stamp_ns)
        lacking += [name for name in self._joints if name not in joints]
        lacking += [] if pose is not None else ['pose']
        return Drop(
            'unpaired_image',
            f'{camera} image found no {", ".join(lacking) or "partner"} within '
            f'{self._tolerance_ns / 1e9:g} s of its stamp.',
            stamp_ns,
        )
