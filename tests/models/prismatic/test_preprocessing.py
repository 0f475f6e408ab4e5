"""Pictures and pixel values against formulas written out anew: dense weights, float64."""

import io
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from vla_cache_models.prismatic.preprocessing import ImageProtocol, ImageTransform
from vla_cache_ros.core.errors import CheckpointError, ConfigError, ObservationError

PLAIN = ImageProtocol()
LIBERO = ImageProtocol(mirror=True, jpeg_round_trip=True, crop_area=0.9)
CONFIG = {
    'image_resize_strategy': 'resize-naive',
    'input_sizes': [[3, 224, 224], [3, 224, 224]],
    'interpolations': ['bicubic', 'bicubic'],
    'means': [[0.484375, 0.455078125, 0.40625], [0.5, 0.5, 0.5]],
    'stds': [[0.228515625, 0.2236328125, 0.224609375], [0.5, 0.5, 0.5]],
}
COPIES = [
    {'inplace': False, 'mean': mean, 'std': std}
    for mean, std in zip(CONFIG['means'], CONFIG['stds'], strict=True)
]


def transform(size: int = 28, strategy: str = 'resize-naive') -> ImageTransform:
    return replace(ImageTransform.dinosiglip_224(), image_size_px=size, resize_strategy=strategy)


