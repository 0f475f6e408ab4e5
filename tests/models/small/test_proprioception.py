"""The continuous rotation and the scales."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from vla_cache_models.small.proprioception import PROPRIOCEPTION_SIZE, ProprioceptionScale

SCALE = ProprioceptionScale((0.1, 0.2, 0.3), (0.5, 0.5, 0.25))


def state(rotation: Rotation) -> np.ndarray:
    """A state at (0.6, 0.2, 0.3) with half-open fingers."""
    return np.concatenate(([0.6, 0.2, 0.3], rotation.as_quat(), [0.02, -0.02])).astype(np.float32)


@given(st.lists(st.floats(-3.0, 3.0), min_size=3, max_size=3))
def test_rotation_is_the_first_two_columns(rotation_vector: list[float]) -> None:
    rotation = Rotation.from_rotvec(rotation_vector)
    normalised = SCALE.normalise(state(rotation))
    matrix = rotation.as_matrix()
    np.testing.assert_allclose(normalised[3:6], matrix[:, 0], atol=1e-5)
    np.testing.assert_allclose(normalised[6:9], matrix[:, 1], atol=1e-5)


def test_both_signs_of_a_quaternion_are_one_rotation() -> None:
    raw = state(Rotation.from_rotvec([3.1, 0.0, 0.1]))
    flipped = raw.copy()
    flipped[3:7] *= -1
    np.testing.assert_array_equal(SCALE.normalise(raw), SCALE.normalise(flipped))


def test_positions_and_fingers_are_scaled() -> None:
    normalised = SCALE.normalise(np.stack([state(Rotation.identity())] * 2))
    assert normalised.shape == (2, PROPRIOCEPTION_SIZE)
    np.testing.assert_allclose(normalised[0, :3], [1, 0, 0], atol=1e-6)
    np.testing.assert_allclose(normalised[0, 9:], [0.5, -0.5], atol=1e-6)


def test_fit_keeps_scales_from_vanishing() -> None:
    positions = np.zeros((5, 3), dtype=np.float32)
    positions[:, 0] = [0.0, 0.1, 0.2, 0.3, 0.4]
    scale = ProprioceptionScale.fit(positions)
    np.testing.assert_allclose(scale.position_mean_m, [0.2, 0, 0], atol=1e-6)
    np.testing.assert_allclose(scale.position_std_m, [0.1414, 0.01, 0.01], atol=1e-3)
