"""Which backend `auto` takes."""

import numpy as np
import pytest

from tests.models.prismatic.conftest import tiny_vla
from vla_cache_trt.choose import Timing, fastest, synthetic_frames


@pytest.mark.parametrize(
    ('torch_ms', 'openvino_ms', 'chosen'),
    [(26.0, 26.5, 'openvino'), (20.0, 26.5, 'torch'), (40.0, 26.5, 'openvino')],
)
def test_eager_pytorch_must_win_by_a_quarter(
    torch_ms: float, openvino_ms: float, chosen: str
) -> None:
    timings = [
        Timing('torch', 'fp32', dense_ms=30.0, cached_ms=torch_ms),
        Timing('openvino', 'bf16', dense_ms=30.0, cached_ms=openvino_ms),
    ]
    assert fastest(timings).backend == chosen


def test_frames_keep_most_of_the_scene_and_move_the_wrist() -> None:
    frames = synthetic_frames(tiny_vla('openvla_oft'), steps=3)
    for before, after in zip(frames, frames[1:], strict=False):
        same = {name: np.mean(before.images[name] == after.images[name]) for name in before.images}
        assert same['agentview'] > 0.7
        assert same['wrist'] < 0.1
