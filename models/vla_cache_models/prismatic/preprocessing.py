"""Camera images as a checkpoint saw them in training.

In two parts, because the reuse compares pictures and the towers read numbers:

    view            camera image -> uint8 [S, S, 3], the picture that is cut into patches
    pixel_values    pictures -> [C, 3 * towers, S, S], normalised once for each tower

Resizing with lanczos3 and antialias (`tf.image.resize`), for output pixel i and a ratio
r = input side / output side:

    c_i      = (i + 1/2) r                                     its centre in the input
    w_ij     = k((j + 1/2 - c_i) / max(r, 1)),  k(x) = sinc(x) sinc(x / 3) for |x| < 3, else 0
    output_i = sum_j w_ij input_j / sum_j w_ij                 rows and columns in turn

Centre crop of a share a of the area, resized back (`tf.image.crop_and_resize`): output pixel i
lies at (S - 1) / 2 + sqrt(a) (i - (S - 1) / 2) and is interpolated linearly.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, cast

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from vla_cache_ros.core.errors import (
    CheckpointError,
    ConfigError,
    ObservationError,
    UnknownNameError,
)

JPEG_QUALITY = 95  # with halved chroma: what tf.image.encode_jpeg does unless told otherwise
RESIZE_STRATEGIES = ('resize-naive', 'letterbox', 'resize-crop')
INTERPOLATIONS = ('nearest', 'bilinear', 'bicubic', 'box', 'hamming', 'lanczos')

Triple = tuple[float, float, float]


@dataclass(frozen=True)
class ImageProtocol:
    """What a dataset did to its camera images before training.

    Attributes:
        mirror: Left and right were exchanged. LIBERO's data are OpenGL's bottom-up images rotated
            by 180 degrees, which is the upright image mirrored.
        jpeg_round_trip: The images were stored as JPEG and resized with lanczos3 (TensorFlow
            datasets); otherwise the checkpoint's own resize is the only one.
        crop_area: Share of the picture's area that the centre crop keeps; 1: no crop.
    """

    mirror: bool = False
    jpeg_round_trip: bool = False
    crop_area: float = 1.0

    def __post_init__(self) -> None:
        """Check the crop.

        Raises:
            ConfigError: It keeps nothing, or more than there is.
        """
        if not 0.0 < self.crop_area <= 1.0:
            raise ConfigError(
                f'crop_area is {self.crop_area}; it must be above 0 and at most 1 (no crop).'
            )


@dataclass(frozen=True)
class ImageTransform:
    """A checkpoint's own image transform.

    Attributes:
        image_size_px: S, the side of the picture that every tower sees.
        resize_strategy: One of RESIZE_STRATEGIES: stretch to a square, pad to a square, or scale
            the shorter side and crop the longer one.
        interpolation: One of INTERPOLATIONS, as Pillow computes it.
        means: Mean of each tower's channels, at a scale of 0 to 1.
        stds: Standard deviation likewise.
    """

    image_size_px: int
    resize_strategy: str
    interpolation: str
    means: tuple[Triple, ...]
    stds: tuple[Triple, ...]

    def __post_init__(self) -> None:
        """Check the names and numbers.

        Raises:
            UnknownNameError: There is no such strategy or interpolation.
            ConfigError: A number is out of range, or a tower lacks its mean or deviation.
        """
        if self.resize_strategy not in RESIZE_STRATEGIES:
            raise UnknownNameError('resize strategy', self.resize_strategy, RESIZE_STRATEGIES)
        if self.interpolation not in INTERPOLATIONS:
            raise UnknownNameError('interpolation', self.interpolation, INTERPOLATIONS)
        if self.image_size_px < 2:
            raise ConfigError(f'image_size_px is {self.image_size_px}; it must be at least 2.')
        if not self.means or len(self.means) != len(self.stds):
            raise ConfigError(
                f'there are {len(self.means)} means and {len(self.stds)} stds; every tower needs '
                'one of each.'
            )
        if any(len(triple) != 3 for triple in (*self.means, *self.stds)):
            raise ConfigError(
                f'means {self.means} and stds {self.stds} must hold three numbers a tower.'
            )
        if any(value <= 0 for std in self.stds for value in std):
            raise ConfigError(f'stds are {self.stds}; they must be above 0.')

    @classmethod
    def dinosiglip_224(cls) -> 'ImageTransform':
        """The transform of DINOv2 and SigLIP at 224 px, for checkpoints that carry none (CogACT).

        ImageNet's statistics for DINOv2, one half for SigLIP; the values are timm's.
        """
        half = (0.5, 0.5, 0.5)
        return cls(
            image_size_px=224,
            resize_strategy='resize-naive',
            interpolation='bicubic',
            means=((0.485, 0.456, 0.406), half),
            stds=((0.229, 0.224, 0.225), half),
        )

    @classmethod
    def from_preprocessor_config(cls, config: Mapping[str, Any]) -> 'ImageTransform':
        """Read Hugging Face's preprocessor_config.json.

        Args:
            config: The parsed file.

        Raises:
            CheckpointError: An entry is missing or malformed, contradicts another one, or asks
                for something that one picture for all towers cannot show.
        """
        keys = ('image_resize_strategy', 'input_sizes', 'interpolations', 'means', 'stds')
        missing = [key for key in keys if key not in config]
        if missing:
            raise CheckpointError(
                f'preprocessor_config.json lacks {", ".join(missing)}; an OpenVLA checkpoint '
                f'has {", ".join(keys)}.'
            )
        try:
            means, stds = _triples(config['means']), _triples(config['stds'])
            # The processor applies these copies, not the entries they were copied from.
            if 'tvf_normalize_params' in config:
                _check_copies(config['tvf_normalize_params'], means, stds)
            return cls(
                image_size_px=_common([side for _, *hw in config['input_sizes'] for side in hw]),
                resize_strategy=config['image_resize_strategy'],
                interpolation=_common(config['interpolations']),
                means=means,
                stds=stds,
            )
        except (ConfigError, KeyError, TypeError, ValueError) as error:
            reason = str(error) if isinstance(error, ConfigError) else repr(error)
            raise CheckpointError(
                f'preprocessor_config.json cannot be used: {reason} OpenVLA has one entry per '
                'tower: input_sizes [3, S, S], the name of an interpolation, means and stds of '
                'three numbers.'
            ) from error

    def view(self, image: NDArray[np.uint8], protocol: ImageProtocol) -> NDArray[np.uint8]:
        """Make the picture that is cut into patches.

        Args:
            image: RGB, upright, [H, W, 3].
            protocol: What the checkpoint's dataset did to its images.

        Returns:
            [S, S, 3], contiguous.

        Raises:
            ObservationError: The image is no uint8 [H, W, 3], or empty.
        """
        _check_image(image)
        size = self.image_size_px
        picture = np.ascontiguousarray(image)
        if protocol.mirror:
            picture = _as_bytes(cv2.flip(picture, 1))  # 20 times faster than a negative stride
        if picture.shape[:2] != (size, size):
            if protocol.jpeg_round_trip:
                picture = _resize_lanczos3(_jpeg_round_trip(picture), size)
            else:
                picture = self._resize(picture)
        if protocol.crop_area < 1.0:
            picture = _crop_centre(picture, protocol.crop_area)
        return picture

    def pixel_values(
        self,
        views: Sequence[NDArray[np.uint8]],
        device: torch.device | str = 'cpu',
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        """Normalise pictures for every tower.

            pixels = (view / 255 - mean) / std

        The pictures go to the device as bytes, in one copy; float32 until the last cast.

        Args:
            views: C pictures of `view`, [S, S, 3].
            device: Where the towers are.
            dtype: What the towers compute in.

        Returns:
            [C, 3 * towers, S, S], contiguous; the first tower's channels first.

        Raises:
            ObservationError: There is no picture, or one is no uint8 [S, S, 3].
        """
        size = self.image_size_px
        if not views:
            raise ObservationError('there is no picture; one per camera is needed.')
        for view in views:
            _check_image(view)
            if view.shape[:2] != (size, size):
                raise ObservationError(
                    f'a picture is {view.shape[0]} x {view.shape[1]} px where the towers see '
                    f'{size} x {size}; make it with ImageTransform.view.'
                )
        pixels = torch.from_numpy(np.stack(views)).to(device)
        planes = pixels.permute(0, 3, 1, 2).contiguous().unsqueeze(1)  # [C, 1, 3, S, S]
        mean, std = _statistics(self, pixels.device)
        return ((planes.float() / 255 - mean) / std).flatten(1, 2).to(dtype)

    def _resize(self, picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The checkpoint's own resize.

        Pillow itself, since torchvision hands Pillow's images to it: two passes with antialias,
        rounded to bytes in between.
        """
        from PIL import Image

        size = self.image_size_px
        filter_ = Image.Resampling[self.interpolation.upper()]
        if self.resize_strategy == 'resize-naive':
            resized = Image.fromarray(picture).resize((size, size), filter_)
            return np.array(resized)
        if self.resize_strategy == 'letterbox':
            picture = self._pad(picture)
        height, width = picture.shape[:2]
        shorter = min(height, width)
        scaled = (size * width // shorter, size * height // shorter)
        resized = np.asarray(Image.fromarray(picture).resize(scaled, filter_))
        # Python rounds halves to even, and so does the transform of the training.
        top, left = round((scaled[1] - size) / 2), round((scaled[0] - size) / 2)
        return np.ascontiguousarray(resized[top : top + size, left : left + size])

    def _pad(self, picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Pad the shorter side on both ends with the last tower's mean colour."""
        height, width = picture.shape[:2]
        rows, columns = (max(height, width) - height) // 2, (max(height, width) - width) // 2
        colour = tuple(int(255 * value) for value in self.means[-1])
        padded = cv2.copyMakeBorder(
            picture, rows, rows, columns, columns, cv2.BORDER_CONSTANT, value=colour
        )
        return _as_bytes(padded)


def _triples(values: Any) -> tuple[Triple, ...]:
    return tuple((float(red), float(green), float(blue)) for red, green, blue in values)


def _common(values: Sequence[Any]) -> Any:
    """The one value of all towers.

    Raises:
        ConfigError: There are several, or none.
    """
    if len(set(values)) != 1:
        raise ConfigError(
            f'it has {list(values)}, but all towers must see one square picture, resized in one '
            'way.'
        )
    return values[0]


def _check_copies(
    copies: Sequence[Mapping[str, Any]], means: tuple[Triple, ...], stds: tuple[Triple, ...]
) -> None:
    """Check that copies of the towers' statistics are equal to them, tower by tower.

    Raises:
        ConfigError: They are not.
    """
    copied = [(*copy['mean'], *copy['std']) for copy in copies]
    stated = [(*mean, *std) for mean, std in zip(means, stds, strict=False)]
    if np.shape(copied) != np.shape(stated) or not np.allclose(copied, stated, rtol=0, atol=1e-6):
        raise ConfigError(
            f'it contradicts itself: means and stds give {stated}, tvf_normalize_params {copied}.'
        )


def _check_image(image: Any) -> None:
    """Check that an image is one.

    Raises:
        ObservationError: It is no uint8 [H, W, 3], or empty.
    """
    if not isinstance(image, np.ndarray):
        raise ObservationError(
            f'an image is a {type(image).__name__}; it must be a numpy array, uint8 [H, W, 3].'
        )
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise ObservationError(
            f'an image is {image.dtype} {list(image.shape)}; it must be uint8 [H, W, 3], RGB, '
            'and not empty.'
        )


def _as_bytes(image: Any) -> NDArray[np.uint8]:
    """Tell the type checker what OpenCV's stubs leave open."""
    return cast(NDArray[np.uint8], image)


def _jpeg_round_trip(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Encode with halved chroma and decode: byte for byte what libjpeg-turbo gives elsewhere."""
    options = [
        cv2.IMWRITE_JPEG_QUALITY,
        JPEG_QUALITY,
        cv2.IMWRITE_JPEG_SAMPLING_FACTOR,
        cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420,
    ]
    # OpenCV encodes and decodes BGR.
    _, encoded = cv2.imencode('.jpg', cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), options)
    decoded = _as_bytes(cv2.imdecode(encoded, cv2.IMREAD_COLOR))
    return _as_bytes(cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB))


def _resize_lanczos3(picture: NDArray[np.uint8], size_px: int) -> NDArray[np.uint8]:
    """Resize to a square; see the module's equation.

    torch's, in float32: it evaluates the equation. Pillow's and torch's uint8 variants round
    between the passes, which moves a fifth of all pixels by a level or two.
    """
    values = torch.from_numpy(picture.astype(np.float32)).permute(2, 0, 1)
    resized = F.interpolate(values[None], (size_px, size_px), mode='lanczos', antialias=True)[0]
    return resized.round_().clamp_(0, 255).byte().permute(1, 2, 0).contiguous().numpy()


def _crop_centre(picture: NDArray[np.uint8], area: float) -> NDArray[np.uint8]:
    """Crop a share of a square picture's area and resize it back; see the module's equation.

    Back to bytes as `tf.image.convert_image_dtype` does it: floor(255.5 v) for v in 0 to 1.
    """
    values = torch.from_numpy(picture.astype(np.float32)).permute(2, 0, 1) / 255
    grid = _crop_grid(len(picture), area)
    cropped = F.grid_sample(values[None], grid, mode='bilinear', align_corners=True)[0]
    cropped = cropped.clamp_(0, 1).mul_(255.5).byte()
    return cropped.permute(1, 2, 0).contiguous().numpy()


@cache
def _crop_grid(size_px: int, area: float) -> Tensor:
    """Where the crop's pixels lie, (x, y) in -1 to 1 between the outer pixels, [1, S, S, 2]."""
    side = math.sqrt(area)
    line = torch.linspace(-side, side, size_px)
    return torch.stack(torch.meshgrid(line, line, indexing='xy'), dim=-1)[None]


@cache
def _statistics(transform: ImageTransform, device: torch.device) -> tuple[Tensor, Tensor]:
    """Mean and deviation of every tower's channels, each [towers, 3, 1, 1]."""
    mean, std = (
        torch.tensor(triples, device=device)[:, :, None, None]
        for triples in (transform.means, transform.stds)
    )
    return mean, std
