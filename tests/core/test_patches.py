import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vla_cache_ros.core.errors import ObservationError
from vla_cache_ros.core.layout import CameraSpan, TokenLayout
from vla_cache_ros.core.patches import PatchReference, check_images, prepare_frame


def make_layout(*grids: tuple[int, int]) -> TokenLayout:
    spans, start = [], 1
    for index, (rows, cols) in enumerate(grids):
        spans.append(CameraSpan(f'cam{index}', start, rows, cols))
        start = spans[-1].stop
    return TokenLayout(tuple(spans), (start, start), (start, start), start)


def random_images(layout: TokenLayout, patch: tuple[int, int], seed: int) -> dict:
    """Images of every kind of patch: noise, black, saturated, flat."""
    rng = np.random.default_rng(seed)
    images = {}
    for camera in layout:
        grid = rng.integers(0, 256, (camera.rows, patch[0], camera.cols, patch[1], 3))
        kind = rng.integers(0, 5, (camera.rows, 1, camera.cols, 1, 1))
        grid = np.where(kind == 1, 0, np.where(kind == 2, 255, np.where(kind == 3, 90, grid)))
        shape = (camera.rows * patch[0], camera.cols * patch[1], 3)
        images[camera.name] = grid.reshape(shape).astype(np.uint8)
    return images


def plain_compare(layout, images, reference):
    """The two criteria, patch by patch in float64: the reference of the fast path."""
    similarity, difference = [], []
    for camera in layout:
        now, then = images[camera.name], reference[camera.name]
        height, width = now.shape[0] // camera.rows, now.shape[1] // camera.cols
        for row in range(camera.rows):
            for col in range(camera.cols):
                cut = np.s_[row * height : (row + 1) * height, col * width : (col + 1) * width]
                x, r = now[cut].astype(np.float64).ravel(), then[cut].astype(np.float64).ravel()
                norms = np.linalg.norm(x) * np.linalg.norm(r)
                similarity.append(x @ r / norms if norms else float(not x.any() and not r.any()))
                difference.append(np.sqrt(np.mean((x - r) ** 2)) / 255)
    return np.array(similarity), np.array(difference)


grids = st.lists(st.tuples(st.integers(1, 4), st.integers(1, 4)), min_size=1, max_size=3)
patches = st.tuples(st.integers(1, 17), st.integers(1, 17))
seeds = st.integers(0, 2**31)


@given(grids, patches, seeds)
def test_compare_agrees_with_the_plain_reference(grid, patch, seed):
    layout = make_layout(*grid)
    before, now = random_images(layout, patch, seed), random_images(layout, patch, seed + 1)
    change = PatchReference(prepare_frame(before, layout), layout).compare(
        prepare_frame(now, layout)
    )
    similarity, difference = plain_compare(layout, now, before)
    np.testing.assert_allclose(change.similarity, similarity, atol=1e-6)
    np.testing.assert_allclose(change.difference, difference, atol=1e-6)


@pytest.mark.parametrize(('size', 'patch'), [(128, 8), (224, 14)])
def test_compare_agrees_at_full_size(size, patch):
    layout = make_layout((16, 16), (16, 16))
    before = random_images(layout, (patch, patch), 0)
    now = random_images(layout, (patch, patch), 1)
    change = PatchReference(prepare_frame(before, layout), layout).compare(
        prepare_frame(now, layout)
    )
    similarity, difference = plain_compare(layout, now, before)
    np.testing.assert_allclose(change.similarity, similarity, atol=1e-6)
    np.testing.assert_allclose(change.difference, difference, atol=1e-6)


@given(grids, patches, seeds)
def test_equal_pixels_are_exactly_equal(grid, patch, seed):
    layout = make_layout(*grid)
    frame = prepare_frame(random_images(layout, patch, seed), layout)
    change = PatchReference(frame, layout).compare(frame)
    assert (change.similarity == 1).all()
    assert (change.difference == 0).all()


