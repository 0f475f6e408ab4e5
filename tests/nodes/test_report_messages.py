"""Reports of guard and shadow mode as messages: what comes back, and what is refused."""

import contextlib
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rclpy.serialization import deserialize_message, serialize_message
from vla_cache_interfaces.msg import Count, GuardStatus, ShadowReport

from vla_cache_ros.core.errors import ObservationError
from vla_cache_ros.nodes.report_checks import MAX_NAMES, counts_to_message, message_to_counts
from vla_cache_ros.nodes.report_messages import (
    DEGRADATIONS,
    CommandReport,
    ShadowResult,
    guard_to_message,
    message_to_guard,
    message_to_shadow,
    shadow_to_message,
)

pytestmark = pytest.mark.ros

ACTION = np.arange(7, dtype=np.float32)
SHADOW = ShadowResult(12, 0.25, 0.5, 2, 0.75, 1.5, True, False, 20.0, 8.0)


def wire(message):
    return deserialize_message(serialize_message(message), type(message))


@given(
    step_ns=st.integers(0, 2**60),
    image=st.none() | st.tuples(st.integers(0, 2**60), st.integers(0, 100)),
    degradation=st.sampled_from(DEGRADATIONS),
    flags=st.tuples(st.booleans(), st.booleans(), st.booleans()),
    counts=st.dictionaries(st.sampled_from(['stale', 'passed']), st.integers(0, 2**64 - 1)),
)
def test_a_command_report_comes_back(step_ns, image, degradation, flags, counts):
    is_null, dry_run, e_stop = flags
    image_stamp_ns, index = image or (None, None)
    report = CommandReport(
        step_ns=step_ns,
        published_ns=step_ns + 1,
        action=ACTION,
        is_null=is_null,
        image_stamp_ns=image_stamp_ns,
        index=index,
        reasons=('stale', 'limit_x'),
        degradation=degradation,
        dry_run=dry_run,
        e_stop=e_stop,
        counts=counts,
    )
    after = message_to_guard(wire(guard_to_message(report)))
    assert after == report
    np.testing.assert_array_equal(after.action, ACTION)


@pytest.mark.parametrize(
    ('changes', 'said'),
    [
        ({'action': [math.nan] * 7}, 'valid: finite'),
        ({'published_ns': -1}, 'valid: 0 or more'),
        ({'index': -2}, '-1 or more'),
        ({'degradation': 'fine'}, 'valid: nominal, on_chunk, hold'),
        ({'degradation': ''}, 'valid: nominal'),
        ({'reasons': ['x'] * (MAX_NAMES + 1)}, 'at most'),
        ({'counts': [Count()] * (MAX_NAMES + 1)}, 'at most'),
    ],
)
def test_a_status_that_cannot_be_is_refused(changes, said):
    message = guard_to_message(CommandReport(1, 2, ACTION, False, 1, 0))
    for name, value in changes.items():
        setattr(message, name, value)
    with pytest.raises(ObservationError, match=said):
        message_to_guard(message)


@given(
    action=st.lists(st.floats(width=32), max_size=9),
    index=st.integers(-(2**31), 2**31 - 1),
    published_ns=st.integers(-(2**63), 2**63 - 1),
    degradation=st.text(max_size=10) | st.sampled_from(DEGRADATIONS),
)
def test_any_status_is_read_or_refused(action, index, published_ns, degradation):
    message = GuardStatus(
        action=action, index=index, published_ns=published_ns, degradation=degradation
    )
    with contextlib.suppress(ObservationError):
        report = message_to_guard(message)
        assert (report.index is None) == (index == -1) == (report.image_stamp_ns is None)


def test_a_comparison_comes_back():
    assert message_to_shadow(wire(shadow_to_message(SHADOW))) == SHADOW


@pytest.mark.parametrize('value', [math.nan, math.inf, -1.0])
@pytest.mark.parametrize('name', ['mean_difference', 'max_difference', 'off_budget', 'dense_ms'])
def test_a_comparison_that_cannot_be_is_refused(name, value):
    message: ShadowReport = shadow_to_message(SHADOW)
    setattr(message, name, value)
    with pytest.raises(ObservationError, match=name):
        message_to_shadow(message)


def test_counts_come_back_in_order():
    counts = {'b': 1, 'a': 2**64 - 1}
    assert list(message_to_counts(counts_to_message(counts)).items()) == list(counts.items())
