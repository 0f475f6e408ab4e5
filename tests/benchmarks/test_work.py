import importlib.util
from pathlib import Path

import numpy as np
import pytest

from tests.models.prismatic.conftest import MODELS, tiny_prismatic_config
from vla_cache_models.flops import plan_flops
from vla_cache_models.prismatic.build import empty_network
from vla_cache_models.prismatic.dit import DitConfig
from vla_cache_models.prismatic.layouts import cogact_layout, oft_layout, openvla_layout
from vla_cache_ros.core.plan import LayerGroup, ReusePlan

PATH = Path(__file__).parents[2] / 'benchmarks' / 'work.py'
LAYOUTS = {
    'openvla': openvla_layout(('front',), 4, 12),
    'openvla_oft': oft_layout(('front', 'wrist'), 4, 12, 56),
    'cogact': cogact_layout(('front',), 4, 12),
}


@pytest.fixture(scope='module')
def work():
    spec = importlib.util.spec_from_file_location('work', PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope='module')
def networks():
    config = tiny_prismatic_config(kv_heads=2)
    return {name: empty_network(name, config, DitConfig(2, 32, 4)) for name in MODELS}


def make_plan(layout, dropped):
    every = np.arange(layout.num_tokens)
    kept = np.setdiff1d(every, np.arange(dropped) + layout.vision[0])
    groups = (LayerGroup(0, 2), LayerGroup(2, 6))
    status = np.zeros(layout.num_vision, dtype=np.uint8)
    return ReusePlan(layout.num_tokens, groups, (every, kept), status, status.astype(np.int32))


@pytest.mark.parametrize('model', MODELS)
def test_reuse_changes_the_work_of_the_decoder_alone(work, networks, model):
    layout = LAYOUTS[model]
    dense = work.step_work(networks[model], layout, make_plan(layout, 0))
    cached = work.step_work(networks[model], layout, make_plan(layout, 9))
    assert list(dense) == ['vision', 'decoder', 'head']
    assert dense['vision'] == cached['vision']
    assert dense['head'] == cached['head']
    config = networks[model].config.decoder
    for step, dropped in ((dense, 0), (cached, 9)):
        [part] = step['decoder'].values()
        assert part.multiply_adds == plan_flops(config, layout, make_plan(layout, dropped))


def test_projector_and_language_head_by_hand(work, networks):
    layout = LAYOUTS['openvla']
    step = work.step_work(networks['openvla'], layout, make_plan(layout, 0))
    vision, width = 32 + 48, 32
    weights = vision * 4 * vision + 4 * vision * width + width * width
    assert step['vision']['projector'].multiply_adds == layout.num_vision * weights
    assert step['vision']['projector'].bytes == 2 * (weights + 4 * vision + 2 * width)
    head = step['head']['language head']  # read once for each of the seven tokens
    assert head.multiply_adds == 7 * width * 32_064
    assert head.bytes == 2 * head.multiply_adds


def test_every_camera_runs_through_the_towers(work, networks):
    one = work.step_work(networks['cogact'], LAYOUTS['cogact'], make_plan(LAYOUTS['cogact'], 0))
    layout = LAYOUTS['openvla_oft']
    two = work.step_work(networks['openvla_oft'], layout, make_plan(layout, 0))
    for name, part in one['vision'].items():
        assert two['vision'][name].multiply_adds == 2 * part.multiply_adds
        assert two['vision'][name].bytes == part.bytes


def test_the_slower_of_arithmetic_and_memory_is_the_floor(work):
    peak = work.Peak(flops_per_s=1e12, bytes_per_s=1e9)
    assert work.floor_ms(work.Work(10**9, 10**6), peak) == pytest.approx(2.0)
    assert work.floor_ms(work.Work(10**8, 10**6), peak) == pytest.approx(1.0)
