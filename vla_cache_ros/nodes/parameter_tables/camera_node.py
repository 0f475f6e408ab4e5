"""Parameters of camera_node."""

import dataclasses

from vla_cache_ros.nodes.parameters import ManagedParameters, parameter


@dataclasses.dataclass(frozen=True)
class CameraParameters(ManagedParameters):
    """Parameters of camera_node; read at each configure. They hold for all of its cameras."""

    camera_names: tuple[str, ...] = parameter(
        ('camera',), 'Cameras to publish; each becomes camera/<name>/image_raw.'
    )
    sources: tuple[str, ...] = parameter(
        ('/dev/video0',),
        'Where each camera\'s images come from: a V4L2 number ("0"), /dev/.., a name of '
        '/dev/v4l/by-id (usb-..), an rtsp or http URL, a video file, or a folder of pictures.',
    )
    frame_ids: tuple[str, ...] = parameter(
        ('',),
        "Each camera's optical frame, as many as cameras; empty: <name>_optical_frame.",
    )
    calibrations: tuple[str, ...] = parameter(
        ('',),
        "Each camera's calibration (YAML of camera_calibration), as many as cameras; it is "
        'published as camera/<name>/camera_info. Empty: none.',
    )
    width_px: int = parameter(
        0, "Width to ask for; 0: the source's own.", unit='px', valid=(0, 16384)
    )
    height_px: int = parameter(
        0, "Height to ask for; 0: the source's own.", unit='px', valid=(0, 16384)
    )
    frame_rate_hz: float = parameter(
        0.0,
        "Pictures per second to ask for; 0: the device's or video's own, 30 of a folder.",
        unit='Hz',
        valid=(0.0, 1000.0),
    )
    exposure: float = parameter(
        0.0,
        "Exposure time in the device's own unit (V4L2: 100 microseconds); 0: automatic.",
        valid=(0.0, 1e6),
    )
    fourcc: str = parameter(
        '', 'Pixel format on the wire, e.g. MJPG or YUYV; empty: the driver chooses.'
    )
    loop: bool = parameter(
        True, 'A video file or folder begins anew after its last picture; else it ends.'
    )
    publish_compressed: bool = parameter(
        False, 'Publish camera/<name>/image_raw/compressed (JPEG) too, while anyone listens.'
    )
    jpeg_quality: int = parameter(90, 'Quality of those.', valid=(1, 100))
    stall_timeout_s: float = parameter(
        1.0,
        'A camera silent for longer is reported as stalled; at least three of its periods.',
        unit='s',
        valid=(0.01, 600.0),
    )
    give_up_s: float = parameter(
        10.0,
        'A read that hangs for so long beyond that, or an opening, is given up and tried anew.',
        unit='s',
        valid=(0.01, 600.0),
    )
    first_backoff_s: float = parameter(
        0.5,
        'Wait before connecting anew; it doubles with every failure ..',
        unit='s',
        valid=(0.001, 600.0),
    )
    last_backoff_s: float = parameter(5.0, '.. up to this.', unit='s', valid=(0.001, 600.0))
    diagnostics_period_s: float = parameter(
        1.0,
        'Wall time between two reports on /diagnostics; a change of state is reported at once.',
        unit='s',
        valid=(0.01, 60.0),
    )
