"""Conventions of the robots: rotations, grippers, states, and which robot a key belongs to."""

import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.spatial.transform import Rotation

from vla_cache_models.prismatic.embodiment import (
    EMBODIMENTS,
    embodiment_for,
    euler_to_axis_angle,
    libero_state,
)
from vla_cache_ros.core.errors import CheckpointError, UnknownNameError
from vla_cache_ros.core.types import Proprioception

ANGLES = arrays(np.float64, (4, 3), elements=st.floats(-math.pi, math.pi))


def chunk(gripper: list[float], deltas: float = 0.0) -> np.ndarray:
    """Actions with the given gripper numbers."""
    return np.concatenate((np.full((len(gripper), 6), deltas), np.array(gripper)[:, None]), axis=1)


def gripper_of(key: str, *numbers: float) -> list[float]:
    """What a key's embodiment sends for these gripper numbers."""
    return embodiment_for(key).to_actions(chunk(list(numbers)))[:, 6].tolist()


def state(quaternion: np.ndarray) -> np.ndarray:
    """The LIBERO state with this orientation."""
    position, fingers = np.array([0.1, 0.2, 0.3]), np.array([0.04, -0.04])
    return libero_state(Proprioception(position, quaternion, fingers))


@given(ANGLES)
def test_euler_angles_are_the_same_rotation(angles: np.ndarray) -> None:
    ours = Rotation.from_rotvec(euler_to_axis_angle(angles)).as_matrix()
    np.testing.assert_allclose(ours, Rotation.from_euler('xyz', angles).as_matrix(), atol=1e-12)


@given(arrays(np.float64, 3, elements=st.floats(-0.5, 0.5)))
def test_small_euler_angles_give_the_short_way_round(angles: np.ndarray) -> None:
    reference = Rotation.from_euler('xyz', angles).as_rotvec()
    np.testing.assert_allclose(euler_to_axis_angle(angles), reference, atol=1e-12)


def test_no_rotation_has_no_axis() -> None:
    np.testing.assert_array_equal(euler_to_axis_angle(np.zeros((2, 3))), np.zeros((2, 3)))


@pytest.mark.parametrize(
    ('key', 'name'),
    [
        ('libero_spatial_no_noops', 'libero'),
        ('libero_10', 'libero'),
        ('bridge_orig', 'bridge'),
        ('fractal20220817_data', 'google_robot'),
        ('my_robot', 'generic'),
        ('', 'generic'),
    ],
)
def test_key_chooses_the_embodiment(key: str, name: str) -> None:
    assert embodiment_for(key).name == name


def test_name_overrules_the_key() -> None:
    assert embodiment_for('bridge_orig', 'libero').name == 'libero'
    with pytest.raises(
        UnknownNameError, match='valid: libero, bridge, google_robot, finetuned, generic'
    ):
        embodiment_for('bridge_orig', 'panda')


def test_unknown_robots_take_what_the_model_asks_for() -> None:
    assert embodiment_for('my_robot', unknown='finetuned').images.crop_area == 0.9
    assert embodiment_for('libero_goal', unknown='finetuned').name == 'libero'


def test_names_are_the_keys_of_the_table() -> None:
    assert all(name == embodiment.name for name, embodiment in EMBODIMENTS.items())


def test_published_settings() -> None:
    libero, bridge, google = (EMBODIMENTS[name] for name in ('libero', 'bridge', 'google_robot'))
    assert libero.cameras == ('agentview', 'wrist')
    assert (libero.images.mirror, libero.images.jpeg_round_trip) == (True, True)
    assert libero.images.crop_area == 0.9
    assert (libero.ensemble_horizon, libero.execute_steps) == (None, 8)
    assert (bridge.ensemble_horizon, google.ensemble_horizon) == (7, 2)
    for embodiment in (bridge, google):
        assert (embodiment.images.mirror, embodiment.images.crop_area) == (False, 1.0)


def test_libero_gripper_is_scaled_binarised_and_inverted() -> None:
    assert gripper_of('libero_goal', 1.0, 0.0, 0.98, 0.51, 0.49, 0.5) == [-1, 1, -1, -1, 1, 0]


@pytest.mark.parametrize('key', ['bridge_orig', 'my_robot'])
def test_other_grippers_open_above_one_half(key: str) -> None:
    assert gripper_of(key, 1.0, 0.0, 0.51, 0.5) == [-1, 1, -1, 1]


def test_sticky_gripper_sends_each_change_ten_times() -> None:
    sent = gripper_of('fractal20220817_data', *[1.0] * 3, *[0.0] * 15, *[1.0] * 12)
    assert sent == [0] * 3 + [1] * 10 + [0] * 5 + [-1] * 10 + [0] * 2