def constant(layout: TokenLayout, value: int) -> dict:
    return {camera.name: np.full((8, 8, 3), value, np.uint8) for camera in layout}


def test_difference_sees_the_brightness_that_cosine_is_blind_to():
    layout = make_layout((2, 2))
    reference = PatchReference(prepare_frame(constant(layout, 200), layout), layout)
    change = reference.compare(prepare_frame(constant(layout, 100), layout))
    np.testing.assert_allclose(change.similarity, 1, atol=1e-6)
    np.testing.assert_allclose(change.difference, 100 / 255, rtol=1e-6)


@pytest.mark.parametrize(('then', 'now', 'similarity'), [(0, 0, 1), (0, 9, 0), (9, 0, 0)])
def test_black_patches_are_defined(then, now, similarity):
    layout = make_layout((2, 2))
    reference = PatchReference(prepare_frame(constant(layout, then), layout), layout)
    change = reference.compare(prepare_frame(constant(layout, now), layout))
    assert (change.similarity == similarity).all()
    np.testing.assert_allclose(change.difference, abs(then - now) / 255, rtol=1e-6)


@given(grids, patches, st.lists(seeds, min_size=2, max_size=5))
def test_update_replaces_exactly_the_computed_tokens_pixels_and_age(grid, patch, frame_seeds):
    layout = make_layout(*grid)
    rng = np.random.default_rng(frame_seeds[0])
    kept = random_images(layout, patch, frame_seeds[0])
    reference = PatchReference(prepare_frame(kept, layout), layout)
    age = np.zeros(layout.num_vision, int)
    for seed in frame_seeds[1:]:
        images = random_images(layout, patch, seed)
        computed = rng.random(layout.num_vision) < 0.5
        reference.update(prepare_frame(images, layout), computed)
        offset = 0
        for camera in layout:
            own = computed[offset : offset + camera.size].reshape(camera.rows, camera.cols)
            mask = np.kron(own, np.ones(patch, bool))
            kept[camera.name] = np.where(mask[..., None], images[camera.name], kept[camera.name])
            offset += camera.size
        age = np.where(computed, 0, age + 1)
        change = reference.compare(prepare_frame(kept, layout))
        assert (change.similarity == 1).all()
        assert (change.difference == 0).all()
        assert (reference.age == age).all()


def test_a_frame_is_a_private_copy():
    layout = make_layout((2, 2))
    images = constant(layout, 50)
    frame = prepare_frame(images, layout)
    images['cam0'][:] = 0
    change = PatchReference(prepare_frame(constant(layout, 50), layout), layout).compare(frame)
    assert (change.difference == 0).all()


def test_non_contiguous_images_are_read_as_they_look():
    layout = make_layout((2, 2))
    images = random_images(layout, (4, 4), 3)
    flipped = {'cam0': images['cam0'][::-1, ::-1]}
    plain = {'cam0': np.ascontiguousarray(flipped['cam0'])}
    change = PatchReference(prepare_frame(plain, layout), layout).compare(
        prepare_frame(flipped, layout)
    )
    assert (change.difference == 0).all()


@pytest.mark.parametrize(
    'image',
    [
        np.zeros((8, 8, 3), np.float32),
        np.zeros((8, 8), np.uint8),
        np.zeros((8, 8, 4), np.uint8),
        np.zeros((7, 8, 3), np.uint8),
        np.zeros((8, 7, 3), np.uint8),
        np.zeros((0, 8, 3), np.uint8),
    ],
)
def test_images_that_cannot_be_cut_into_patches_are_refused(image):
    layout = make_layout((2, 2))
    for function in (check_images, prepare_frame):
        with pytest.raises(ObservationError, match=r"'cam0'.*valid: uint8"):
            function({'cam0': image}, layout)


def test_a_missing_camera_is_named():
    layout = make_layout((2, 2), (2, 2))
    with pytest.raises(ObservationError, match="'cam1' is missing.*cam0"):
        check_images({'cam0': np.zeros((8, 8, 3), np.uint8)}, layout)