def photo(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Smooth areas, edges and noise, over the whole range of values."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[0:height, 0:width]
    waves = 128 + 90 * np.sin(rows[..., None] / (3 + rng.random(3) * 9) + columns[..., None] / 7)
    waves[height // 3 : height // 2, width // 4 : width // 2] = rng.integers(0, 256, 3)
    return np.clip(waves + rng.normal(0, 20, waves.shape), 0, 255).astype(np.uint8)


def lanczos3(x: float) -> float:
    if x == 0:
        return 1.0
    if abs(x) >= 3:
        return 0.0
    return math.sin(math.pi * x) / (math.pi * x) * math.sin(math.pi * x / 3) / (math.pi * x / 3)


def lanczos3_weights(before: int, after: int) -> np.ndarray:
    ratio = before / after
    stretch = max(ratio, 1.0)
    weights = np.array(
        [
            [lanczos3((j + 0.5 - (i + 0.5) * ratio) / stretch) for j in range(before)]
            for i in range(after)
        ]
    )
    return weights / weights.sum(1, keepdims=True)


def resized_by_formula(image: np.ndarray, size: int) -> np.ndarray:
    rows, columns = (lanczos3_weights(side, size) for side in image.shape[:2])
    values = np.einsum('ih,hwc,jw->ijc', rows, image.astype(np.float64), columns)
    return np.clip(np.round(values), 0, 255)


def cropped_by_formula(image: np.ndarray, area: float) -> np.ndarray:
    """tf.image.crop_and_resize's equation, pixel by pixel."""
    last = len(image) - 1
    low, high = (1 - math.sqrt(area)) / 2, (1 + math.sqrt(area)) / 2
    source = image.astype(np.float64) / 255
    result = np.empty(image.shape)
    for i, j in np.ndindex(image.shape[:2]):
        y, x = (low * last + k * (high - low) * last / last for k in (i, j))
        top, left = int(y), int(x)
        dy, dx = y - top, x - left
        result[i, j] = (
            (1 - dy) * (1 - dx) * source[top, left]
            + (1 - dy) * dx * source[top, left + 1]
            + dy * (1 - dx) * source[top + 1, left]
            + dy * dx * source[top + 1, left + 1]
        )
    return np.floor(np.clip(result, 0, 1) * 255.5)


def jpeg(image: np.ndarray) -> np.ndarray:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, 'JPEG', quality=95, subsampling='4:2:0')
    return np.asarray(Image.open(buffer))


def assert_levels(actual: np.ndarray, expected: np.ndarray, share: float) -> None:
    """Equal to one level of 255, and to the last bit but for a share of the pixels."""
    difference = np.abs(actual.astype(int) - expected.astype(int))
    assert difference.max() <= 1
    assert (difference > 0).mean() <= share


@pytest.mark.parametrize(('height', 'width'), [(32, 32), (48, 64), (20, 37), (128, 128)])
def test_jpeg_and_lanczos3_follow_the_formula(height, width):
    image = photo(height, width)
    view = transform().view(image, ImageProtocol(jpeg_round_trip=True))
    # Only ties may fall differently in float32.
    assert_levels(view, resized_by_formula(jpeg(image), 28), share=0.001)


def test_the_crop_follows_tensorflows_equation():
    image = photo(28, 28)
    view = transform().view(image, ImageProtocol(crop_area=0.9))
    assert_levels(view, cropped_by_formula(image, 0.9), share=0.001)


def test_the_whole_libero_protocol_follows_the_formulas_in_their_order():
    image = photo(64, 64)
    expected = resized_by_formula(jpeg(image[:, ::-1].copy()), 56)
    # A resize that is off by one level at a tie may move the pixels around it.
    assert_levels(transform(56).view(image, LIBERO), cropped_by_formula(expected, 0.9), 0.005)


@pytest.mark.parametrize(('height', 'width'), [(40, 40), (30, 61), (61, 30), (20, 25)])
@pytest.mark.parametrize('strategy', ['resize-naive', 'letterbox', 'resize-crop'])
def test_without_jpeg_it_is_the_checkpoints_transform_in_torchvision(strategy, height, width):
    from vla_cache_models.prismatic.timm_import import import_timm

    import_timm()  # makes torchvision importable
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms import functional as tv

    picture = Image.fromarray(photo(height, width))
    size: list[int] = [28, 28]
    if strategy == 'letterbox':
        rows, columns = (int((max(height, width) - side) / 2) for side in (height, width))
        picture = tv.pad(picture, [columns, rows, columns, rows], fill=(127, 127, 127))
    if strategy != 'resize-naive':
        size = [28]
    resized = tv.resize(picture, size, InterpolationMode.BICUBIC, antialias=True)
    expected = np.asarray(tv.center_crop(resized, [28, 28]))
    view = transform(strategy=strategy).view(photo(height, width), PLAIN)
    np.testing.assert_array_equal(view, expected)


@given(
    value=st.integers(0, 255),
    height=st.integers(2, 50),
    width=st.integers(2, 50),
    jpeg_round_trip=st.booleans(),
    crop_area=st.sampled_from([0.5, 0.9, 1.0]),
)
def test_a_grey_image_stays_as_it_is(value, height, width, jpeg_round_trip, crop_area):
    image = np.full((height, width, 3), value, dtype=np.uint8)
    view = transform().view(image, ImageProtocol(False, jpeg_round_trip, crop_area))
    assert view.shape == (28, 28, 3)
    assert (view == value).all()


@given(
    seed=st.integers(0, 99),
    side=st.integers(3, 60),
    jpeg_round_trip=st.booleans(),
    strategy=st.sampled_from(['resize-naive', 'letterbox', 'resize-crop']),
)
def test_a_view_without_crop_and_mirror_is_its_own_view(seed, side, jpeg_round_trip, strategy):
    protocol = ImageProtocol(jpeg_round_trip=jpeg_round_trip)
    image = np.random.default_rng(seed).integers(0, 256, (side, 31, 3), dtype=np.uint8)
    view = transform(strategy=strategy).view(image, protocol)
    np.testing.assert_array_equal(transform(strategy=strategy).view(view, protocol), view)


@given(seed=st.integers(0, 99))
def test_mirroring_twice_changes_nothing(seed):
    image = np.random.default_rng(seed).integers(0, 256, (28, 28, 3), dtype=np.uint8)
    once = transform().view(image, ImageProtocol(mirror=True))
    np.testing.assert_array_equal(once, image[:, ::-1])
    np.testing.assert_array_equal(transform().view(once, ImageProtocol(mirror=True)), image)


@given(area=st.floats(0.3, 1.0), seed=st.integers(0, 99))
def test_the_crop_keeps_the_centre_and_the_symmetry(area, seed):
    half = np.random.default_rng(seed).integers(0, 256, (28, 14, 3), dtype=np.uint8)
    symmetric = np.concatenate([half, half[:, ::-1]], axis=1)
    view = transform().view(symmetric, ImageProtocol(crop_area=area)).astype(int)
    assert np.abs(view - view[:, ::-1]).max() <= 1  # rounding


def test_views_are_contiguous_and_leave_their_input_alone():
    for protocol in (PLAIN, LIBERO, ImageProtocol(crop_area=0.9)):
        for side in (28, 40):
            image = photo(side, side)
            image.setflags(write=False)
            before = image.copy()
            view = transform().view(image, protocol)
            np.testing.assert_array_equal(image, before)
            assert view.flags.c_contiguous
            assert view.dtype == np.uint8
            assert transform().view(image[:, ::-1], protocol).shape == view.shape


def test_pixel_values_are_normalised_per_tower_in_tower_order():
    views = [photo(28, 28, seed) for seed in (1, 2)]
    pixels = transform().pixel_values(views)
    assert pixels.shape == (2, 6, 28, 28)
    assert pixels.is_contiguous()
    statistics = [
        *zip((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), strict=True),
        *[(0.5, 0.5)] * 3,
    ]
    for camera, view in enumerate(views):
        for channel, (mean, std) in enumerate(statistics):
            expected = (view[..., channel % 3].astype(np.float64) / 255 - mean) / std
            actual = pixels[camera, channel].double().numpy()
            np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-6)


def test_pixel_values_are_cast_after_the_arithmetic():
    views = [photo(28, 28)]
    expected = transform().pixel_values(views).to(torch.bfloat16)
    torch.testing.assert_close(
        transform().pixel_values(views, 'cpu', torch.bfloat16), expected, atol=0, rtol=0
    )


