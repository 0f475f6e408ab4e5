"""From a source's name to the source."""

import re
from pathlib import Path

from vla_cache_ros.core.errors import ConfigError
from vla_cache_ros.nodes.cameras.devices import DeviceSource, StreamSource
from vla_cache_ros.nodes.cameras.files import FolderSource, VideoSource
from vla_cache_ros.nodes.cameras.settings import CameraSettings, SourceFactory

BY_ID = Path('/dev/v4l/by-id')
STREAM_SCHEMES = ('rtsp', 'rtsps', 'http', 'https')


def source_factory(text: str, settings: CameraSettings) -> SourceFactory:
    """Find out from a source's name what it is; whether it is there shows when it is opened.

    Args:
        text: A V4L2 index ('0'), device ('/dev/video0'), name below /dev/v4l/by-id ('usb-..'),
            rtsp or http URL, video file, or folder of pictures.
        settings: What is asked of it.

    Raises:
        ConfigError: It is none of these.
    """
    if re.fullmatch(r'\d{1,3}', text):
        return lambda clock, pause: DeviceSource(f'/dev/video{text}', settings, clock)
    if text.startswith('/dev/'):
        return lambda clock, pause: DeviceSource(text, settings, clock)
    if re.fullmatch(r'usb-[\w.:+-]+', text):
        return lambda clock, pause: DeviceSource(str(BY_ID / text), settings, clock)
    scheme, separator, rest = text.partition('://')
    if separator and rest and scheme in STREAM_SCHEMES:
        return lambda clock, pause: StreamSource(text, settings, clock)
    if not text or separator or '!' in text or '\0' in text:
        raise ConfigError(
            f'camera source {text!r}; valid: a number, /dev/.., usb-.. (a name of {BY_ID}), a '
            f'URL of {", ".join(STREAM_SCHEMES)}, a video file or a folder of pictures.'
        )
    path = Path(text).expanduser()
    return lambda clock, pause: (
        FolderSource(path, settings, clock, pause)
        if path.is_dir()
        else VideoSource(path, settings, clock, pause)
    )
