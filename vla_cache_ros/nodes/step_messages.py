"""Policy steps <-> vla_cache_interfaces/StepReport.

The writers take what the policy node has at hand. The reader trusts nothing: a report with NaN,
lengths that contradict one another or an unknown word is refused, and counted by who reads it.
"""

import array
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from vla_cache_interfaces.msg import CameraReuse as CameraReuseMessage
from vla_cache_interfaces.msg import StageTime, StepReport

from vla_cache_ros.core.errors import ObservationError
from vla_cache_ros.core.layout import TokenLayout
from vla_cache_ros.core.plan import PatchStatus, ReusePlan
from vla_cache_ros.core.types import ActionChunk
from vla_cache_ros.nodes.conversions import ns_to_stamp, stamp_to_ns
from vla_cache_ros.nodes.report_checks import (
    counts_to_message,
    message_to_counts,
    need_amount,
    need_few,
    need_word,
)

MODES = ('dense', 'keyframe', 'cached')
"""How a policy step ran; empty where the policy does not say."""

ROUTINE_DROPS = frozenset(
    {
        'unpaired_image',
        'voided_image',
        'superseded',
        'repeated_stamp',
        'not_due',
        'bad_committed',
    }
)
"""Drops that are part of normal running, where the next image is on its way: no empty chunk."""

_MAX_AGE_STEPS = np.iinfo(np.uint16).max


@dataclass(frozen=True)
class CameraReuse:
    """What a step did with one camera's patches, row by row.

    Attributes:
        name: The camera.
        rows, columns: Its grid of patches.
        reused: Patches whose K/V was kept in at least one layer group.
        status: PatchStatus, uint8 [rows * columns].
        age_steps: Steps since each patch's K/V was computed, uint16 [rows * columns].
    """

    name: str
    rows: int
    columns: int
    reused: int
    status: NDArray[np.uint8]
    age_steps: NDArray[np.uint16]


@dataclass(frozen=True)
class GroupReuse:
    """Recomputed tokens of one layer group [start, stop), as a share of all."""

    start: int
    stop: int
    recompute_ratio: float


@dataclass(frozen=True)
class StepTimes:
    """When a policy step happened.

    Attributes:
        age_ms: Age of the oldest image at receipt, by the node's clock.
        received_ns, started_ns, finished_ns, published_ns: CLOCK_MONOTONIC at receipt of the last
            input, start and end of the inference, and after the chunk was published.
    """

    age_ms: float
    received_ns: int
    started_ns: int
    finished_ns: int
    published_ns: int


@dataclass(frozen=True)
class PolicyStep:
    """A policy step as reported; times in the message's units."""

    stamp_ns: int
    age_ms: float
    received_ns: int
    published_ns: int
    queue_ms: float
    inference_ms: float
    publish_ms: float
    stage_ms: Mapping[str, float]
    drops: Mapping[str, int]
    step: int
    mode: str
    flush_reason: str = ''
    keyframe_reason: str = ''
    off_reason: str = ''
    recompute_ratio: float = 1.0
    groups: tuple[GroupReuse, ...] = ()
    cameras: tuple[CameraReuse, ...] = field(default=(), compare=False)
    reuse_pressure: float = 0.0
    deadline_missed: bool = False


def step_to_message(
    chunk: ActionChunk,
    layout: TokenLayout,
    times: StepTimes,
    drops: Mapping[str, int],
    *,
    off_reason: str = '',
    reuse_pressure: float = 0.0,
    deadline_missed: bool = False,
) -> StepReport:
    """Report one policy step.

    Args:
        chunk: What the policy returned.
        layout: The policy's, which says where each camera's patches are.
        times: When it happened.
        drops: Dropped inputs so far, by reason.
        off_reason: Why reuse is switched off; empty while it is on.
        reuse_pressure: How far late refreshes have raised the reuse, 0 to 1.
        deadline_missed: Whether this step was late.
    """
    message = StepReport()
    message.header.stamp = ns_to_stamp(chunk.stamp_ns)
    message.drops = counts_to_message(drops)
    message.age_ms = float(times.age_ms)
    message.received_ns = times.received_ns
    message.published_ns = times.published_ns
    message.queue_ms = (times.started_ns - times.received_ns) / 1e6
    message.inference_ms = (times.finished_ns - times.started_ns) / 1e6
    message.publish_ms = (times.published_ns - times.finished_ns) / 1e6
    message.recompute_ratio = 1.0
    message.off_reason = off_reason
    message.reuse_pressure = float(reuse_pressure)
    message.deadline_missed = deadline_missed
    if chunk.report is None:
        return message
    report, plan = chunk.report, chunk.report.plan
    message.stages = [
        StageTime(name=name, ms=float(value_ms)) for name, value_ms in report.stage_ms.items()
    ]
    message.step = report.step
    message.mode = report.mode
    message.flush_reason = report.flush_reason
    message.keyframe_reason = report.keyframe_reason
    message.recompute_ratio = plan.recompute_ratio
    message.group_start_layer = [group.start for group in plan.groups]
    message.group_stop_layer = [group.stop for group in plan.groups]
    message.group_recompute_ratio = [len(slots) / plan.num_tokens for slots in plan.recompute]
    message.cameras = _cameras(plan, layout)
    return message


