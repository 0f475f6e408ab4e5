import numpy as np
import pytest

from vla_cache_ros.core.errors import ObservationError
from vla_cache_ros.core.plan import LayerGroup, ReusePlan
from vla_cache_ros.core.types import Proprioception, StepReport


def make_plan(*recompute: list[int]) -> ReusePlan:
    groups = tuple(LayerGroup(2 * i, 2 * i + 2) for i in range(len(recompute)))
    slots = tuple(np.array(each, np.int64) for each in recompute)
    return ReusePlan(4, groups, slots, np.zeros(3, np.uint8), np.zeros(3, np.int32))


def test_recompute_ratio_counts_token_layers():
    assert make_plan([0, 1, 2, 3], [0, 3]).recompute_ratio == 0.75
    assert not make_plan([0, 1, 2, 3], [0, 3]).is_dense
    assert make_plan([0, 1, 2, 3], [0, 1, 2, 3]).is_dense


def test_a_report_totals_its_stages():
    report = StepReport(0, 'cached', {'diff': 0.25, 'vision': 2.0}, make_plan([0]))
    assert report.total_ms == 2.25


def test_proprioception_becomes_float32():
    state = Proprioception(np.zeros(3), np.array([0, 0, 0, 1.0]), np.zeros(2))
    assert state.ee_position_m.dtype == np.float32


@pytest.mark.parametrize(
    ('position', 'quaternion', 'message'),
    [
        (np.zeros(2), np.zeros(4), r'ee_position_m has shape \(2,\); valid: \(3,\)'),
        (np.zeros(3), np.full(4, np.nan), 'ee_quaternion_xyzw holds NaN'),
    ],
)
def test_a_state_that_cannot_be_used_is_refused_by_field(position, quaternion, message):
    with pytest.raises(ObservationError, match=message):
        Proprioception(position, quaternion, np.zeros(2))
