import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vla_cache_sim.experts.grasps import (
    HOME_ANGLE_RAD,
    MAX_STRETCH_M,
    MIN_STRETCH_M,
    across_narrowest,
    angle_difference,
    on_rim,
    within_reach,
    wrist_stretch_m,
)

NOTHING = np.empty((0, 3))
SHOULDER = np.array([-0.6, 0.0, 0.333])
NEAR = np.array([-0.2, 0.0, 0.05])


def box(centre: tuple[float, float, float], size: tuple[float, float, float], yaw: float = 0.0):
    ticks = [np.linspace(-s / 2, s / 2, 5) for s in size]
    points = np.stack(np.meshgrid(*ticks), axis=-1).reshape(-1, 3)
    turn = np.array([[np.cos(yaw), -np.sin(yaw), 0], [np.sin(yaw), np.cos(yaw), 0], [0, 0, 1]])
    return points @ turn.T + centre


def bowl(centre: tuple[float, float, float], rotation: np.ndarray) -> np.ndarray:
    angle = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    rings = [
        np.stack([r * np.cos(angle), r * np.sin(angle), np.full(40, h)], axis=1)
        for r, h in ((0.035, 0.0), (0.045, 0.025), (0.053, 0.052))
    ]
    return np.concatenate(rings) @ rotation.T + centre


@given(yaw=st.floats(-0.6, 0.6), x=st.floats(-0.1, 0.1), y=st.floats(-0.3, 0.3))
def test_a_box_is_taken_across_its_narrow_side(yaw: float, x: float, y: float):
    points = box((x, y, 0.01), (0.08, 0.04, 0.02), yaw)
    grasp = across_narrowest(points, NOTHING)
    assert abs(angle_difference(grasp.angle_rad, HOME_ANGLE_RAD + yaw)) < np.deg2rad(12)
    assert grasp.position_m[:2] == pytest.approx([x, y], abs=0.004)
    assert 0.039 < grasp.width_m < 0.055


def test_equals_do_not_flicker():
    rng = np.random.default_rng(0)
    grasp = None
    angles = set()
    for _ in range(20):
        points = box((0, 0, 0.05), (0.05, 0.05, 0.1), np.pi / 4)
        grasp = across_narrowest(points + rng.normal(0, 3e-4, 3), NOTHING, grasp)
        angles.add(round(grasp.angle_rad, 3))
    assert len(angles) == 1


def test_a_tall_neighbour_under_the_palm_turns_or_shifts_the_hand():
    points = box((0, 0, 0.01), (0.08, 0.04, 0.02))
    free = across_narrowest(points, NOTHING)
    neighbour = box((0.03, 0.09, 0.05), (0.05, 0.05, 0.1))
    grasp = across_narrowest(points, neighbour)
    assert free.shift_m == 0
    assert (grasp.shift_m, grasp.angle_rad) != (free.shift_m, free.angle_rad)
    offset = neighbour[:, :2] - grasp.position_m[:2]
    along = np.abs(offset @ grasp.axis)
    across = np.abs(offset @ np.array([-grasp.axis[1], grasp.axis[0]]))
    assert not ((along < 0.1) & (across < 0.035)).any()


def test_a_low_neighbour_does_not():
    points = box((0, 0, 0.04), (0.06, 0.06, 0.08))
    low = box((0.0, 0.09, 0.01), (0.04, 0.04, 0.02))
    with_neighbour, alone = across_narrowest(points, low), across_narrowest(points, NOTHING)
    assert with_neighbour.angle_rad == alone.angle_rad
    assert with_neighbour.shift_m == alone.shift_m


@given(x=st.floats(-0.25, 0.1), y=st.floats(-0.2, 0.2))
def test_a_bowl_is_taken_at_its_wall(x: float, y: float):
    centre = (x, y, 0.05)
    grasp = on_rim(np.array(centre), np.eye(3), bowl(centre, np.eye(3)), NOTHING, SHOULDER, NEAR)
    offset = grasp.position_m[:2] - (x, y)
    assert np.hypot(*offset) == pytest.approx(0.047, abs=0.003)
    # The closing axis is radial: one finger inside, one outside.
    assert abs(offset @ grasp.axis) == pytest.approx(0.047, abs=0.003)
    assert 0.05 < grasp.position_m[2] < 0.102


def test_a_bowl_far_away_is_taken_at_the_near_side():
    centre = np.array([0.16, 0.0, 0.05])
    grasp = on_rim(centre, np.eye(3), bowl(tuple(centre), np.eye(3)), NOTHING, SHOULDER, NEAR)
    assert grasp.position_m[0] < centre[0]


def test_a_bowl_for_a_far_destination_is_held_at_the_near_side():
    centre = np.array([-0.1, 0.0, 0.05])
    points, far = bowl(tuple(centre), np.eye(3)), np.array([0.15, 0.2, 0.05])
    near_grasp = on_rim(centre, np.eye(3), points, NOTHING, SHOULDER, NEAR)
    far_grasp = on_rim(centre, np.eye(3), points, NOTHING, SHOULDER, far)
    towards = (far - SHOULDER)[:2]
    assert (far_grasp.position_m - near_grasp.position_m)[:2] @ towards < 0


def test_a_blocked_angle_is_taken_last():
    centre = np.array([-0.1, 0.0, 0.05])
    points = bowl(tuple(centre), np.eye(3))
    first = on_rim(centre, np.eye(3), points, NOTHING, SHOULDER, NEAR)
    blocked = (first.angle_rad,)
    other = on_rim(centre, np.eye(3), points, NOTHING, SHOULDER, NEAR, None, blocked)
    assert abs(np.angle(np.exp(1j * (other.angle_rad - first.angle_rad)))) > 0.25


@given(
    offset=st.tuples(st.floats(-0.3, 1.2), st.floats(-1, 1), st.floats(-0.6, 0.8)),
)
def test_goals_are_moved_into_reach_and_otherwise_left(offset: tuple[float, float, float]):
    goal = SHOULDER + offset
    reached = within_reach(goal, SHOULDER)
    stretch = wrist_stretch_m(goal, SHOULDER)
    if MIN_STRETCH_M < stretch < MAX_STRETCH_M:
        assert reached == pytest.approx(goal, abs=1e-9)
    elif np.hypot(*offset[:2]) > 0.1:
        assert MIN_STRETCH_M - 1e-6 <= wrist_stretch_m(reached, SHOULDER) <= MAX_STRETCH_M + 1e-6


@given(a=st.floats(-10, 10), b=st.floats(-10, 10))
def test_axes_differ_by_less_than_a_right_angle(a: float, b: float):
    difference = angle_difference(a, b)
    assert -np.pi / 2 <= difference <= np.pi / 2
    turns = (a - b - difference) / np.pi
    assert turns == pytest.approx(round(turns), abs=1e-6)
