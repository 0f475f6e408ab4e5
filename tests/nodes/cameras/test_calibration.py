"""Calibration files: as camera_calibration writes them, and every way in which they are not."""

import contextlib
import os

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from vla_cache_ros.core.errors import ConfigError
from vla_cache_ros.nodes.cameras.calibration import load_calibration

WRITTEN = """
image_width: 640
image_height: 480
camera_name: narrow_stereo
camera_matrix:
  rows: 3
  cols: 3
  data: [438.783367, 0.000000, 305.593336, 0.000000, 437.302876, 243.738352, 0.0, 0.0, 1.0]
distortion_model: plumb_bob
distortion_coefficients:
  rows: 1
  cols: 5
  data: [-0.361976, 0.110510, 0.001014, 0.000505, 0.000000]
rectification_matrix:
  rows: 3
  cols: 3
  data: [0.999978, 0.002789, -0.006046, -0.002816, 0.999986, -0.004401, 0.006034, 0.004417, 1.0]
projection_matrix:
  rows: 3
  cols: 4
  data: [393.653800, 0.0, 322.797939, 0.0, 0.0, 393.653800, 241.090902, 0.0, 0.0, 0.0, 1.0, 0.0]
"""

BOMB = 'a: &a [x,x,x,x,x,x,x,x,x]\n' + '\n'.join(
    f'{name}: &{name} [{",".join([f"*{before}"] * 9)}]'
    for before, name in zip('abcdefgh', 'bcdefghi', strict=True)
)


@pytest.fixture
def write(tmp_path):
    def make(text: str | bytes):
        path = tmp_path / 'front.yaml'
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return path

    return make


def test_file_of_camera_calibration_is_read(write):
    calibration = load_calibration(write(WRITTEN))
    assert calibration.size_px == (640, 480)
    assert calibration.distortion_model == 'plumb_bob'
    assert calibration.k[0] == 438.783367
    assert calibration.p[5] == 393.653800
    assert [len(part) for part in (calibration.d, calibration.r)] == [5, 9]


def test_rectification_and_projection_may_be_left_out(write):
    content = yaml.safe_load(WRITTEN)
    del content['rectification_matrix'], content['projection_matrix']
    calibration = load_calibration(write(yaml.safe_dump(content)))
    k = calibration.k
    assert calibration.r == (1, 0, 0, 0, 1, 0, 0, 0, 1)
    assert calibration.p == (k[0], 0, k[2], 0, 0, k[4], k[5], 0, 0, 0, 1, 0)


@pytest.mark.parametrize(
    ('old', 'new', 'named'),
    [
        ('image_width: 640', '', "lacks 'image_width'"),
        ('image_width: 640', 'image_width: -640', '1 to 65535'),
        ('438.783367, ', '', 'camera_matrix holds 8 numbers; valid: 9'),
        ('438.783367', '.nan', 'NaN or infinity'),
        ('438.783367', 'many', 'could not convert'),
        ('plumb_bob', '[plumb, bob]', 'distortion_model is not a word'),
        ('data:', 'dat:', "lacks 'data'"),
    ],
)
def test_what_is_wrong_with_a_file_is_said(write, old, new, named):
    path = write(WRITTEN.replace(old, new))
    with pytest.raises(ConfigError, match=named) as raised:
        load_calibration(path)
    assert str(path) in str(raised.value)


@pytest.mark.parametrize(
    'text', ['', '[1, 2]', 'a: [', b'\xff\xfe\x00', '!!python/object/apply:os.system [ls]', BOMB]
)
def test_file_that_is_none_is_refused(write, text):
    with pytest.raises(ConfigError, match=r'front\.yaml'):
        load_calibration(write(text))


def test_missing_file_and_named_pipe_are_refused(tmp_path):
    os.mkfifo(tmp_path / 'pipe.yaml')
    for name in ('pipe.yaml', 'missing.yaml'):
        with pytest.raises(ConfigError, match='no such file'):
            load_calibration(tmp_path / name)


@given(st.data())
def test_damaged_file_is_read_or_refused(tmp_path_factory, data):
    damaged = bytearray(WRITTEN.encode())
    for _ in range(data.draw(st.integers(1, 5))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp('calibration') / 'front.yaml'
    path.write_bytes(damaged)
    with contextlib.suppress(ConfigError):
        assert len(load_calibration(path).k) == 9
