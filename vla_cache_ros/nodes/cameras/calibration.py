"""A camera's calibration as ROS's camera_calibration writes it, checked. No ROS here."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from vla_cache_ros.core.errors import ConfigError

_MAX_FILE_BYTES = 1 << 20
_IDENTITY = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)


@dataclass(frozen=True)
class Calibration:
    """Intrinsics of one camera; see sensor_msgs/CameraInfo.

    Attributes:
        size_px: Width and height that it was made at.
        distortion_model: e.g. plumb_bob.
        d: Distortion coefficients.
        k: Camera matrix, [3, 3] row by row.
        r: Rectification matrix, [3, 3] row by row.
        p: Projection matrix, [3, 4] row by row.
    """

    size_px: tuple[int, int]
    distortion_model: str
    d: tuple[float, ...]
    k: tuple[float, ...]
    r: tuple[float, ...]
    p: tuple[float, ...]


def load_calibration(path: Path) -> Calibration:
    """Read a calibration file.

    Raises:
        ConfigError: It is missing, not YAML, or a field is missing or of the wrong length.
    """
    try:
        content = _content(path)
        k = _numbers(content, 'camera_matrix', 9)
        no_projection = (*k[:3], 0.0, *k[3:6], 0.0, *k[6:], 0.0)
        return Calibration(
            size_px=(_size(content, 'image_width'), _size(content, 'image_height')),
            distortion_model=_word(content, 'distortion_model', 'plumb_bob'),
            d=_numbers(content, 'distortion_coefficients', None),
            k=k,
            r=_numbers(content, 'rectification_matrix', 9, _IDENTITY),
            p=_numbers(content, 'projection_matrix', 12, no_projection),
        )
    except (OSError, yaml.YAMLError, ValueError, TypeError, KeyError, RecursionError) as error:
        reason = f'it lacks {error}' if isinstance(error, KeyError) else str(error)
        raise ConfigError(
            f'calibration {path} cannot be used: {reason}. Valid: a file that `ros2 run '
            'camera_calibration cameracalibrator` wrote.'
        ) from error


def _content(path: Path) -> dict[str, Any]:
    if not path.is_file():  # a named pipe would block for ever
        raise ValueError('there is no such file')
    with path.open('rb') as file:
        text = file.read(_MAX_FILE_BYTES).decode('utf-8')
    # Aliases that refer to aliases make gigabytes of a few lines.
    if any(isinstance(token, yaml.AliasToken) for token in yaml.scan(text)):
        raise ValueError('it holds aliases (*name)')
    content = yaml.safe_load(text)
    if not isinstance(content, dict):
        raise TypeError('it holds no mapping')
    return content


def _word(content: dict[str, Any], name: str, default: str) -> str:
    value = content.get(name, default)
    if not isinstance(value, str):
        raise TypeError(f'{name} is not a word')
    return value


def _size(content: dict[str, Any], name: str) -> int:
    value = content[name]
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 1 << 16:
        raise ValueError(f'{name} is {value!r}; valid: 1 to 65535')
    return value


def _numbers(
    content: dict[str, Any], name: str, count: int | None, default: tuple[float, ...] | None = None
) -> tuple[float, ...]:
    """The `data` of a matrix."""
    if name not in content and default is not None:
        return default
    values = tuple(float(value) for value in content[name]['data'])
    if count is not None and len(values) != count:
        raise ValueError(f'{name} holds {len(values)} numbers; valid: {count}')
    if not all(map(math.isfinite, values)):
        raise ValueError(f'{name} holds NaN or infinity')
    return values
