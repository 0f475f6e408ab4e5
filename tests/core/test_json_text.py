import pytest

from vla_cache_ros.core.json_text import need, parse_json, parse_object


def test_json_is_read():
    assert parse_json(b'[1, {"a": null}]') == [1, {'a': None}]
    assert parse_object('{"a": 1}') == {'a': 1}


@pytest.mark.parametrize('text', [b'[' * 100_000, b'{', b'\xff\xfe', b'1' * 5000, ''])
def test_what_is_no_json_is_one_kind_of_error(text):
    with pytest.raises(ValueError, match=r'\w'):
        parse_json(text)


@pytest.mark.parametrize('text', ['[]', 'null', '1', '"a"'])
def test_what_is_no_object_is_refused(text):
    with pytest.raises(ValueError, match='valid: dict'):
        parse_object(text)


def test_true_is_no_number():
    assert need(True, bool, 'flag') is True
    with pytest.raises(ValueError, match='steps is a bool; valid: int'):
        need(True, int, 'steps')
