import pytest
from hypothesis import given
from hypothesis import strategies as st

from vla_cache_ros.core.config import PRESETS
from vla_cache_ros.core.errors import ConfigError, UnknownNameError
from vla_cache_ros.evaluation.arms import Arm, parse_arm, parse_arms


@given(st.builds(Arm, st.sampled_from(PRESETS), st.none() | st.integers(1, 64)))
def test_an_arm_is_read_as_it_is_written(arm):
    assert parse_arm(str(arm)) == arm


def test_paired_is_dense_and_safe_and_every_arm_comes_once():
    assert parse_arms('paired') == ['off', 'safe']
    assert parse_arms('paper, paired,off@7,off') == ['paper', 'off', 'safe', 'off@7']


@pytest.mark.parametrize('text', ['safe@', 'off@0', 'off@-1', 'off@x', ' , '])
def test_what_cannot_be_read_is_refused(text):
    with pytest.raises(ConfigError):
        parse_arms(text)


def test_an_unknown_arm_is_refused_with_the_valid_ones():
    with pytest.raises(UnknownNameError, match=r"unknown arm 'sage'; valid: safe, paper"):
        parse_arms('off,sage')
