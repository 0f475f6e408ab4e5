"""One camera's status as /diagnostics shows it, levels as REP 107 means them."""

from collections.abc import Mapping
from typing import Any

from diagnostic_msgs.msg import DiagnosticStatus, KeyValue

from vla_cache_ros.nodes.cameras.reader import CameraStatus
from vla_cache_ros.nodes.cameras.wanted import WantedCamera


def camera_diagnostics(
    wanted: WantedCamera, status: CameraStatus, counts: Mapping[str, int], namespace: str
) -> DiagnosticStatus:
    """Judge a camera.

    OK: streaming as asked, or a file has ended. WARN: opening for the first time, or not as
    asked. ERROR: no pictures come.
    """
    remarks = not_as_asked(wanted, status)
    if status.state in ('waiting', 'stalled') or (status.state == 'opening' and status.failures):
        level, text = DiagnosticStatus.ERROR, f'{status.state}: {status.detail}'
    elif status.state == 'opening':
        level, text = DiagnosticStatus.WARN, 'opening'
    elif remarks:
        listed = ', '.join(f'{name} {what}' for name, what in remarks.items())
        level, text = DiagnosticStatus.WARN, f'{status.state}, not as asked: {listed}'
    elif status.state == 'streaming':
        level, text = DiagnosticStatus.OK, f'{status.rate_hz:.1f} Hz'
    else:
        level, text = DiagnosticStatus.OK, status.state
    values: dict[str, Any] = {
        'source': wanted.shown_source,
        'state': status.state,
        'detail': status.detail,
        'width_px': status.size_px[0],
        'height_px': status.size_px[1],
        'rate_hz': f'{status.rate_hz:.2f}',
        'frames': status.frames,
        'published': counts.get('published', 0),
        'superseded': counts.get('superseded', 0),
        'failures': status.failures,
        'reconnects': status.reconnects,
        'bad_pictures': status.bad_pictures,
        'stuck_threads': status.stuck,
    }
    values |= {f'not as asked: {name}': what for name, what in remarks.items()}
    return DiagnosticStatus(
        level=level,
        name=f'vla_cache: camera {wanted.name}',
        message=text,
        hardware_id=namespace,
        values=[KeyValue(key=key, value=str(value)) for key, value in values.items()],
    )


def not_as_asked(wanted: WantedCamera, status: CameraStatus) -> dict[str, str]:
    """Setting -> 'asked X, got Y', the calibration's size among them."""
    remarks = dict(status.refused)
    calibration = wanted.calibration
    if status.frames and calibration is not None and calibration.size_px != status.size_px:
        made_at, got = ('{}x{}'.format(*size) for size in (calibration.size_px, status.size_px))
        remarks['calibration'] = f'made at {made_at}, got {got}'
    return remarks
