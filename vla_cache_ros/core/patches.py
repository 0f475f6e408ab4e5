r"""Which patches changed since their K/V was computed.

Every vision token is compared with its reference pixels: those of the step at which its K/V was
computed, not those of frame t-1, so slow drift adds up until it is seen. With x the patch now, r
its reference, n its number of values (pixels x 3 channels) and <,> the dot product:

    similarity = <x, r> / sqrt(<x, x> <r, r>)                          cosine, as published    (1)
    difference = sqrt((<x, x> + <r, r> - 2 <x, r>) / n) / 255          RMS, of full scale      (2)

Cosine alone is blind to brightness (x = c r gives 1) and undefined on black; the RMS difference
sees both. <x, r> is all that a comparison has to compute: <x, x> becomes <r, r> later. All sums
are exact integers (float32 within a patch column, float64 across), so an identical patch gives
exactly 1 and 0.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from vla_cache_ros.core.errors import ObservationError
from vla_cache_ros.core.layout import CameraSpan, TokenLayout


@dataclass(frozen=True)
class PatchChange:
    """How each vision token's pixels differ from its reference pixels; cameras in layout order.

    Attributes:
        similarity: Cosine, equation (1), float32 [V], in [0, 1]. Two black patches are identical
            (1); a black and a non-black one have nothing in common (0).
        difference: RMS difference as a share of full scale, equation (2), float32 [V], in [0, 1].
    """

    similarity: NDArray[np.float32]
    difference: NDArray[np.float32]


@dataclass(frozen=True)
class PatchFrame:
    """One step's images, ready to be compared: a private copy with the patches' <x, x>.

    Attributes:
        pixels: Per camera, float32 [H, W, 3].
        energy: <x, x> per vision token, float64 [V].
    """

    pixels: tuple[NDArray[np.float32], ...]
    energy: NDArray[np.float64]


def check_images(
    images: Mapping[str, NDArray[np.uint8]], layout: TokenLayout
) -> tuple[tuple[int, int], ...]:
    """Check that the images of the layout's cameras can be cut into its patches.

    Args:
        images: Camera name -> uint8 [H, W, 3], as the model sees them; H and W are multiples of
            the camera's rows and cols. Cameras that the layout does not name are ignored.
        layout: The token layout.

    Returns:
        (H, W) per camera, in layout order.

    Raises:
        ObservationError: A camera is missing, or an image has the wrong type or shape.
    """
    return tuple(_checked_size(images, camera) for camera in layout)


def prepare_frame(images: Mapping[str, NDArray[np.uint8]], layout: TokenLayout) -> PatchFrame:
    """Copy the images of the layout's cameras and precompute what every comparison needs.

    Args:
        images: Camera name -> uint8 [H, W, 3]; see check_images.
        layout: The token layout.

    Raises:
        ObservationError: A camera is missing, or an image has the wrong type or shape.
    """
    check_images(images, layout)
    pixels = tuple(images[camera.name].astype(np.float32, order='C') for camera in layout)
    energy = [_patch_dot(x, x, camera) for x, camera in zip(pixels, layout, strict=True)]
    return PatchFrame(pixels, np.concatenate(energy))


class PatchReference:
    """The pixels from which each vision token's K/V was computed, and the token's age.

    Attributes:
        age: Steps since each vision token's K/V was computed, int32 [V]; 0 for the step itself.
    """

    def __init__(self, frame: PatchFrame, layout: TokenLayout) -> None:
        """Take a frame of which every vision token was computed as the reference.

        Args:
            frame: The images of the keyframe.
            layout: The token layout.
        """
        self._layout = layout
        self._pixels = tuple(image.copy() for image in frame.pixels)
        self._energy = frame.energy.copy()
        self._values = np.concatenate(
            [
                np.full(camera.size, image.size / camera.size)
                for image, camera in zip(frame.pixels, layout, strict=True)
            ]
        )
        self.age = np.zeros(layout.num_vision, dtype=np.int32)

    def compare(self, frame: PatchFrame) -> PatchChange:
        """Compare a frame with the reference, equations (1) and (2).

        Args:
            frame: The step's images, of the reference's sizes.
        """
        dot = np.concatenate(
            [
                _patch_dot(x, r, camera)
                for x, r, camera in zip(frame.pixels, self._pixels, self._layout, strict=True)
            ]
        )
        norms = np.sqrt(frame.energy * self._energy)
        both_black = frame.energy + self._energy == 0
        similarity = np.divide(dot, norms, out=both_black.astype(np.float64), where=norms > 0)
        squares = np.maximum(frame.energy + self._energy - 2 * dot, 0)
        difference = np.sqrt(squares / self._values) / 255
        return PatchChange(similarity.astype(np.float32), difference.astype(np.float32))

    def update(self, frame: PatchFrame, computed: NDArray[np.bool_]) -> None:
        """Make the frame the reference of the tokens computed from it; the others age by a step.

        Args:
            frame: The images of the step that has just run.
            computed: Whether the token's K/V was computed in every layer, bool [V].
        """
        offset = 0
        for camera, x, r in zip(self._layout, frame.pixels, self._pixels, strict=True):
            tokens = computed[offset : offset + camera.size]
            offset += camera.size
            cv2.copyTo(x, _pixel_mask(tokens, camera, x.shape), r)
        np.copyto(self._energy, frame.energy, where=computed)
        self.age += 1
        self.age[computed] = 0


def _checked_size(images: Mapping[str, NDArray[np.uint8]], camera: CameraSpan) -> tuple[int, int]:
    image = images.get(camera.name)
    if image is None:
        raise ObservationError(
            f'camera {camera.name!r} is missing; the observation holds: '
            f'{", ".join(images) or "none"}.'
        )
    valid = (
        image.dtype == np.uint8
        and image.ndim == 3
        and image.shape[2] == 3
        and image.size > 0
        and image.shape[0] % camera.rows == 0
        and image.shape[1] % camera.cols == 0
    )
    if not valid:
        raise ObservationError(
            f'image of camera {camera.name!r} is {image.dtype} {list(image.shape)}; valid: uint8 '
            f'[H, W, 3] with H a multiple of {camera.rows} and W of {camera.cols} patches.'
        )
    return image.shape[0], image.shape[1]


def _patch_dot(
    a: NDArray[np.float32], b: NDArray[np.float32], camera: CameraSpan
) -> NDArray[np.float64]:
    """<a, b> of every patch, float64 [P]: down the rows of a patch first, then across."""
    strips = (camera.rows, a.shape[0] // camera.rows, -1)
    columns = np.einsum('rhw,rhw->rw', a.reshape(strips), b.reshape(strips))
    return columns.reshape(camera.size, -1) @ np.ones(columns.size // camera.size)


def _pixel_mask(
    tokens: NDArray[np.bool_], camera: CameraSpan, shape: tuple[int, ...]
) -> NDArray[np.uint8]:
    """The tokens' pixels, uint8 [H, W], 1 inside."""
    height, width = shape[0] // camera.rows, shape[1] // camera.cols
    mask = np.empty((camera.rows, height, camera.cols, width), dtype=np.uint8)
    mask[:] = tokens.reshape(camera.rows, 1, camera.cols, 1)
    return mask.reshape(shape[0], shape[1])
