import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vla_cache_ros.core.config import ReuseConfig, preset
from vla_cache_ros.core.controller import ReuseController
from vla_cache_ros.core.errors import ConfigError, ObservationError, VlaCacheError
from vla_cache_ros.core.layout import CameraSpan, TokenLayout
from vla_cache_ros.core.patches import prepare_frame
from vla_cache_ros.core.plan import PatchStatus

SIDE, PATCH, LAYERS = 3, 4, 4
SIZE = SIDE * PATCH
TOKENS = SIDE * SIDE
LAYOUT = TokenLayout(
    (CameraSpan('front', 1, SIDE, SIDE), CameraSpan('wrist', 1 + TOKENS, SIDE, SIDE)),
    (20, 23),
    (23, 25),
    25,
)
EVERY = np.arange(LAYOUT.num_tokens)
SAFE = replace(
    preset('safe', LAYERS), auto_off=False, camera_motion_fraction=1.0, age_stagger_steps=0
)
TASK = 'pick up the milk'


class StepClock:
    """Each reading is a millisecond later than the one before."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        self.seconds += 1e-3
        return self.seconds


def make_images(value: int = 100, size: int = SIZE) -> dict[str, np.ndarray]:
    return {camera.name: np.full((size, size, 3), value, np.uint8) for camera in LAYOUT}


def run_step(controller: ReuseController, images=None, instruction=TASK, **commit):
    """One step whose model gives an even relevance and entropy."""
    step = controller.plan(images or make_images(), instruction)
    controller.commit(
        step,
        relevance=np.zeros(LAYOUT.num_vision, np.float32) if step.wants_relevance else None,
        entropy=np.ones(LAYERS) if step.wants_entropy else None,
        **commit,
    )
    return step


def make_controller(config: ReuseConfig = SAFE, steps: int = 0) -> ReuseController:
    controller = ReuseController(LAYOUT, LAYERS, config, StepClock())
    for _ in range(steps):
        run_step(controller)
    return controller


def dense(step) -> bool:
    return all(np.array_equal(slots, EVERY) for slots in step.plan.recompute)


# Keyframes


def test_the_first_step_is_a_keyframe_and_the_next_reuses_what_did_not_change():
    controller = make_controller()
    first = run_step(controller)
    assert (first.mode, first.keyframe_reason, first.flush_reason) == (
        'keyframe',
        'first step',
        '',
    )
    assert dense(first)
    second = run_step(controller)
    assert (second.mode, second.keyframe_reason) == ('cached', '')
    assert not dense(second)


def test_keyframes_come_at_the_period_and_restart_it():
    controller = make_controller(replace(SAFE, keyframe_period_steps=3))
    reasons = [run_step(controller).keyframe_reason for _ in range(8)]
    assert reasons == ['first step', '', '', 'period', '', '', 'period', '']
    task = 'open the drawer'
    reasons = [run_step(controller, instruction=task).keyframe_reason for _ in range(4)]
    assert reasons == ['', '', '', 'period']


def test_without_statistics_everything_is_recomputed_and_the_reason_is_given():
    controller = make_controller()
    controller.commit(controller.plan(make_images(), TASK))
    step = controller.plan(make_images(), TASK)
    assert (step.mode, step.keyframe_reason) == ('keyframe', 'no relevance yet')
    controller = make_controller(replace(SAFE, schedule='code', protected_fraction=0.0))
    controller.commit(controller.plan(make_images(), TASK))
    step = controller.plan(make_images(), TASK)
    assert (step.mode, step.keyframe_reason) == ('keyframe', 'no entropy yet')


def test_entropies_are_asked_for_at_keyframes_or_at_every_step():
    for refresh, wanted in (('keyframe', [True, False, False]), ('step', [True, True, True])):
        config = replace(SAFE, schedule='code', entropy_refresh=refresh)
        controller = make_controller(config)
        assert [run_step(controller).wants_entropy for _ in range(3)] == wanted
    assert not run_step(make_controller()).wants_entropy


# Flushes


@pytest.mark.parametrize('reason', ['reset', 'gripper fault'])
def test_a_flush_gives_a_keyframe_with_its_reason_once(reason):
    controller = make_controller(steps=3)
    controller.flush(reason)
    step = run_step(controller)
    assert (step.mode, step.flush_reason, step.keyframe_reason) == ('keyframe', reason, '')
    assert dense(step)
    after = run_step(controller)
    assert (after.mode, after.flush_reason) == ('cached', '')


def test_relevance_and_schedule_of_before_a_flush_are_not_used_after_it():
    for config, reason in (
        (SAFE, 'no relevance yet'),
        (replace(SAFE, schedule='code', protected_fraction=0.0), 'no entropy yet'),
    ):
        controller = make_controller(config, steps=2)
        controller.flush('reset')
        controller.commit(controller.plan(make_images(), TASK))
        assert run_step(controller).keyframe_reason == reason


@pytest.mark.parametrize(
    ('images', 'instruction', 'reason'),
    [
        (make_images(), 'open the drawer', 'instruction change'),
        (make_images(size=2 * SIZE), TASK, 'resolution change'),
        ({**make_images(), 'left': np.zeros((3, 3), np.uint8)}, TASK, 'camera set change'),
    ],
)
def test_a_change_of_the_source_flushes(images, instruction, reason):
    controller = make_controller(steps=2)
    step = run_step(controller, images, instruction)
    assert (step.mode, step.flush_reason) == ('keyframe', reason)
    assert run_step(controller, images, instruction).mode == 'cached'


def test_an_uncommitted_step_flushes_as_a_fault():
    controller = make_controller(steps=2)
    controller.plan(make_images(), TASK)  # and the model fails
    step = run_step(controller)
    assert (step.mode, step.flush_reason) == ('keyframe', 'fault')


def test_a_reset_after_a_fault_is_reported_as_the_reset():
    controller = make_controller(steps=2)
    controller.plan(make_images(), TASK)
    controller.flush('reset')
    assert run_step(controller, instruction='open the drawer').flush_reason == 'reset'


@pytest.mark.parametrize(
    'statistics',
    [
        {'relevance': np.full(LAYOUT.num_vision, np.nan)},
        {'relevance': np.zeros(3)},
        {'entropy': np.full(LAYERS, np.inf)},
        {'entropy': np.zeros(LAYERS + 1)},
    ],
)
def test_a_commit_that_is_refused_leaves_a_fault(statistics):
    config = replace(SAFE, schedule='code')
    controller = make_controller(config, steps=2)
    step = controller.plan(make_images(), TASK)
    with pytest.raises(VlaCacheError, match='NaN or infinity|has shape'):
        controller.commit(step, **statistics)
    assert run_step(controller).flush_reason == 'fault'


def test_a_step_is_committed_once_and_never_after_a_flush():
    controller = make_controller(steps=1)
    stale = controller.plan(make_images(), TASK)
    controller.flush('reset')
    with pytest.raises(VlaCacheError, match='returned last'):
        controller.commit(stale)
    step = run_step(controller)
    with pytest.raises(VlaCacheError, match='once'):
        controller.commit(step)


def test_an_observation_that_cannot_be_used_changes_nothing():
    controller = make_controller(steps=2)
    with pytest.raises(ObservationError, match="'wrist' is missing"):
        controller.plan({'front': make_images()['front']}, 'open the drawer')
    step = run_step(controller)
    assert (step.mode, step.flush_reason) == ('cached', '')


# Reference pixels and ages


def test_slow_drift_adds_up_until_it_is_seen():
    config = replace(
        SAFE, age_limit_steps=None, keyframe_period_steps=None, protected_fraction=0.0
    )
    controller = make_controller(config, steps=1)
    limit = SAFE.difference_threshold * 255
    for drift in range(1, 20):
        step = run_step(controller, make_images(100 + drift))
        if drift > limit:
            break
        assert not dense(step)
    assert drift == int(limit) + 1
    assert (step.plan.status == PatchStatus.CHANGED).all()


def test_a_token_that_ran_in_some_groups_only_keeps_its_old_reference():
    config = replace(
        SAFE, prune_layers=(2,), fixed_ratios=(1.0,), protected_fraction=0.0, age_limit_steps=None
    )
    controller = make_controller(config, steps=1)
    for age in range(3):
        step = run_step(controller, make_images(101))
        assert np.array_equal(step.plan.recompute[0], EVERY)
        assert len(step.plan.recompute[1]) < len(EVERY)
        assert (step.plan.age == age).all()


def test_the_images_may_be_overwritten_between_plan_and_commit():
    controller = make_controller()
    images = make_images()
    step = controller.plan(images, TASK)
    for image in images.values():
        image[:] = 0
    controller.commit(step, relevance=np.zeros(LAYOUT.num_vision))
    assert not dense(run_step(controller, make_images()))


operations = st.lists(
    st.sampled_from(['step', 'step', 'step', 'step', 'abort', 'flush', 'instruct', 'bad image']),
    min_size=1,
    max_size=40,
)


@given(
    operations,
    st.integers(0, 2**31),
    st.integers(1, 4),
    st.sampled_from([None, 5]),
    st.sampled_from(['fixed', 'code']),
    st.sampled_from([(0,), (1, 3)]),
)
def test_what_is_reused_was_computed_from_like_pixels_within_the_age_limit(
    ops, seed, age_limit, period, schedule, prune_layers
):
    """Against an independent record of what each slot of each layer group was computed from."""
    config = replace(
        SAFE,
        age_limit_steps=age_limit,
        keyframe_period_steps=period,
        schedule=schedule,
        prune_layers=prune_layers,
        fixed_ratios=(0.7,) * len(prune_layers),
        protected_fraction=0.2,
    )
    rng = np.random.default_rng(seed)
    controller = make_controller(config)
    patches = np.full(LAYOUT.num_vision, 100)  # brightness of each patch
    instruction = TASK
    computed_from: list[np.ndarray] = []  # per group, brightness at the time; NaN: void
    computed_at: list[np.ndarray] = []
    valid = False
    for now, op in enumerate(ops):
        patches = np.clip(patches + rng.integers(-4, 5, patches.shape), 50, 200)
        images = {
            camera.name: np.repeat(
                np.kron(
                    patches[i * TOKENS : (i + 1) * TOKENS].reshape(SIDE, SIDE),
                    np.ones((PATCH, PATCH)),
                )[..., None],
                3,
                axis=2,
            ).astype(np.uint8)
            for i, camera in enumerate(LAYOUT)
        }
        if op == 'bad image':
            with pytest.raises(ObservationError):
                controller.plan({'front': images['front']}, instruction)
            continue
        if op == 'flush':
            controller.flush('reset')
            valid = False
            continue
        if op == 'instruct':
            instruction += ' now'
            valid = False
        step = controller.plan(images, instruction)
        plan = step.plan
        if not valid:
            assert dense(step)
            assert step.mode == 'keyframe'
        if step.mode == 'keyframe':
            assert dense(step)
            groups = len(plan.recompute)
            computed_from = [np.full(LAYOUT.num_vision, np.nan) for _ in range(groups)]
            computed_at = [np.full(LAYOUT.num_vision, -1) for _ in range(groups)]
        for group, slots in enumerate(plan.recompute):
            reused = np.setdiff1d(EVERY, slots) - LAYOUT.vision[0]
            drift = np.abs(computed_from[group][reused] - patches[reused]) / 255
            assert (drift <= config.difference_threshold + 1e-6).all()
        if op == 'abort':
            valid = False
            continue
        for group, slots in enumerate(plan.recompute):
            vision = slots[(slots >= 1) & (slots < LAYOUT.vision[1])] - LAYOUT.vision[0]
            computed_from[group][vision] = patches[vision]
            computed_at[group][vision] = now
        controller.commit(
            step,
            relevance=torch.from_numpy(rng.random(LAYOUT.num_vision)),
            entropy=torch.from_numpy(rng.random(LAYERS)) if step.wants_entropy else None,
        )
        valid = True
        steps = np.array(
            [
                sum(done in ('step', 'instruct') for done in ops[turn + 1 : now + 1])
                for turn in np.min(computed_at, axis=0)
            ]
        )
        assert (steps <= age_limit).all()
        if period is not None:
            assert (steps < period).all()


def test_the_reported_age_counts_the_steps_since_every_group_ran():
    controller = make_controller(replace(SAFE, age_limit_steps=3, protected_fraction=0.0))
    ages = [int(run_step(controller).plan.age.max()) for _ in range(6)]
    assert ages == [0, 0, 1, 2, 3, 0]


# Switching off


def test_the_preset_off_is_dense_and_says_so():
    controller = make_controller(preset('off'))
    for _ in range(3):
        step = run_step(controller)
        assert (step.mode, step.off_reason) == ('dense', 'switched off')
        assert dense(step)
        assert not step.wants_relevance


def test_reuse_that_does_not_pay_switches_off_and_is_tried_again():
    config = replace(
        SAFE,
        auto_off=True,
        auto_off_min_steps=2,
        auto_off_probe_steps=3,
        keyframe_period_steps=2,
    )
    controller = make_controller(config)
    steps = [run_step(controller, step_ms=20.0) for _ in range(9)]
    assert [step.mode for step in steps] == [
        *('keyframe', 'cached', 'keyframe', 'cached'),
        *('dense', 'dense', 'dense'),
        *('keyframe', 'cached'),
    ]
    assert (
        steps[4].off_reason == 'does not pay: cached 21.00 ms, dense 21.00 ms'
    )  # 1 ms of commit()
    assert steps[7].keyframe_reason == 'probe'


def test_a_flush_while_off_is_reported_and_stays_dense():
    controller = make_controller(preset('off'), steps=1)
    controller.flush('reset')
    step = run_step(controller)
    assert (step.mode, step.flush_reason) == ('dense', 'reset')


def test_reuse_that_pays_stays_on_and_times_come_from_the_injected_clock():
    controller = make_controller(replace(SAFE, auto_off=True, auto_off_min_steps=1))
    step = run_step(controller, step_ms=20.0)
    for _ in range(20):
        step = run_step(controller, step_ms=10.0)
        assert step.off_reason == ''
    step = controller.plan(make_images(), TASK)
    assert step.mode == 'cached'
    assert controller.commit(step) == pytest.approx(1)
    assert (step.diff_ms, step.selection_ms) == (pytest.approx(1), pytest.approx(1))


def test_a_configuration_that_does_not_fit_the_decoder_is_refused():
    with pytest.raises(ConfigError, match='prune layer'):
        ReuseController(LAYOUT, LAYERS, preset('paper', 32))


def test_layout_may_follow_the_instruction() -> None:
    controller = make_controller(steps=2)
    longer = replace(LAYOUT, text=(20, 24), actions=(24, 26), num_tokens=26)
    step = controller.plan(make_images(), 'pick up the other milk', longer)
    assert step.flush_reason == 'instruction change'
    assert np.array_equal(step.plan.recompute[0], np.arange(26))
    assert controller.layout is longer


def test_layout_with_other_vision_spans_is_refused() -> None:
    controller = make_controller()
    shifted = replace(LAYOUT, cameras=(CameraSpan('front', 1, SIDE, SIDE),))
    with pytest.raises(ConfigError, match='another ReuseController'):
        controller.plan(make_images(), TASK, shifted)


def test_a_wider_plan_is_what_is_committed_and_aged():
    controller = make_controller(steps=1)
    step = controller.plan(make_images(), TASK)
    reused = np.setdiff1d(EVERY, step.plan.recompute[-1])
    extra = np.sort(np.append(step.plan.recompute[0], reused[0]))
    wider = controller.widen(step, replace(step.plan, recompute=(extra,)))
    controller.commit(wider, relevance=np.zeros(LAYOUT.num_vision, np.float32))
    age = controller.plan(make_images(), TASK).plan.age
    first = LAYOUT.vision[0]
    assert age[reused[0] - first] < age[reused[1] - first]


def test_a_plan_that_leaves_out_what_must_run_is_refused():
    controller = make_controller(steps=1)
    step = controller.plan(make_images(), TASK)
    with pytest.raises(VlaCacheError, match='recomputes all'):
        controller.widen(step, replace(step.plan, recompute=(step.plan.recompute[0][1:],)))


def test_only_the_step_planned_last_can_be_widened():
    controller = make_controller(steps=1)
    step = controller.plan(make_images(), TASK)
    controller.plan(make_images(), TASK)
    with pytest.raises(VlaCacheError, match='returned last'):
        controller.widen(step, step.plan)


# Pressure and switching off by hand


LATE = replace(SAFE, difference_threshold_limit=0.1, keyframe_postpone_steps=4)


@given(st.floats(0, 1), st.integers(1, 12), st.integers(0, 10_000))
def test_pressure_reuses_more_but_nothing_protected_too_old_or_beyond_the_limit(
    pressure, age_limit, seed
):
    """Whatever the pressure, what is reused lies within the settings' own limits."""
    config = replace(
        LATE, age_limit_steps=age_limit, keyframe_postpone_steps=0, similarity_threshold=0.0
    )
    rng = np.random.default_rng(seed)
    calm, late = make_controller(config), make_controller(config)
    late.set_pressure(pressure)
    for _ in range(2 * age_limit):
        images = {
            name: (image + rng.integers(0, 40)).astype(np.uint8)
            for name, image in make_images().items()
        }
        relevance = rng.random(LAYOUT.num_vision).astype(np.float32)
        reused = []
        for controller in (calm, late):
            # Both decide from the same record, so that the decisions alone differ.
            controller._reference = late._reference and copy.deepcopy(late._reference)
            step = controller.plan(images, TASK)
            kept = np.setdiff1d(EVERY, step.plan.recompute[-1]) - LAYOUT.vision[0]
            assert not (step.plan.status[kept] == PatchStatus.PROTECTED).any()
            assert (step.plan.age[kept] < age_limit).all()
            if controller._reference is not None and step.mode == 'cached':
                change = controller._reference.compare(prepare_frame(images, LAYOUT))
                limit = controller.config.under_pressure(controller.pressure)
                assert (change.difference[kept] <= limit.difference_threshold).all()
                assert limit.difference_threshold <= 0.1
            reused.append(len(kept))
            controller.commit(step, relevance=relevance)
        assert reused[1] >= reused[0]