def test_openvlas_preprocessor_config_is_read():
    stated = ImageTransform.from_preprocessor_config(CONFIG)
    assert stated.image_size_px == 224
    assert stated.means == ((0.484375, 0.455078125, 0.40625), (0.5, 0.5, 0.5))
    assert stated.stds[0][2] == 0.224609375
    more = {**CONFIG, 'tvf_normalize_params': COPIES, 'image_processor_type': 'X'}
    assert ImageTransform.from_preprocessor_config(more) == stated


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'image_resize_strategy': 'stretch'}, "'stretch'; valid: resize-naive, letterbox"),
        ({'interpolations': ['bicubic', 'cubic']}, 'resized in one way'),
        ({'interpolations': ['cubic', 'cubic']}, "'cubic'; valid: nearest, bilinear"),
        ({'input_sizes': [[3, 224, 224], [3, 384, 384]]}, 'one square picture'),
        ({'means': CONFIG['means'][:1]}, '1 means and 2 stds'),
        ({'means': [[0.5, 0.5], [0.5, 0.5]]}, 'preprocessor_config.json'),
        ({'means': None}, 'preprocessor_config.json'),
        ({'stds': [[0.5, 0.5, 0.0], [0.5, 0.5, 0.5]]}, 'above 0'),
        ({'input_sizes': [[3, 0, 0]]}, 'image_size_px is 0'),
        ({'input_sizes': None}, r'TypeError.*input_sizes \[3, S, S\]'),
        (
            {'tvf_normalize_params': [{'mean': [0.5] * 3, 'std': [0.5] * 3}] * 2},
            'contradicts itself',
        ),
        ({'tvf_normalize_params': COPIES[::-1]}, 'contradicts itself'),
        ({'tvf_normalize_params': COPIES[:1]}, 'contradicts itself'),
        ({'tvf_normalize_params': [{'mean': [0.5] * 3}]}, "KeyError.*'std'"),
    ],
)
def test_a_bad_preprocessor_config_is_refused(change, message):
    with pytest.raises(CheckpointError, match=message):
        ImageTransform.from_preprocessor_config({**CONFIG, **change})


def test_a_preprocessor_config_without_an_entry_is_refused():
    config = {key: value for key, value in CONFIG.items() if key != 'means'}
    with pytest.raises(CheckpointError, match=r'lacks means; .* has image_resize_strategy'):
        ImageTransform.from_preprocessor_config(config)


@pytest.mark.parametrize('area', [0.0, -0.1, 1.01, math.nan])
def test_a_crop_of_nothing_or_too_much_is_refused(area):
    with pytest.raises(ConfigError, match='crop_area'):
        ImageProtocol(crop_area=area)


@pytest.mark.parametrize(
    ('image', 'message'),
    [
        (np.zeros((8, 8, 3), np.float32), r'float32 \[8, 8, 3\]; it must be uint8 \[H, W, 3\]'),
        (np.zeros((8, 8), np.uint8), r'\[8, 8\]'),
        (np.zeros((8, 8, 4), np.uint8), r'\[8, 8, 4\]'),
        (np.zeros((0, 8, 3), np.uint8), 'not empty'),
        ([[1, 2]], 'a list'),
    ],
)
def test_what_is_no_image_is_refused(image, message):
    with pytest.raises(ObservationError, match=message):
        transform().view(image, PLAIN)
    with pytest.raises(ObservationError, match=message):
        transform().pixel_values([image])


def test_missing_pictures_and_pictures_of_another_size_are_refused():
    with pytest.raises(ObservationError, match='no picture'):
        transform().pixel_values([])
    with pytest.raises(ObservationError, match='20 x 28 px .* 28 x 28.*ImageTransform.view'):
        transform().pixel_values([photo(20, 28)])


SCENE = """
<mujoco>
  <asset><material name="red" rgba="1 0 0 1"/></asset>
  <worldbody>
    <light pos="0 0 3" castshadow="false"/>
    <camera name="c" pos="0 0 2"/>
    <geom group="1" type="box" size=".2 .3 .1" pos=".5 .4 0" material="red"/>
    <geom group="1" type="sphere" size=".3" pos="-.4 .2 0" rgba="0 1 0 1"/>
    <geom group="1" type="capsule" size=".1 .3" pos="0 -.5 0" euler="70 20 0" rgba="0 0 1 1"/>
  </worldbody>
</mujoco>
"""


@pytest.mark.sim
def test_liberos_rotated_image_is_the_mirrored_view_of_our_upright_one():
    import mujoco
    from robosuite.utils.binding_utils import MjRenderContextOffscreen, MjSim

    from vla_cache_sim.renderer import Renderer

    sim = MjSim(mujoco.MjModel.from_xml_string(SCENE))
    sim.forward()
    size = 64
    ours = Renderer(sim.model._model, sim.data._data)
    upright = ours.render(0, size)
    ours.close()
    MjRenderContextOffscreen(sim, device_id=-1)  # it adds itself to the simulation
    raw = sim.render(size, size, camera_name='c')
    rotated = raw[::-1, ::-1]  # LIBERO's data: rotated by 180 degrees
    view = transform(size).view(upright, ImageProtocol(mirror=True))
    np.testing.assert_array_equal(view, rotated)
    assert (view != upright).any(axis=-1).mean() > 0.1  # the scene does tell them apart
