import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vla_cache_ros.core.chunk_execution import make_execution
from vla_cache_ros.core.command_loop import CommandLoop, LoopConfig, StepCommand
from vla_cache_ros.core.execution_base import MODES, ExecutionConfig
from vla_cache_ros.core.guard import CommandGuard
from vla_cache_ros.core.guard_config import GuardConfig, JointLimits
from vla_cache_ros.core.policy_watch import PolicyWatch
from vla_cache_ros.core.types import ActionChunk

MS = 1_000_000
PERIOD_MS = 50
MAX_AGE_MS = 400
LIMITS = GuardConfig(
    lower=(-0.8,) * 7,
    upper=(0.9,) * 7,
    max_age_ms=MAX_AGE_MS,
    initial_gripper=-0.8,
    position_scale_m=0.05,
    rotation_scale_rad=0.5,
    max_linear_velocity_m_s=0.6,
    max_angular_velocity_rad_s=4.0,
    max_linear_acceleration_m_s2=5.0,
    max_angular_acceleration_rad_s2=30.0,
    max_linear_jump_m=0.08,
    gripper_interval_s=0.2,
    workspace_lower_m=(0.0, 0.0, 0.0),
    workspace_upper_m=(0.5, 0.5, 0.5),
    joints=JointLimits(('a',), (-1.0,), (1.0,)),
    state_timeout_s=0.3,
)


def make_loop(
    mode: str = 'open_loop',
    limits: GuardConfig | None = None,
    *,
    heartbeat_s: float = 0.0,
    instruction_timeout_s: float = 0.0,
    lockstep: bool = False,
) -> CommandLoop:
    execution = ExecutionConfig(
        mode, PERIOD_MS / 1e3, 4, 0 if lockstep else 2, max_age_s=MAX_AGE_MS / 1e3
    )
    return CommandLoop(
        make_execution(execution),
        CommandGuard(limits or GuardConfig(max_age_ms=MAX_AGE_MS)),
        PolicyWatch(heartbeat_s),
        LoopConfig(lockstep, instruction_timeout_s),
    )


def make_chunk(stamp_ms: int, size: int = 8, instruction: str = '') -> ActionChunk:
    actions = np.full((size, 7), 0.5, np.float32)
    return ActionChunk(actions, stamp_ms * MS, instruction=instruction)


def moves(loop: CommandLoop, step_ms: int) -> bool:
    return not loop.step(step_ms * MS).guarded.is_null


# Holds


def test_an_emergency_stop_holds_and_after_release_only_a_newer_image_moves():
    loop = make_loop()
    loop.give_chunk(make_chunk(1000), 1000 * MS)
    assert moves(loop, 1000)
    loop.e_stopped = True
    command = loop.step(1050 * MS)
    assert command.guarded.is_null
    assert (command.guarded.reasons, command.degradation) == (('e_stop', 'no_action'), 'hold')
    assert loop.give_chunk(make_chunk(1100), 1150 * MS) == 'e_stop'
    loop.e_stopped = False
    loop.revoke(1200 * MS)
    assert not moves(loop, 1200)
    assert loop.give_chunk(make_chunk(1199), 1210 * MS) == 'old_chunk'
    assert loop.give_chunk(make_chunk(1201), 1250 * MS) == ''
    assert moves(loop, 1250)


def test_without_its_policy_the_arm_is_held_until_it_is_back_with_a_newer_chunk():
    loop = make_loop(heartbeat_s=0.1)
    assert loop.step(900 * MS).guarded.reasons == ('policy_lost', 'no_action')
    loop.watch.beat('active', 0.0)
    loop.give_chunk(make_chunk(1000), 1000 * MS)
    assert moves(loop, 1000)
    for look in range(1, 9):
        loop.watch.look(look * loop.watch.period_s)
    loop.revoke(1100 * MS)
    assert not moves(loop, 1100)
    assert loop.give_chunk(make_chunk(1050), 1110 * MS) == 'policy_lost'
    loop.watch.beat('active', 0.2)
    assert not moves(loop, 1150)
    assert loop.give_chunk(make_chunk(1090), 1160 * MS) == 'old_chunk'
    assert loop.give_chunk(make_chunk(1150), 1190 * MS) == ''
    assert moves(loop, 1200)


