from dataclasses import fields, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vla_cache_ros.core.config import PRESETS, ReuseConfig, baseline, preset
from vla_cache_ros.core.errors import ConfigError, UnknownNameError


@pytest.mark.parametrize('name', PRESETS)
@pytest.mark.parametrize('num_layers', [1, 2, 4, 6, 32])
def test_presets_fit_decoders_of_any_depth(name, num_layers):
    config = preset(name, num_layers)
    assert config.prune_layers[-1] < num_layers
    assert config.relevance_layer < num_layers


def test_paper_presets_hold_the_published_numbers():
    oft, openvla = preset('paper'), preset('paper_openvla')
    for config in (oft, openvla):
        assert config.prune_layers == (2, 6, 9, 11)
        assert config.relevance_layer == 15
        assert config.similarity_threshold == 0.996
        assert (config.schedule, config.growth) == ('code', 0.55)
    assert (oft.static_fraction * 256, oft.protected_fraction * 256) == (150, 100)
    assert (openvla.static_fraction * 256, openvla.protected_fraction * 256) == (130, 120)


def test_every_field_is_documented():
    for field in fields(ReuseConfig):
        assert f'        {field.name}: ' in (ReuseConfig.__doc__ or '')


@pytest.mark.parametrize(
    ('field', 'value'),
    [
        ('similarity_threshold', 1.1),
        ('difference_threshold', -0.1),
        ('static_fraction', float('nan')),
        ('protected_fraction', 2.0),
        ('camera_motion_fraction', -1.0),
        ('auto_off_margin', 1.5),
        ('growth', 2.0),
        ('gain', float('inf')),
        ('relevance_layer', -1),
        ('choice_seed', -1),
        ('prune_layers', ()),
        ('prune_layers', (3, 1)),
        ('prune_layers', (1, 1)),
        ('prune_layers', (-1,)),
        ('fixed_ratios', (0.0,)),
        ('fixed_ratios', (0.5, 0.5)),
        ('age_limit_steps', 0),
        ('keyframe_period_steps', 0),
        ('age_stagger_steps', -1),
        ('age_stagger_steps', 16),
        ('auto_off_min_steps', 0),
        ('auto_off_probe_steps', 0),
        ('auto_off_window_steps', 2),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(field, value):
    with pytest.raises(ConfigError, match=rf'{field} is .*valid: '):
        replace(ReuseConfig(), **{field: value})


@pytest.mark.parametrize('field', ['choice', 'schedule', 'entropy_refresh'])
def test_an_unknown_choice_names_the_valid_ones(field):
    with pytest.raises(UnknownNameError, match='valid: '):
        replace(ReuseConfig(), **{field: 'often'})


def test_an_unknown_preset_names_the_valid_ones():
    with pytest.raises(UnknownNameError, match='valid: safe, paper, .*, off'):
        preset('fast')


def test_what_a_preset_needs_of_the_model():
    assert preset('paper').uses_entropy
    assert preset('paper').uses_relevance
    assert not preset('safe').uses_entropy
    assert preset('safe').uses_relevance
    assert not preset('off').uses_relevance


def test_baselines_differ_from_safe_in_one_setting():
    safe = preset('safe', 6)
    assert preset('random', 6) == replace(safe, choice='random')
    assert preset('static_only', 6) == replace(safe, protected_fraction=0.0)
    assert not preset('static_only').uses_relevance
    with pytest.raises(UnknownNameError, match='valid: static_only, random'):
        baseline('safe', safe)


@given(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1), st.integers(0, 40))
def test_pressure_raises_no_setting_beyond_its_limit(pressure, threshold, limit, postpone):
    config = replace(
        preset('safe'),
        difference_threshold=threshold,
        difference_threshold_limit=limit,
        keyframe_postpone_steps=postpone,
    )
    late = config.under_pressure(pressure)
    assert threshold <= late.difference_threshold <= max(threshold, limit)
    assert config.keyframe_period_steps is not None
    assert config.age_limit_steps is not None
    assert late.keyframe_period_steps is not None
    postponed = late.keyframe_period_steps - config.keyframe_period_steps
    assert 0 <= postponed <= min(postpone, config.age_limit_steps)
    unchanged = {
        'difference_threshold': threshold,
        'keyframe_period_steps': config.keyframe_period_steps,
    }
    assert replace(late, **unchanged) == config
    assert config.under_pressure(0.0) == config


@pytest.mark.parametrize('name', PRESETS)
def test_the_named_presets_have_no_room_for_pressure(name):
    config = preset(name)
    assert config.under_pressure(1.0) == config
