"""Policy steps as messages: rows x columns of every camera, what comes back, what is refused."""

import contextlib
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rclpy.serialization import deserialize_message, serialize_message
from vla_cache_interfaces.msg import CameraReuse, StageTime, StepReport

from vla_cache_ros.core.errors import ObservationError
from vla_cache_ros.core.layout import CameraSpan, TokenLayout
from vla_cache_ros.core.plan import LayerGroup, PatchStatus, ReusePlan
from vla_cache_ros.core.types import ActionChunk
from vla_cache_ros.core.types import StepReport as CoreReport
from vla_cache_ros.nodes.report_checks import MAX_NAMES
from vla_cache_ros.nodes.step_messages import (
    GroupReuse,
    StepTimes,
    drop_to_message,
    message_to_step,
    step_to_message,
)

pytestmark = pytest.mark.ros

# A begin-of-sequence token, cameras of 2 x 3 and 1 x 2 patches, then 3 tokens of text.
LAYOUT = TokenLayout(
    cameras=(CameraSpan('base', 1, 2, 3), CameraSpan('wrist', 7, 1, 2)),
    text=(9, 12),
    actions=(12, 12),
    num_tokens=12,
)
TIMES = StepTimes(3.5, 1_000_000, 3_000_000, 13_000_000, 14_000_000)


def wire(message):
    return deserialize_message(serialize_message(message), type(message))


def step_chunk(reused: set[int], age: np.ndarray) -> ActionChunk:
    """A step that reuses these vision tokens in its last two of three layers."""
    slots = np.arange(LAYOUT.num_tokens)
    kept = np.isin(slots, [1 + token for token in reused])
    status = np.where(np.isin(np.arange(8), sorted(reused)), 0, PatchStatus.CHANGED)
    plan = ReusePlan(
        num_tokens=LAYOUT.num_tokens,
        groups=(LayerGroup(0, 1), LayerGroup(1, 3)),
        recompute=(slots, slots[~kept]),
        status=status.astype(np.uint8),
        age=age,
    )
    report = CoreReport(4, 'cached', {'vision': 1.5, 'head': 0.5}, plan, 'reset', 'camera moved')
    return ActionChunk(np.zeros((2, 7), np.float32), 77, report)


@given(
    reused=st.sets(st.integers(0, 7)),
    age=st.lists(st.integers(0, 10**6), min_size=8, max_size=8),
)
def test_each_camera_gets_its_own_patches(reused, age):
    ages = np.array(age, np.int32)
    message = wire(step_to_message(step_chunk(reused, ages), LAYOUT, TIMES, {'bad_image': 2}))
    step = message_to_step(message)
    base, wrist = step.cameras
    assert [(camera.name, camera.rows, camera.columns) for camera in step.cameras] == [
        ('base', 2, 3),
        ('wrist', 1, 2),
    ]
    assert base.reused == len(reused & set(range(6)))
    assert wrist.reused == len(reused & {6, 7})
    status = np.concatenate([base.status, wrist.status])
    assert set(np.flatnonzero(status == PatchStatus.REUSED).tolist()) == reused
    np.testing.assert_array_equal(
        np.concatenate([base.age_steps, wrist.age_steps]), np.minimum(ages, 65535)
    )
    ratio = (12 - len(reused)) / 12
    assert step.groups == (GroupReuse(0, 1, 1.0), GroupReuse(1, 3, float(np.float32(ratio))))
    assert step.recompute_ratio == pytest.approx((1 + 2 * ratio) / 3)


def test_times_words_and_counts_come_back():
    chunk = step_chunk({0}, np.zeros(8, np.int32))
    message = step_to_message(
        chunk,
        LAYOUT,
        TIMES,
        {'bad_image': 2},
        off_reason='over budget',
        reuse_pressure=0.5,
        deadline_missed=True,
    )
    step = message_to_step(wire(message))
    assert (step.stamp_ns, step.age_ms) == (77, 3.5)
    assert (step.received_ns, step.published_ns) == (1_000_000, 14_000_000)
    assert (step.queue_ms, step.inference_ms, step.publish_ms) == (2.0, 10.0, 1.0)
    assert step.stage_ms == {'vision': 1.5, 'head': 0.5}
    assert step.drops == {'bad_image': 2}
    assert (step.step, step.mode) == (4, 'cached')
    assert (step.flush_reason, step.keyframe_reason) == ('reset', 'camera moved')
    assert (step.off_reason, step.reuse_pressure) == ('over budget', 0.5)
    assert step.deadline_missed


