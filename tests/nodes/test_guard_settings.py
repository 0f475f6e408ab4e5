import dataclasses

import pytest

from vla_cache_ros.core.errors import ConfigError
from vla_cache_ros.nodes.guard_settings import make_loop
from vla_cache_ros.nodes.parameter_tables.command_guard import GuardParameters

pytestmark = pytest.mark.ros


def loop_of(**changes):
    return make_loop(dataclasses.replace(GuardParameters(), **changes), e_stopped=False)


def test_defaults_hold_the_arm_until_a_policy_shows_that_it_lives():
    assert loop_of().holds(0) == ['policy_lost']


def test_in_lockstep_nobody_watches_the_wall_clock():
    loop = loop_of(pacing='state', control_frequency_hz=1000.0)
    assert loop.holds(0) == []
    assert loop.watch.period_s == 0


def test_every_limit_reaches_the_guard():
    limits = {
        'max_linear_velocity_m_s': 0.25,
        'max_angular_velocity_rad_s': 1.0,
        'max_linear_acceleration_m_s2': 2.0,
        'max_angular_acceleration_rad_s2': 8.0,
        'max_linear_jump_m': 0.06,
        'max_angular_jump_rad': 0.6,
        'gripper_interval_s': 0.5,
        'workspace_lower_m': (0.2, -0.4, 0.02),
        'workspace_upper_m': (0.7, 0.4, 0.6),
        'state_timeout_s': 0.1,
        'position_scale_m': 1.0,
        'rotation_scale_rad': 1.0,
        'on_limit': 'null',
    }
    config = loop_of(**limits, control_frequency_hz=5.0, stale_image_timeout_s=0.7).guard.config
    assert {name: getattr(config, name) for name in limits} == limits
    assert (config.period_s, config.max_age_ms) == (0.2, 700)


def test_joint_limits_reach_the_guard():
    joints = loop_of(
        joint_names=('a',),
        joint_lower_limits_rad=(-1.0,),
        joint_upper_limits_rad=(1.0,),
        joint_velocity_limits_rad_s=(2.0,),
        joint_margin_rad=0.2,
    ).guard.config.joints
    assert dataclasses.astuple(joints) == (('a',), (-1.0,), (1.0,), (2.0,), 0.2)


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'control_frequency_hz': 100.0}, 'at least 4, or 0'),
        ({'lockstep_delay_steps': 1, 'chunk_execution': 'prefix'}, 'in timer pacing'),
        ({'lockstep_delay_steps': 1, 'pacing': 'state'}, 'open_loop'),
        ({'actions_per_chunk': 30}, 'execute fewer'),
        ({'joint_names': ('a',)}, 'one of each'),
        ({'workspace_lower_m': (0.0, 0.0, 0.0)}, 'workspace_upper_m'),
        ({'upper_limits': (1.0,) * 6}, 'one value for each'),
    ],
)
def test_what_contradicts_is_refused_and_says_what_is_valid(changes, message):
    with pytest.raises(ConfigError, match=message):
        loop_of(**changes)
