import numpy as np
import pytest

from vla_cache_ros.core.errors import ConfigError, UnknownNameError
from vla_cache_sim.checks import check_action, check_reset_options, check_view

VIEW = {'known': ('agentview', 'wrist'), 'image_size_px': 64, 'render_mode': None}


@pytest.mark.parametrize(
    ('cameras', 'options', 'message'),
    [
        (['front'], {}, "unknown camera 'front'; valid: agentview, wrist"),
        ([], {}, 'at least one'),
        (['wrist', 'wrist'], {}, 'each camera once'),
        (['wrist'], {'image_size_px': 15}, 'must lie in 16..2048, not 15'),
        (['wrist'], {'render_mode': 'human'}, "unknown render mode 'human'; valid: rgb_array"),
    ],
)
def test_a_view_that_there_is_not_is_refused_by_name(cameras, options, message):
    with pytest.raises(ConfigError, match=message):
        check_view(cameras, **{**VIEW, **options}, render_modes=['rgb_array'])


def test_a_view_that_there_is_passes():
    check_view(('wrist',), **VIEW, render_modes=['rgb_array'])


def test_an_unknown_reset_option_is_answered_with_the_valid_ones():
    check_reset_options(['task'], ('task', 'init_state'))
    with pytest.raises(UnknownNameError, match="'speed'; valid: task, init_state"):
        check_reset_options(['task', 'speed'], ('task', 'init_state'))


def test_an_action_is_seven_finite_numbers():
    assert check_action([0] * 7).dtype == np.float64
    for bad in (np.zeros(6), np.full(7, np.inf)):
        with pytest.raises(ConfigError, match=r'7 finite numbers in \[-1, 1\]; got'):
            check_action(bad, ' in [-1, 1]')
