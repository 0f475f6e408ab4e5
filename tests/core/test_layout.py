import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vla_cache_ros.core.errors import ConfigError, UnknownNameError
from vla_cache_ros.core.layout import ATTENTION_RULES, CameraSpan, TokenLayout


def make_layout(attention: str = 'all', causal: bool = False, before: int = 1) -> TokenLayout:
    """`before` tokens, cameras of 2 x 2 and 1 x 3 patches, then five others."""
    front = CameraSpan('front', before, 2, 2)
    wrist = CameraSpan('wrist', front.stop, 1, 3)
    stop = wrist.stop
    return TokenLayout(
        (front, wrist), (stop + 1, stop + 3), (stop + 3, stop + 5), stop + 5, attention, causal
    )


def test_spans_are_counted_from_the_cameras():
    layout = make_layout()
    assert layout.vision == (1, 8)
    assert layout.num_vision == 7
    assert layout.always_recomputed.tolist() == [0, 8, 9, 10, 11, 12]
    assert [camera.name for camera in layout] == ['front', 'wrist']


@given(st.sampled_from(ATTENTION_RULES), st.booleans(), st.integers(0, 3))
def test_who_may_attend_to_whom(attention, causal, before):
    layout = make_layout(attention, causal, before)
    front, wrist = layout.cameras
    camera_of = np.zeros(layout.num_tokens, int)
    camera_of[front.start : front.stop] = 1
    camera_of[wrist.start : wrist.stop] = 2
    visible = layout.visible()
    for query in range(layout.num_tokens):
        for key in range(layout.num_tokens):
            allowed = not causal or key <= query
            if camera_of[query] and attention == 'vision_isolated':
                allowed &= bool(camera_of[key])
            if camera_of[query] and attention == 'camera_isolated':
                allowed &= camera_of[key] == camera_of[query]
            assert visible[query, key] == allowed


def test_spans_that_do_not_fit_are_refused():
    front, apart = CameraSpan('front', 0, 2, 2), CameraSpan('wrist', 5, 2, 2)
    with pytest.raises(ConfigError, match='front ends at slot 4, wrist begins at 5'):
        TokenLayout((front, apart), (9, 10), (10, 10), 10)
    with pytest.raises(ConfigError, match=r'text span \(4, 12\) lies outside 0..10'):
        TokenLayout((front,), (4, 12), (10, 10), 10)
    with pytest.raises(ConfigError, match='at least one camera'):
        TokenLayout((), (0, 1), (1, 1), 1)
    with pytest.raises(UnknownNameError, match='valid: all, vision_isolated, camera_isolated'):
        make_layout('left')
