import math
import weakref

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vla_cache_ros.core.chunk_execution import make_execution
from vla_cache_ros.core.errors import ConfigError, UnknownNameError
from vla_cache_ros.core.execution_base import MODES, DueAction, ExecutionConfig
from vla_cache_ros.core.types import ActionChunk

MS = 1_000_000
PERIOD_MS = 50
ORDER = ('nominal', 'on_chunk', 'hold')


def make_chunk(stamp_ms: float, size: int = 4) -> ActionChunk:
    """Action k of a chunk says which chunk it is of, and k."""
    actions = np.zeros((size, 7), np.float32)
    actions[:, 0] = stamp_ms
    actions[:, 1] = np.arange(size)
    return ActionChunk(actions, round(stamp_ms * MS))


def make(mode: str, **changes):
    config = {'period_s': PERIOD_MS / 1e3, 'actions_per_chunk': 4, 'run_on_steps': 1000}
    return make_execution(ExecutionConfig(mode, **(config | changes)))


def identity(due: DueAction | None) -> tuple[int, int] | None:
    return None if due is None else (due.stamp_ns // MS, due.index)


def run(execution, steps_ms) -> list[tuple[int, int] | None]:
    return [identity(execution.next(round(step_ms * MS))) for step_ms in steps_ms]


# All modes


@pytest.mark.parametrize('mode', MODES)
def test_a_chunk_is_executed_in_order_and_then_nothing_is_due(mode):
    execution = make(mode)
    assert execution.next(0) is None
    assert execution.load(make_chunk(100)) == ''
    assert run(execution, range(100, 400, 50)) == [(100, k) for k in range(4)] + [None, None]


@pytest.mark.parametrize('mode', MODES)
@pytest.mark.parametrize('late_ms', [None, 10_000])
def test_chunks_that_nobody_executes_are_not_kept(mode, late_ms):
    execution = make(mode, actions_per_chunk=2, run_on_steps=2)
    chunks = [weakref.ref(make_chunk(1))]
    for stamp_ms in range(100, 100_000, 100):
        chunk = make_chunk(stamp_ms)
        chunks.append(weakref.ref(chunk))
        execution.load(chunk)
        if late_ms and mode != 'open_loop':
            assert execution.next((stamp_ms + late_ms) * MS) is None
    del chunk
    assert sum(kept() is not None for kept in chunks) <= 8


@pytest.mark.parametrize('mode', MODES)
def test_chunks_out_of_order_and_repeated_ones_are_refused(mode):
    execution = make(mode)
    execution.load(make_chunk(100))
    assert execution.load(make_chunk(100)) == 'repeated_chunk'
    assert execution.load(make_chunk(50)) == 'old_chunk'
    assert execution.load(make_chunk(150)) == ''


@pytest.mark.parametrize('mode', MODES)
def test_a_revoked_chunk_stops_at_once_and_what_was_on_its_way_is_refused(mode):
    execution = make(mode)
    execution.load(make_chunk(100, 20))
    assert run(execution, [100]) == [(100, 0)]
    execution.revoke(200 * MS)
    assert run(execution, [150]) == [None]
    assert execution.load(make_chunk(200)) == 'old_chunk'
    assert execution.load(make_chunk(201)) == ''


@pytest.mark.parametrize('mode', MODES)
def test_a_chunk_without_actions_revokes_the_rest(mode):
    execution = make(mode)
    execution.load(make_chunk(100))
    assert execution.load(make_chunk(10, 0)) == ''
    assert run(execution, [100]) == [None]


@pytest.mark.parametrize('mode', MODES)
def test_one_step_gets_one_action(mode):
    execution = make(mode)
    execution.load(make_chunk(100))
    assert run(execution, [100, 100, 90]) == [(100, 0), None, None]


@pytest.mark.parametrize('mode', MODES)
def test_after_a_restarted_clock_no_chunk_runs_again(mode):
    execution = make(mode)
    execution.load(make_chunk(1000))
    run(execution, [1000])
    execution.restart(100 * MS)
    assert run(execution, [100]) == [None]
    assert execution.load(make_chunk(1000)) == 'repeated_chunk'
    assert execution.load(make_chunk(99)) == 'old_chunk'
    assert execution.load(make_chunk(150)) == ''
    assert run(execution, [150]) == [(150, 0)]


@pytest.mark.parametrize('mode', MODES)
def test_sequence_numbers_go_on_over_a_reset(mode):
    execution = make(mode)
    execution.load(make_chunk(100))
    first = execution.next(100 * MS)
    execution.reset()
    assert execution.load(make_chunk(50)) == ''
    second = execution.next(50 * MS)
    assert first is not None
    assert second is not None
    assert second.sequence > first.sequence


@pytest.mark.parametrize('mode', MODES)
@pytest.mark.parametrize('run_on_steps', [0, 2, 1000])
def test_late_chunks_degrade_in_the_stated_order(mode, run_on_steps):
    execution = make(mode, run_on_steps=run_on_steps)
    execution.load(make_chunk(0, 10))
    seen = []
    for step in range(14):
        execution.next(step * PERIOD_MS * MS)
        seen.append(execution.degradation)
    on_chunk = min(run_on_steps, 6)
    assert seen == ['nominal'] * 4 + ['on_chunk'] * on_chunk + ['hold'] * (10 - on_chunk)


arrivals = st.lists(
    st.tuples(
        st.integers(0, 8),  # periods until it comes
        st.integers(0, 6),  # periods that inference took
        st.integers(0, 12),  # its actions
    ),
    max_size=12,
)


@pytest.mark.parametrize('mode', MODES)
@given(arrivals, st.floats(0, 1), st.integers(0, 5))
def test_no_step_is_executed_twice_and_no_delta_repeated(mode, chunks, phase, run_on_steps):
    execution = make(mode, run_on_steps=run_on_steps)
    executed, sequences = [], []
    before, loaded = 'hold', False
    pending = [(wait, latency, size) for wait, latency, size in chunks]
    due_at = pending[0][0] if pending else math.inf
    for step in range(100):
        now_ms = 1000 + step * PERIOD_MS
        loaded = False
        if pending and step >= due_at:
            _, latency, size = pending.pop(0)
            stamp_ms = now_ms - (latency + phase) * PERIOD_MS
            loaded = execution.load(make_chunk(stamp_ms, size)) == ''
            due_at = step + 1 + pending[0][0] if pending else math.inf
        due = execution.next(now_ms * MS)
        if due is not None:
            assert due.index < min(12, 4 + run_on_steps)
            executed.append((due.stamp_ns, due.index))
            sequences.append(due.sequence)
            if mode != 'open_loop':
                offset = (now_ms * MS - due.stamp_ns) / (PERIOD_MS * MS)
                assert due.index == math.floor(offset + 0.5)
        if not loaded:  # only a new chunk leads back up
            assert ORDER.index(execution.degradation) >= ORDER.index(before)
        before = execution.degradation
    assert len(set(executed)) == len(executed)
    assert sequences == sorted(set(sequences))
    if mode != 'ensemble':  # where an older chunk may outlast a newer one
        assert [stamp for stamp, _ in executed] == sorted(stamp for stamp, _ in executed)


@given(
    st.floats(0, 1),
    st.lists(st.floats(-0.24, 0.24), min_size=40, max_size=40),
    st.integers(0, 5),
)
def test_jitter_of_a_timer_neither_skips_nor_repeats_an_action(phase, jitter, latency):
    execution = make('prefix', actions_per_chunk=8)
    steps = []
    for step, late in enumerate(jitter):
        now_ms = 1000 + (step + late) * PERIOD_MS
        if step % 8 == latency:
            taken_ms = 1000 + (step - latency - phase) * PERIOD_MS - 15
            execution.load(make_chunk(taken_ms, 40))  # taken in time, whatever the jitter
        due = execution.next(round(now_ms * MS))
        assert (due is None) == (step < latency)
        steps.append(due)
    for one, other in zip(steps[latency:], steps[latency + 1 :], strict=False):
        if other.stamp_ns == one.stamp_ns:
            assert other.index == one.index + 1


# Open loop and prefix


def test_without_latency_prefix_equals_open_loop():
    open_loop, prefix = make('open_loop'), make('prefix')
    for step in range(24):
        now_ms = 1000 + step * PERIOD_MS
        if step % 4 == 0:
            assert open_loop.load(make_chunk(now_ms, 8)) == ''
            assert prefix.load(make_chunk(now_ms, 8)) == ''
        one, other = open_loop.next(now_ms * MS), prefix.next(now_ms * MS)
        assert identity(one) == identity(other)
        assert np.array_equal(one.action, other.action)


def test_prefix_skips_what_ran_from_the_old_chunk_while_inference_ran():
    execution = make('prefix')
    execution.load(make_chunk(0, 12))
    assert run(execution, [0, 50, 100, 150]) == [(0, 0), (0, 1), (0, 2), (0, 3)]
    execution.load(make_chunk(100, 12))  # took 100 ms
    assert run(execution, [200, 250]) == [(100, 2), (100, 3)]


def test_what_takes_over_is_said_once_and_its_plan_begins_with_the_present_action():
    execution = make('prefix', run_on_steps=2)
    execution.load(make_chunk(0, 12))
    first = execution.next(100 * MS)
    assert first.takes_over
    assert execution.plan(100 * MS)[:, 1].tolist() == [2, 3, 4, 5]
    assert not execution.next(150 * MS).takes_over


def test_a_chunk_of_the_future_waits_for_its_time():
    execution = make('prefix')
    execution.load(make_chunk(0, 12))
    run(execution, [0])
    execution.load(make_chunk(100, 12))
    assert run(execution, [50, 100]) == [(0, 1), (100, 0)]


def test_in_lockstep_a_delay_stands_in_for_the_inference():
    execution = make('prefix', delay_steps=2, run_on_steps=0)
    seen = []
    for step in range(14):
        now_ms = step * PERIOD_MS
        if step % 4 == 0:
            execution.load(make_chunk(now_ms, 12))  # a simulator waits, so it comes at once
        assert execution.ready(now_ms * MS)
        seen.append(identity(execution.next(now_ms * MS)))
    assert seen[:6] == [(0, k) for k in range(6)]
    assert seen[6:10] == [(200, k) for k in range(2, 6)]
    assert seen[10:14] == [(400, k) for k in range(2, 6)]
    execution = make('prefix', delay_steps=2, run_on_steps=0)
    execution.load(make_chunk(0, 12))
    run(execution, [step * PERIOD_MS for step in range(6)])
    assert not execution.ready(6 * PERIOD_MS * MS)  # the next chunk is waited for


# Ensemble


@given(st.floats(-3, 3), st.integers(2, 5))
def test_an_ensemble_is_the_weighted_mean_of_what_covers_the_step(decay, count):
    execution = make('ensemble', actions_per_chunk=10, ensemble_decay=decay)
    chunks = [make_chunk(PERIOD_MS * i, 10) for i in range(count)]
    for i, chunk in enumerate(chunks):
        chunk.actions[:, 6] = -1 if i < count - 1 else 1
        execution.load(chunk)
    step = count - 1
    due = execution.next(step * PERIOD_MS * MS)
    weights = [math.exp(-decay * i) for i in range(count)]
    actions = [chunk.actions[step - i] for i, chunk in enumerate(chunks)]
    mean = sum(w * a for w, a in zip(weights, actions, strict=True)) / sum(weights)
    assert due.action[:6] == pytest.approx(mean[:6], rel=1e-5)
    assert due.action[6] == 1  # the newest chunk's
    assert (due.stamp_ns, due.oldest_stamp_ns) == (chunks[-1].stamp_ns, 0)


def test_an_ensemble_of_equal_chunks_is_that_chunk():
    execution = make('ensemble', actions_per_chunk=10)
    for stamp_ms in (0, 50, 100):
        execution.load(ActionChunk(np.full((10, 7), 0.3, np.float32), stamp_ms * MS))
    assert execution.next(100 * MS).action == pytest.approx(np.full(7, 0.3), rel=1e-6)


def test_an_ensemble_leaves_out_chunks_that_are_too_old():
    execution = make('ensemble', actions_per_chunk=3, max_age_s=0.1)
    for stamp_ms in (0, 50, 100, 150):
        execution.load(make_chunk(stamp_ms, 10))
    assert execution.next(150 * MS).oldest_stamp_ns == 50 * MS


# Configuration


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'actions_per_chunk': 0}, 'at least 1'),
        ({'run_on_steps': -1}, 'valid'),
        ({'delay_steps': 1}, 'open_loop'),
        ({'period_s': 0.0}, 'above 0'),
        ({'ensemble_decay': math.nan}, 'finite'),
        ({'actions_per_chunk': 22, 'max_age_s': 1.0}, 'execute fewer'),
    ],
)
def test_values_that_contradict_are_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        make('open_loop', **change)


def test_an_unknown_mode_names_the_valid_ones():
    with pytest.raises(UnknownNameError, match='open_loop, ensemble, prefix'):
        make('closed_loop')