def drop_to_message(
    stamp_ns: int, reason: str, detail: str, drops: Mapping[str, int]
) -> StepReport:
    """Report an observation that was not used, and what would have been valid."""
    message = StepReport(dropped=reason, detail=detail, drops=counts_to_message(drops))
    message.header.stamp = ns_to_stamp(stamp_ns)
    return message


def message_to_step(message: StepReport) -> PolicyStep:
    """Read the report of a step; one with `dropped` set is not a step.

    Raises:
        ObservationError: The report contradicts itself.
    """
    for name in ('queue_ms', 'inference_ms', 'publish_ms', 'recompute_ratio', 'reuse_pressure'):
        need_amount(name, getattr(message, name))
    if not math.isfinite(message.age_ms):
        raise ObservationError(f'age_ms is {message.age_ms}; valid: a finite number.')
    if not 0 <= message.received_ns <= message.published_ns:
        raise ObservationError(
            f'received at {message.received_ns} ns, published at {message.published_ns} ns; '
            'valid: 0 <= received <= published.'
        )
    need_word('mode', message.mode, ('', *MODES))
    need_few('cameras', message.cameras)
    need_few('stages', message.stages)
    for stage in message.stages:
        need_amount(stage.name, stage.ms)
    return PolicyStep(
        stamp_ns=stamp_to_ns(message.header.stamp),
        age_ms=message.age_ms,
        received_ns=message.received_ns,
        published_ns=message.published_ns,
        queue_ms=message.queue_ms,
        inference_ms=message.inference_ms,
        publish_ms=message.publish_ms,
        stage_ms={stage.name: stage.ms for stage in message.stages},
        drops=message_to_counts(message.drops),
        step=message.step,
        mode=message.mode,
        flush_reason=message.flush_reason,
        keyframe_reason=message.keyframe_reason,
        off_reason=message.off_reason,
        recompute_ratio=message.recompute_ratio,
        groups=_read_groups(message),
        cameras=tuple(_read_camera(camera) for camera in message.cameras),
        reuse_pressure=message.reuse_pressure,
        deadline_missed=message.deadline_missed,
    )


def _cameras(plan: ReusePlan, layout: TokenLayout) -> list[CameraReuseMessage]:
    """What the plan did, camera by camera."""
    first_slot, stop_slot = layout.vision
    kept = np.ones(layout.num_vision, dtype=bool)
    last = plan.recompute[-1]  # of the nested sets the smallest
    kept[last[(last >= first_slot) & (last < stop_slot)] - first_slot] = False
    age = np.clip(plan.age, 0, _MAX_AGE_STEPS).astype(np.uint16)
    cameras: list[CameraReuseMessage] = []
    for camera in layout:
        span = slice(camera.start - first_slot, camera.stop - first_slot)
        cameras.append(
            CameraReuseMessage(
                name=camera.name,
                rows=camera.rows,
                columns=camera.cols,
                reused=int(kept[span].sum()),
                status=array.array('B', plan.status[span].astype(np.uint8).tobytes()),
                age_steps=array.array('H', age[span].tobytes()),
            )
        )
    return cameras


def _read_camera(message: CameraReuseMessage) -> CameraReuse:
    size = message.rows * message.columns
    lengths = {len(message.status), len(message.age_steps)}
    status = np.array(message.status, np.uint8)
    if lengths != {size} or message.reused > size:
        raise ObservationError(
            f'camera {message.name!r} has {message.rows} x {message.columns} patches, '
            f'{len(message.status)} of them with a status, {len(message.age_steps)} with an age, '
            f'{message.reused} reused; valid: {size} each, at most {size} reused.'
        )
    if size and status.max() > max(PatchStatus):
        raise ObservationError(
            f'camera {message.name!r} has a patch of status {status.max()}; valid: 0 to '
            f'{max(PatchStatus):d}.'
        )
    return CameraReuse(
        name=message.name,
        rows=message.rows,
        columns=message.columns,
        reused=message.reused,
        status=status,
        age_steps=np.array(message.age_steps, np.uint16),
    )


def _read_groups(message: StepReport) -> tuple[GroupReuse, ...]:
    columns = (message.group_start_layer, message.group_stop_layer, message.group_recompute_ratio)
    if len({len(column) for column in columns}) != 1:
        raise ObservationError(
            f'layer groups have {", ".join(str(len(column)) for column in columns)} starts, stops '
            'and ratios; valid: as many of each.'
        )
    groups = tuple(GroupReuse(*row) for row in zip(*columns, strict=True))
    for group in groups:
        if group.start >= group.stop:
            raise ObservationError(
                f'layer group [{group.start}, {group.stop}) is empty; valid: start below stop.'
            )
        need_amount('recompute ratio of a layer group', group.recompute_ratio)
    return groups