@given(
    st.lists(st.integers(0, 60), min_size=1, max_size=20),
    st.sampled_from(['safe', 'paper', 'paper_openvla']),
)
def test_without_pressure_or_without_a_limit_plans_are_as_before(levels, name):
    config = replace(preset(name, LAYERS), auto_off=False)
    plain, pressed = make_controller(config), make_controller(config)
    pressed.set_pressure(1.0)
    limited = make_controller(
        replace(config, difference_threshold_limit=1.0)
    )  # allowed much, asked for nothing
    for level in levels:
        plans = [
            run_step(controller, make_images(100 + level)).plan
            for controller in (plain, pressed, limited)
        ]
        for other in plans[1:]:
            assert all(
                np.array_equal(a, b)
                for a, b in zip(plans[0].recompute, other.recompute, strict=True)
            )


def test_pressure_postpones_periodic_keyframes_up_to_its_limit():
    config = replace(LATE, keyframe_period_steps=3)
    for pressure, gap in ((0.0, 3), (0.5, 5), (1.0, 7)):
        controller = make_controller(config)
        controller.set_pressure(pressure)
        modes = [run_step(controller).mode for _ in range(gap + 1)]
        assert modes == ['keyframe', *['cached'] * (gap - 1), 'keyframe']


@pytest.mark.parametrize('pressure', [-0.1, 1.1, float('nan')])
def test_a_pressure_out_of_range_is_refused(pressure):
    with pytest.raises(ConfigError, match='pressure'):
        make_controller().set_pressure(pressure)


def test_what_is_switched_off_stays_dense_until_switched_on():
    controller = make_controller(steps=3)
    controller.switch_off('shadow: too far from dense')
    for _ in range(3):
        step = run_step(controller)
        assert (step.mode, step.off_reason) == ('dense', 'shadow: too far from dense')
        assert dense(step)
    controller.flush('reset')
    assert run_step(controller).mode == 'dense'
    controller.switch_on()
    assert [run_step(controller).mode for _ in range(2)] == ['keyframe', 'cached']