def test_another_tasks_chunk_is_refused_and_the_present_one_revoked():
    loop = make_loop()
    assert loop.give_chunk(make_chunk(1000, instruction='a'), 1000 * MS) == ''  # none known yet
    loop.give_instruction(' a\n', 1000 * MS)
    assert moves(loop, 1000)
    loop.give_instruction('b', 1040 * MS)
    assert not moves(loop, 1050)
    loop.give_chunk(make_chunk(1060, instruction='b'), 1060 * MS)
    assert moves(loop, 1100)
    assert loop.give_chunk(make_chunk(1110, instruction='a'), 1110 * MS) == 'other_instruction'
    assert not moves(loop, 1150)
    assert loop.counts['other_instruction'] == 1


def test_an_empty_instruction_stops_the_arm():
    loop = make_loop()
    loop.give_instruction('a', 0)
    loop.give_chunk(make_chunk(1000, instruction='a'), 1000 * MS)
    loop.give_instruction('', 1010 * MS)
    assert not moves(loop, 1050)
    assert loop.give_chunk(make_chunk(1060, instruction='a'), 1060 * MS) == 'other_instruction'


def test_an_instruction_that_must_be_confirmed_expires():
    loop = make_loop(instruction_timeout_s=1.0)
    loop.give_chunk(make_chunk(1000), 1000 * MS)
    assert loop.step(1000 * MS).guarded.reasons == ('instruction_timeout', 'no_action')
    loop.give_instruction('', 1000 * MS)
    loop.give_chunk(make_chunk(1010), 1020 * MS)
    assert moves(loop, 1050)
    loop.give_chunk(make_chunk(2000), 2000 * MS)
    assert moves(loop, 2000)
    assert loop.step(2050 * MS).guarded.reasons == ('instruction_timeout', 'no_action')


def test_an_instruction_that_is_confirmed_late_lets_nothing_from_before_run():
    loop = make_loop(instruction_timeout_s=1.0)
    loop.give_instruction('a', 1000 * MS)
    loop.give_chunk(make_chunk(2000, instruction='a'), 2000 * MS)
    assert moves(loop, 2000)
    assert not moves(loop, 2050)
    loop.give_instruction('a', 2100 * MS)
    assert not moves(loop, 2100)
    assert loop.give_chunk(make_chunk(2090, instruction='a'), 2110 * MS) == 'old_chunk'
    assert loop.give_chunk(make_chunk(2110, instruction='a'), 2120 * MS) == ''
    assert moves(loop, 2150)


# Clocks


@pytest.mark.parametrize('mode', MODES)
def test_a_clock_that_goes_back_stops_once_and_new_images_go_on(mode):
    loop = make_loop(mode)
    loop.give_chunk(make_chunk(5000), 5000 * MS)
    assert moves(loop, 5000)
    command = loop.step(1000 * MS)
    assert command.guarded.is_null
    assert 'clock_backwards' in command.guarded.reasons
    assert loop.give_chunk(make_chunk(5050), 1010 * MS) == 'future_chunk'
    assert loop.give_chunk(make_chunk(1050), 1050 * MS) == ''
    assert moves(loop, 1050)


# Lockstep


def test_in_lockstep_null_actions_stand_in_for_a_revoked_chunk():
    loop = make_loop(lockstep=True)
    assert not loop.can_answer(1000 * MS)
    loop.give_chunk(make_chunk(1000), None)
    assert loop.can_answer(1000 * MS)
    assert moves(loop, 1000)
    loop.give_chunk(make_chunk(1050, 0), 1000 * MS)
    for step_ms in range(1050, 1250, 50):
        assert loop.can_answer(step_ms * MS)
        assert not moves(loop, step_ms)
    assert not loop.can_answer(1250 * MS)