def test_a_policy_without_a_report_still_has_times():
    chunk = ActionChunk(np.zeros((2, 7), np.float32), 5)
    step = message_to_step(wire(step_to_message(chunk, LAYOUT, TIMES, {})))
    assert (step.inference_ms, step.mode, step.cameras) == (10.0, '', ())


def test_a_drop_says_why():
    message = wire(drop_to_message(9, 'bad_image', 'no pixels; valid: some.', {'bad_image': 1}))
    assert (message.dropped, message.detail) == ('bad_image', 'no pixels; valid: some.')
    assert message.header.stamp.nanosec == 9
    assert [(count.reason, count.count) for count in message.drops] == [('bad_image', 1)]


def camera(**changes) -> CameraReuse:
    fields = {'name': 'c', 'rows': 1, 'columns': 2, 'status': [0, 1], 'age_steps': [1, 0]}
    return CameraReuse(**fields | changes)


@pytest.mark.parametrize(
    ('changes', 'said'),
    [
        ({'queue_ms': math.nan}, 'queue_ms is nan'),
        ({'inference_ms': -1.0}, 'inference_ms is -1'),
        ({'publish_ms': math.inf}, 'publish_ms is inf'),
        ({'age_ms': math.nan}, 'age_ms is nan'),
        ({'recompute_ratio': math.nan}, 'recompute_ratio is nan'),
        ({'received_ns': 10, 'published_ns': 9}, 'received <= published'),
        ({'received_ns': -1}, '0 <= received'),
        ({'mode': 'turbo'}, 'valid: nothing, dense, keyframe, cached'),
        ({'stages': [StageTime(name='head', ms=math.nan)]}, 'head is nan'),
        ({'stages': [StageTime()] * (MAX_NAMES + 1)}, 'at most'),
        ({'cameras': [camera()] * (MAX_NAMES + 1)}, 'at most'),
        ({'cameras': [camera(rows=2)]}, '2 x 2 patches'),
        ({'cameras': [camera(status=[0])]}, '1 of them with a status'),
        ({'cameras': [camera(age_steps=[])]}, '0 with an age'),
        ({'cameras': [camera(reused=3)]}, 'at most 2 reused'),
        ({'cameras': [camera(status=[0, 5])]}, 'status 5; valid: 0 to 4'),
        ({'group_start_layer': [0]}, '1, 0, 0 starts'),
        (
            {
                'group_start_layer': [2],
                'group_stop_layer': [2],
                'group_recompute_ratio': [1.0],
            },
            r'\[2, 2\) is empty',
        ),
    ],
)
def test_a_report_that_cannot_be_is_refused(changes, said):
    with pytest.raises(ObservationError, match=said):
        message_to_step(StepReport(**changes))


@given(
    numbers=st.lists(st.floats(), min_size=4, max_size=4),
    moments=st.tuples(st.integers(-(2**63), 2**63 - 1), st.integers(-(2**63), 2**63 - 1)),
    mode=st.text(max_size=6) | st.just('cached'),
    grid=st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 3)),
    status=st.lists(st.integers(0, 255), max_size=4),
)
def test_any_report_is_read_or_refused(numbers, moments, mode, grid, status):
    names = ('age_ms', 'queue_ms', 'inference_ms', 'publish_ms')
    message = StepReport(
        received_ns=moments[0],
        published_ns=moments[1],
        mode=mode,
        cameras=[CameraReuse(rows=grid[0], columns=grid[1], status=status, age_steps=status)],
        **dict(zip(names, numbers, strict=True)),
    )
    with contextlib.suppress(ObservationError):
        step = message_to_step(message)
        assert all(math.isfinite(value) for value in (step.age_ms, step.inference_ms))
        assert step.cameras[0].status.size == grid[0] * grid[1]
