import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from vla_cache_ros.core.errors import ObservationError
from vla_cache_ros.serving.arrays import make_array
from vla_cache_ros.serving.observations import ORIENTATIONS, Conventions, to_quaternion

QUATERNIONS = (
    st.lists(st.floats(-1, 1), min_size=4, max_size=4)
    .map(np.array)
    .filter(lambda q: np.linalg.norm(q) > 0.1)
    .map(lambda q: q / np.linalg.norm(q))
)


def rotation_vector(quaternion):
    """As robosuite and the published clients write it: 2 acos(w) along the axis, up to 2 pi."""
    sine = np.sqrt(max(0.0, 1 - quaternion[3] ** 2))
    if sine < 1e-7:
        return np.zeros(3)
    return quaternion[:3] * 2 * np.arccos(quaternion[3]) / sine


@given(QUATERNIONS)
def test_a_quaternion_comes_back_with_its_sign(quaternion):
    if abs(quaternion[3]) > 0.9999:  # no rotation has no axis, and acos no precision there
        return
    np.testing.assert_allclose(to_quaternion(rotation_vector(quaternion)), quaternion, atol=1e-5)


@given(st.lists(st.floats(-3, 3), min_size=3, max_size=3).map(np.array))
def test_the_quaternion_turns_as_the_vector_does(vector):
    turn = Rotation.from_quat(to_quaternion(vector)) * Rotation.from_rotvec(vector).inv()
    assert turn.magnitude() < 1e-5


def test_images_become_upright():
    upright = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    opengl = upright[::-1]  # rows from the bottom up
    sent = {
        'upright': upright,
        'bottom_up': opengl,
        'mirrored': opengl[::-1, ::-1],  # what LIBERO's published clients make of it
    }
    assert sent.keys() == ORIENTATIONS.keys()
    for name, image in sent.items():
        conventions = Conventions(('agentview',), name, needs_state=False)
        observation = conventions.observation(
            {'agentview': image, 'words': 'pick'}, {}, 'state', 'words'
        )
        np.testing.assert_array_equal(observation.images['agentview'], upright)
        assert observation.images['agentview'].flags.c_contiguous


def test_a_missing_camera_is_named_as_the_client_knows_it():
    with pytest.raises(ObservationError, match="'eye' is missing: .* cameras agentview, wrist"):
        Conventions(('agentview', 'wrist')).observation(
            {'top': np.zeros((2, 2, 3), np.uint8), 'words': 'pick'},
            {'agentview': 'top', 'wrist': 'eye'},
            'state',
            'words',
        )


@given(
    st.sampled_from(['<f4', '<f8', '|u1', '<i8', '|b1', '>u2']),
    st.lists(st.integers(1, 4), max_size=4),
)
def test_an_array_comes_back_as_it_went(dtype, shape):
    array = np.arange(np.prod(shape, dtype=int)).astype(dtype).reshape(shape)
    again = make_array(array.tobytes(), array.dtype.str, array.shape)
    assert again.dtype == array.dtype
    np.testing.assert_array_equal(again, array)
