"""The cameras that camera_node's parameters name, checked against one another. No ROS here."""

import re
from dataclasses import dataclass
from pathlib import Path

from vla_cache_ros.core.errors import ConfigError
from vla_cache_ros.nodes.cameras.calibration import Calibration, load_calibration
from vla_cache_ros.nodes.cameras.settings import without_password
from vla_cache_ros.nodes.parameter_tables.camera_node import CameraParameters


@dataclass(frozen=True)
class WantedCamera:
    """One camera.

    Attributes:
        name: Its name, part of its topics'.
        source: Where its images come from.
        frame_id: Its optical frame.
        calibration: Its calibration; None where none was given.
    """

    name: str
    source: str
    frame_id: str
    calibration: Calibration | None

    @property
    def shown_source(self) -> str:
        """The source as it may be logged."""
        return without_password(self.source)


def wanted_cameras(parameters: CameraParameters) -> list[WantedCamera]:
    """List the cameras.

    Raises:
        ConfigError: Lengths differ, a name or a source comes twice, a name is no topic's, or a
            calibration cannot be read.
    """
    names, sources = parameters.camera_names, parameters.sources
    count = len(names)
    if count == 0 or len(sources) != count:
        raise ConfigError(
            f'camera_names holds {count} names and sources {len(sources)}; valid: as many of '
            'the one as of the other, at least one.'
        )
    for name in names:
        if not re.fullmatch(r'[A-Za-z][A-Za-z0-9_]*', name):
            raise ConfigError(
                f'camera name {name!r}; valid: letters, digits and underscores, a letter first.'
            )
    for what, values in (('camera_names', names), ('sources', sources)):
        twice = sorted({without_password(value) for value in values if values.count(value) > 1})
        if twice:
            raise ConfigError(f'{what} holds {", ".join(twice)} twice; valid: each once.')
    frame_ids = _one_each('frame_ids', parameters.frame_ids, count)
    calibrations = _one_each('calibrations', parameters.calibrations, count)
    return [
        WantedCamera(
            name=name,
            source=source,
            frame_id=frame_id or f'{name}_optical_frame',
            calibration=load_calibration(Path(path).expanduser()) if path else None,
        )
        for name, source, frame_id, path in zip(
            names, sources, frame_ids, calibrations, strict=True
        )
    ]


def _one_each(what: str, values: tuple[str, ...], count: int) -> tuple[str, ...]:
    """As many values as cameras; none given stands for an empty one each."""
    if not any(values):
        return ('',) * count
    if len(values) != count:
        raise ConfigError(
            f'{what} holds {len(values)} values for {count} cameras; valid: {count}, or none.'
        )
    return values
