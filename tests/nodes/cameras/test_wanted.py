"""The cameras that the parameters name, checked against one another."""

import dataclasses

import pytest

from vla_cache_ros.core.errors import ConfigError
from vla_cache_ros.nodes.cameras.wanted import wanted_cameras
from vla_cache_ros.nodes.parameter_tables.camera_node import CameraParameters

pytestmark = pytest.mark.ros  # the parameters' table belongs to the nodes

TWO = dataclasses.replace(
    CameraParameters(), camera_names=('front', 'wrist'), sources=('0', 'rtsp://me:secret@arm/1')
)


def test_default_is_the_first_camera():
    (wanted,) = wanted_cameras(CameraParameters())
    assert (wanted.name, wanted.source) == ('camera', '/dev/video0')
    assert wanted.frame_id == 'camera_optical_frame'


def test_each_camera_has_its_own_frame_and_shows_no_password():
    front, wrist = wanted_cameras(dataclasses.replace(TWO, frame_ids=('', 'hand')))
    assert (front.frame_id, wrist.frame_id) == ('front_optical_frame', 'hand')
    assert wrist.shown_source == 'rtsp://***@arm/1'


@pytest.mark.parametrize(
    ('changes', 'named'),
    [
        ({'sources': ('0',)}, '2 names and sources 1'),
        ({'camera_names': (), 'sources': ()}, 'at least one'),
        ({'camera_names': ('front', 'front')}, 'holds front twice'),
        ({'sources': ('0', '0')}, 'holds 0 twice'),
        ({'camera_names': ('front', 'a/b')}, 'letters, digits'),
        ({'frame_ids': ('one',)}, 'frame_ids holds 1 values for 2 cameras'),
        ({'calibrations': ('missing.yaml', '')}, r'missing\.yaml'),
    ],
)
def test_parameters_that_contradict_one_another_are_refused(changes, named):
    with pytest.raises(ConfigError, match=named):
        wanted_cameras(dataclasses.replace(TWO, **changes))