def test_in_lockstep_a_hold_answers_every_step():
    loop = make_loop(lockstep=True)
    loop.e_stopped = True
    for step_ms in range(1000, 2000, 50):
        assert loop.can_answer(step_ms * MS)
        assert not moves(loop, step_ms)


# What is committed


def test_what_runs_next_is_committed_at_a_takeover_and_void_after_a_revocation():
    loop = make_loop('prefix')
    nothing = loop.committed
    loop.give_chunk(make_chunk(1000, instruction='a'), 1060 * MS)
    assert loop.committed is nothing
    loop.step(1100 * MS)
    committed = loop.committed
    assert (committed.step_ns, committed.instruction) == (1100 * MS, 'a')
    assert len(committed.actions) == 4  # 2 to 5 of 4 + 2
    loop.step(1150 * MS)
    assert loop.committed is committed
    loop.revoke()
    assert not len(loop.committed.actions)


# Whatever comes in

anything = st.one_of(
    st.floats(-1.25, 1.25, width=32), st.floats(width=32), st.sampled_from([0.0, 3e38, -3e38])
)
rows = st.lists(st.lists(anything, min_size=7, max_size=7), max_size=8)
offsets_ms = st.one_of(st.integers(-300, 20), st.integers(-10_000, 10_000))
events = st.one_of(
    st.tuples(st.just('chunk'), offsets_ms, rows, st.sampled_from('aab')),
    st.tuples(st.just('good'), st.integers(0, 100)),
    st.tuples(st.just('good'), st.integers(0, 100)),
    st.tuples(st.just('again'), st.integers(0, 20)),
    st.tuples(st.just('instruction'), st.sampled_from('aab')),
    st.tuples(st.just('pose'), st.lists(anything, min_size=3, max_size=3)),
    st.tuples(st.just('state'), st.floats(0.1, 0.4)),
    st.tuples(st.just('state'), st.floats(0.1, 0.4)),
    st.tuples(st.just('joint'), anything),
    st.tuples(st.just('bad_chunk')),
    st.tuples(st.just('e_stop')),
    st.tuples(st.just('release')),
    st.tuples(st.just('beat'), st.sampled_from(('active', 'active', 'inactive'))),
    st.tuples(st.just('look')),
    st.tuples(st.just('jump'), st.integers(-3000, 3000)),
)