def test_sticky_gripper_ignores_changes_while_it_sends_one() -> None:
    assert gripper_of('fractal', 1, 0, 1, *[0] * 8, 0, 0) == [0] + [1] * 10 + [0] * 2
    assert gripper_of('fractal', 1, 0, *[1] * 9, 1) == [0] + [1] * 10 + [-1]


def test_sticky_gripper_passes_small_changes_of_an_ensemble() -> None:
    np.testing.assert_allclose(
        gripper_of('fractal', 1.0, 0.75, 0.5, 0.4), [0, 0.25, 0.5, 0.6], atol=1e-6
    )


@given(st.lists(st.floats(0, 1), min_size=1, max_size=60), st.integers(1, 7))
def test_sticky_gripper_does_not_depend_on_how_steps_are_grouped(
    numbers: list[float], size: int
) -> None:
    embodiment = embodiment_for('fractal')
    pieces = [numbers[start : start + size] for start in range(0, len(numbers), size)]
    sent = np.concatenate([embodiment.to_actions(chunk(piece))[:, 6] for piece in pieces])
    np.testing.assert_array_equal(sent, gripper_of('fractal', *numbers))


def test_reset_forgets_the_episode() -> None:
    embodiment = embodiment_for('fractal')
    embodiment.to_actions(chunk([1.0, 0.0]))
    embodiment.reset()
    assert embodiment.to_actions(chunk([1.0, 1.0]))[:, 6].tolist() == [0, 0]


def test_embodiments_of_one_key_share_no_state() -> None:
    first, second = embodiment_for('fractal'), embodiment_for('fractal')
    first.to_actions(chunk([1.0, 0.0]))
    assert second.to_actions(chunk([0.0]))[:, 6].tolist() == [0]
    assert embodiment_for('fractal').to_actions(chunk([0.0]))[:, 6].tolist() == [0]


def test_libero_deltas_are_shares_of_limits() -> None:
    actions = embodiment_for('libero_10').to_actions(chunk([1.0], deltas=1.2))
    assert actions.dtype == np.float32
    np.testing.assert_array_equal(actions[:, :6], np.ones((1, 6)))


def test_bridge_deltas_are_metres_and_an_axis_angle() -> None:
    raw = chunk([1.0], deltas=1.2)
    actions = embodiment_for('bridge_orig').to_actions(raw)
    np.testing.assert_allclose(actions[0, :3], [1.2] * 3, rtol=1e-6)
    reference = Rotation.from_euler('xyz', [1.2] * 3).as_matrix()
    np.testing.assert_allclose(
        Rotation.from_rotvec(actions[0, 3:6]).as_matrix(), reference, atol=1e-6
    )


@pytest.mark.parametrize('shape', [(7,), (2, 14)])
def test_actions_of_other_robots_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(CheckpointError, match='Choose an unnorm_key'):
        embodiment_for('generic').to_actions(np.zeros(shape))


@given(arrays(np.float64, 3, elements=st.floats(-3, 3)), st.sampled_from([1.0, -1.0]))
def test_libero_state_is_position_axis_angle_and_fingers(
    rotation_vector: np.ndarray, sign: float
) -> None:
    # In float32, w = -1 to within rounding leaves the axis undetermined; LIBERO's arm is far off.
    assume(np.linalg.norm(rotation_vector) > 0.1)
    rotation = Rotation.from_rotvec(rotation_vector)
    result = state(sign * rotation.as_quat())
    np.testing.assert_allclose(result[[0, 1, 2, 6, 7]], [0.1, 0.2, 0.3, 0.04, -0.04], atol=1e-6)
    matrix = Rotation.from_rotvec(result[3:6]).as_matrix()
    np.testing.assert_allclose(matrix, rotation.as_matrix(), atol=1e-3)


def test_libero_axis_angle_follows_the_formula() -> None:
    quaternion = np.array([0.5, -0.1, 0.3, -0.8], dtype=np.float32)
    quaternion /= np.linalg.norm(quaternion)
    x, y, z, w = (float(value) for value in quaternion)
    scale = 2 * math.acos(w) / math.sqrt(1 - w * w)
    np.testing.assert_allclose(state(quaternion)[3:6], [x * scale, y * scale, z * scale])


def test_both_signs_of_a_quaternion_stay_two_states() -> None:
    quaternion = Rotation.from_rotvec([2.0, 0.0, 0.0]).as_quat()
    np.testing.assert_allclose(state(quaternion)[3:6], [2, 0, 0], atol=1e-6)
    np.testing.assert_allclose(state(-quaternion)[3:6], [2 - 2 * math.pi, 0, 0], atol=1e-6)


@pytest.mark.parametrize('w', [1.0, -1.0, 1.0000001])
def test_libero_state_without_rotation_is_zero(w: float) -> None:
    np.testing.assert_array_equal(state(np.array([0.0, 0.0, 0.0, w]))[3:6], np.zeros(3))
