"""What is read from a message stream: reactions, ages, repetitions, recovery."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from node_graph.accounting import Accounts, growth
from node_graph.verdict import judge

MS = 1_000_000
WALL_NS = 5_000_000_000_000


def ready():
    return {'kind': 'ready', 'at_ns': 0, 'wall_ns': WALL_NS}


def command(at_ms, image_ms, motion=0.1):
    return {
        'kind': 'command',
        'at_ns': at_ms * MS,
        'stamp_ns': WALL_NS + at_ms * MS,
        'image_stamp_ns': WALL_NS + image_ms * MS,
        'action': [motion, 0, 0, 0, 0, 0, -1],
    }


def status(at_ms, image_ms, index=0, is_null=False, reasons=()):
    return {
        'kind': 'status',
        'at_ns': at_ms * MS,
        'published_ns': at_ms * MS,
        'image_stamp_ns': WALL_NS + image_ms * MS,
        'index': index,
        'is_null': is_null,
        'reasons': list(reasons),
    }


def report(at_ms, stamp_ms, dropped=''):
    return {
        'kind': 'report',
        'at_ns': at_ms * MS,
        'published_ns': at_ms * MS,
        'stamp_ns': WALL_NS + stamp_ms * MS,
        'dropped': dropped,
        'flush_reason': '',
    }


def twist(at_ms, is_zero):
    return {'kind': 'twist', 'at_ns': at_ms * MS, 'is_zero': is_zero}


def judged(*events, began_ms=1000, ended_ms=2000, limit_ms=500):
    return judge([ready(), *events], began_ms * MS, ended_ms * MS, limit_ms)


def test_reactions_are_counted_from_the_fault_to_its_end():
    verdict = judged(
        status(900, 800, is_null=True),
        report(1020, 1000, 'unpaired_image'),
        report(1030, 1000, 'missing_camera'),
        twist(1035, False),
        status(1040, 900, is_null=True, reasons=['policy_lost']),
        twist(1045, True),
        twist(2500, False),
    )
    assert verdict.first_flag_ms == 30
    assert verdict.first_null_ms == 40
    assert verdict.moving_ms == 35
    assert verdict.first_zero_ms == 45
    assert verdict.reasons == {'missing_camera': 1, 'policy_lost': 1}


def test_a_fault_without_a_reaction_has_none():
    verdict = judged(status(1500, 1400), twist(1500, False), status(2100, 1400, is_null=True))
    assert verdict.first_null_ms is None
    assert verdict.first_zero_ms is None


def test_commands_beyond_the_limit_are_found_by_their_stamps():
    verdict = judged(command(1100, 700), command(1200, 600), command(1300, 0, motion=0))
    assert verdict.oldest_ms == 600
    assert verdict.too_old == 1


def test_an_action_that_moves_twice_is_found():
    events = [status(1100, 1000, 0), status(1150, 1000, 1), status(1200, 1000, 1)]
    assert judged(*events).repeated == 1
    assert judged(*events[:2]).repeated == 0


def test_numbers_that_are_none_are_found():
    assert judged(command(1100, 1000, math.nan)).not_finite == 1
    assert judged(command(1100, 1000, math.inf)).not_finite == 1


def test_recovery_needs_an_image_taken_after_the_end():
    events = [status(2050, 1990), status(2090, 2010, is_null=True), status(2120, 2010, 1)]
    assert judged(*events).recovery_ms == 120
    assert judged(*events[:2]).recovery_ms is None


def test_silence_is_counted_from_the_fault_on():
    assert judged(command(500, 400), command(1300, 1200), command(1350, 1200)).silent_ms == 300


FATES = ['processed', 'dropped', 'lost', 'both']


@given(fates=st.lists(st.sampled_from(FATES), max_size=30))
def test_every_frame_is_accounted_for_exactly_once(fates):
    accounts = Accounts()
    for number, fate in enumerate(fates):
        stamp_ms = 100 * number
        stamp_ns = WALL_NS + stamp_ms * MS
        at_ns = stamp_ms * MS
        accounts.add({'kind': 'frame', 'at_ns': at_ns, 'stamp_ns': stamp_ns, 'captured_ns': at_ns})
        if fate in ('dropped', 'both'):
            accounts.add(report(stamp_ms + 1, stamp_ms, 'stale_image'))
        if fate in ('processed', 'both'):
            accounts.add(report(stamp_ms + 2, stamp_ms))
    accounts.add(twist(100 * len(fates) + 60_000, False))
    frames = accounts.frames()
    assert frames['sent'] == len(fates)
    assert frames['processed'] == fates.count('processed') + fates.count('both')
    assert sum(frames['dropped'].values()) == fates.count('dropped')
    assert frames['lost_in_transport'] == fates.count('lost')


def test_growth_compares_the_ends_and_leaves_the_start_up_out():
    samples = [{'at_s': s, 'rss_mib': 50.0 if s < 10 else 100.0 + s / 10} for s in range(40)]
    grown = growth(samples, 'rss_mib', 10)
    assert grown['first'] == pytest.approx(101.45, abs=0.1)
    assert grown['last'] == pytest.approx(103.45, abs=0.1)
    assert 0.01 < grown['growth'] < 0.03