class Bench:
    """Plays events into a loop, one step after each, and checks every command."""

    def __init__(self, mode: str) -> None:
        self.loop = make_loop(mode, LIMITS, heartbeat_s=0.1)
        self.now_ms = 100_000
        self.clock_s = 0.0
        self.stamps = itertools.count(1)
        self.chunks: list[ActionChunk] = []
        self.before = np.zeros(6)
        self.sent: set[tuple[int, int]] = set()
        self.not_before_ns: int | None = None
        self.moved = 0

    def play(self, event) -> None:
        loop, now_ns = self.loop, self.now_ms * MS
        match event:
            case ('chunk', offset_ms, numbers, instruction):
                actions = np.array(numbers, np.float32).reshape(-1, 7)
                self.give(ActionChunk(actions, now_ns + offset_ms * MS, instruction=instruction))
            case ('good', age_ms):
                self.play(('state', 0.25))
                self.play(('beat', 'active'))
                self.give(make_chunk(self.now_ms - age_ms, instruction=loop.instruction or ''))
            case ('again', number) if self.chunks:
                self.give(self.chunks[number % len(self.chunks)])
            case ('instruction', text):
                loop.give_instruction(text, now_ns)
            case ('pose', position):
                loop.guard.robot.see_pose(position, next(self.stamps), now_ns)
            case ('state', place):
                loop.guard.robot.see_pose([place] * 3, next(self.stamps), now_ns)
                loop.guard.robot.see_joints({'a': 0.0}, {}, next(self.stamps), now_ns)
            case ('joint', value):
                loop.guard.robot.see_joints({'a': value}, {}, next(self.stamps), now_ns)
            case ('bad_chunk',):
                loop.give_bad_chunk()
            case ('e_stop',):
                loop.e_stopped = True
                loop.revoke(now_ns)
            case ('release',):
                loop.e_stopped = False
                self.stop_until(now_ns)
            case ('beat', state):
                if loop.watch.beat(state, self.clock_s):
                    self.stop_until(now_ns)
            case ('look',):
                if loop.watch.look(self.clock_s):
                    self.stop_until(now_ns)
            case ('jump', duration_ms):
                self.now_ms += duration_ms
                if duration_ms < 0:
                    self.not_before_ns = None  # stamps of another time

    def give(self, chunk: ActionChunk) -> None:
        self.loop.give_chunk(chunk, self.now_ms * MS)
        self.chunks.append(chunk)

    def stop_until(self, now_ns: int) -> None:
        self.loop.revoke(now_ns)
        self.not_before_ns = now_ns

    def step(self) -> None:
        self.check(self.loop.step(self.now_ms * MS))
        self.now_ms += PERIOD_MS
        self.clock_s += PERIOD_MS / 1e3

    def check(self, command: StepCommand) -> None:
        action, reasons = command.guarded.action, command.guarded.reasons
        assert action.shape == (7,)
        assert np.isfinite(action).all()
        assert (action >= np.float32(LIMITS.lower)).all()
        assert (action <= np.float32(LIMITS.upper)).all()
        moved = action[:6] * np.repeat([0.05, 0.5], 3)
        assert np.linalg.norm(moved[:3]) <= 0.6 * 0.05 * (1 + 1e-5)
        assert np.linalg.norm(moved[3:]) <= 4.0 * 0.05 * (1 + 1e-5)
        stopped = command.guarded.is_null or any('workspace' in reason for reason in reasons)
        if not stopped:
            assert np.linalg.norm((moved - self.before)[:3]) <= 5.0 * 0.05**2 * (1 + 1e-4)
            assert np.linalg.norm((moved - self.before)[3:]) <= 30.0 * 0.05**2 * (1 + 1e-4)
        self.before = moved
        if command.guarded.is_null:
            assert not action[:6].any()
            assert reasons
            return
        self.check_motion(command, moved)

    def check_motion(self, command: StepCommand, moved: np.ndarray) -> None:
        loop, due = self.loop, command.due
        assert due is not None
        assert not loop.e_stopped
        assert not loop.watch.lost
        assert loop.instruction in (None, due.instruction)
        assert -5 * MS <= command.step_ns - due.oldest_stamp_ns <= MAX_AGE_MS * MS
        if self.not_before_ns is not None:
            assert due.oldest_stamp_ns > self.not_before_ns
        assert (due.stamp_ns, due.index) not in self.sent
        self.sent.add((due.stamp_ns, due.index))
        position = loop.guard.robot.position_m
        assert position is not None
        target = position + moved[:3]
        inside = (position >= 0) & (position <= 0.5)
        assert (np.abs(target - 0.25) <= 0.25 + 1e-6)[inside].all()
        assert (np.abs(target - 0.25) <= np.abs(position - 0.25))[~inside].all()
        self.moved += 1


@settings(max_examples=150)
@given(st.sampled_from(MODES), st.lists(events, max_size=40))
def test_whatever_comes_in_every_command_is_finite_in_limits_fresh_and_no_repeat(mode, stream):
    bench = Bench(mode)
    for event in stream:
        bench.play(event)
        bench.step()
    counts = bench.loop.counts
    assert counts.get('passed', 0) == bench.moved
    # Nothing latched or lost, and a good chunk: the arm moves again, whatever was before.
    bench.loop.e_stopped = False
    bench.now_ms += 20_000
    bench.loop.give_instruction('a', bench.now_ms * MS)
    for _ in range(3):
        bench.play(('good', 0))
        bench.step()
    assert bench.moved > counts.get('passed', 0)
