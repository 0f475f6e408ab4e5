from dataclasses import replace

import numpy as np
import pytest

from vla_cache_ros.core.errors import ConfigError, EngineError
from vla_cache_trt.backends import BACKENDS
from vla_cache_trt.build import Wanted, build_engines, on_engines
from vla_cache_trt.manifest import read_manifest
from vla_cache_trt.verify import (
    THRESHOLDS,
    Thresholds,
    Trace,
    differences,
    failures,
    verify_engines,
)


@pytest.fixture
def built(wanted):
    build_engines(wanted)
    return wanted


def one_trace(motion=0.0, gripper=1.0, hidden=0.0, steps=3):
    rng = np.random.default_rng(0)
    actions = rng.normal(size=(steps, 4, 7)).astype(np.float32)
    actions[:, :, 6] = gripper
    actions[0, 0, 0] += motion
    states = rng.normal(size=(steps, 1, 9, 8)).astype(np.float32) + np.float32(hidden)
    return Trace(list(actions), list(states), [None] * steps)


def test_a_right_engine_is_blessed(built, frames):
    verification = verify_engines(built, frames, 'a test')
    assert verification.passed
    assert set(verification.figures) == {'dense', 'cached'}
    assert verification.figures['cached']['relevance_cosine'] > 0.9999
    assert verification.frames == len(frames)
    manifest = read_manifest(built.folder, '')
    assert manifest.is_blessed
    assert manifest.verification == verification


def test_a_wrong_engine_is_refused_and_its_manifest_says_so(built, fake, frames):
    verify_engines(built, frames)
    fake.wrong = True
    verification = verify_engines(built, frames)
    assert not verification.passed
    assert not read_manifest(built.folder, '').is_blessed
    with pytest.raises(EngineError, match='compared with PyTorch and refused'):
        on_engines(built)
    missed = failures(verification.figures, THRESHOLDS['fp32'])
    assert any(line.startswith('dense: motion is ') for line in missed)
    assert any(line.startswith('cached: hidden_cosine is ') for line in missed)


def test_a_damaged_engine_is_not_even_run(built, frames):
    (built.folder / 'head' / 'plan.bin').write_bytes(b'')
    with pytest.raises(EngineError, match='truncated'):
        verify_engines(built, frames)


def test_what_compiles_nothing_is_verified_without_a_build(model, frames, tmp_path):
    wanted = Wanted(model, model.preset('safe'), 'torch', 'fp32', root=tmp_path)
    assert verify_engines(wanted, frames).passed
    assert read_manifest(wanted.folder, '').is_blessed
    build_engines(wanted, (16,))
    assert verify_engines(wanted, frames).passed
    assert read_manifest(wanted.folder, '').identity.buckets == (16, 49)


def test_without_frames_there_is_nothing_to_compare(built):
    with pytest.raises(ConfigError, match='no frames'):
        verify_engines(built, [])


def test_reuse_that_is_off_has_no_cached_arm(built, model, frames):
    off = replace(built, reuse=model.preset('off'))
    build_engines(off)
    assert set(verify_engines(off, frames).figures) == {'dense'}


def test_every_precision_of_every_backend_has_thresholds():
    assert {name for backend in BACKENDS for name in backend.precisions} <= set(THRESHOLDS)


def test_equal_traces_have_no_difference():
    figures = differences(one_trace(), one_trace(), generates=False)
    assert figures['motion'] == figures['motion_mean'] == figures['hidden_max'] == 0
    assert figures['gripper'] == 1
    assert figures['hidden_cosine'] == pytest.approx(1)
    assert 'relevance_cosine' not in figures


def test_one_wrong_step_is_seen_unless_tokens_are_generated():
    other = one_trace(motion=0.5)
    assert differences(one_trace(), other, generates=False)['motion'] == pytest.approx(0.5)
    generated = differences(one_trace(), other, generates=True)
    assert generated['motion'] == 0
    assert generated['motion_max'] == pytest.approx(0.5)


def test_the_gripper_is_judged_by_agreement():
    figures = differences(one_trace(), one_trace(gripper=-1.0), generates=False)
    assert figures['gripper'] == 0
    assert figures['motion'] == 0


@pytest.mark.parametrize(
    ('figures', 'missed'),
    [
        ({'motion': 0.01, 'hidden_cosine': 0.995}, []),
        ({'motion': 0.2, 'hidden_cosine': 0.995}, ['motion']),
        ({'motion': 0.01, 'hidden_cosine': 0.9}, ['hidden_cosine']),
        ({'motion': float('nan'), 'hidden_cosine': float('nan')}, ['motion', 'hidden_cosine']),
        ({'motion_max': 9.0}, []),
    ],
)
def test_thresholds_are_held_against_the_figures(figures, missed):
    thresholds = Thresholds(0.1, 0.95, 0.99, 0.99)
    lines = failures({'dense': figures}, thresholds)
    assert [line.split()[1] for line in lines] == missed
