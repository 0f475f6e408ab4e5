"""What every environment checks of the arguments that it is given."""

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from vla_cache_ros.core.errors import ConfigError, UnknownNameError

MAX_IMAGE_SIZE_PX = 2048


def check_view(
    cameras: Sequence[str],
    known: Iterable[str],
    image_size_px: int,
    render_mode: str | None,
    render_modes: Sequence[str],
) -> None:
    """Check what an environment is to show.

    Args:
        cameras: As asked for.
        known: The cameras that there are.
        image_size_px: Side of the square images.
        render_mode: As asked for.
        render_modes: Those that there are, besides None.

    Raises:
        UnknownNameError: There is no such camera or render mode.
        ConfigError: A camera is named twice or none is, or the image size is out of range.
    """
    known = tuple(known)
    for camera in cameras:
        if camera not in known:
            raise UnknownNameError('camera', camera, known)
    if not cameras or len(set(cameras)) != len(cameras):
        raise ConfigError(f'cameras must name each camera once and at least one: {cameras!r}')
    if not 16 <= image_size_px <= MAX_IMAGE_SIZE_PX:
        raise ConfigError(
            f'image_size_px must lie in 16..{MAX_IMAGE_SIZE_PX}, not {image_size_px}'
        )
    if render_mode not in (None, *render_modes):
        raise UnknownNameError('render mode', render_mode, render_modes)


def check_reset_options(options: Iterable[str], valid: Sequence[str]) -> None:
    """Refuse options that a reset does not have.

    Raises:
        UnknownNameError: There is no such option.
    """
    for option in options:
        if option not in valid:
            raise UnknownNameError('reset option', option, valid)


def check_action(action: object, bounds: str = '') -> NDArray[np.float64]:
    """An action as float64 [7].

    Args:
        action: As given.
        bounds: What the message says of their range.

    Raises:
        ConfigError: Wrong shape, or a value that is not finite.
    """
    values = np.asarray(action, dtype=np.float64)
    if values.shape != (7,) or not np.isfinite(values).all():
        raise ConfigError(f'an action is 7 finite numbers{bounds}; got {values!r}')
    return values
