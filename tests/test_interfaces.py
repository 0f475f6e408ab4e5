"""The interfaces package: every file of it is built, can be imported, and says what it means."""

import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1] / 'interfaces' / 'vla_cache_interfaces'
FILES = sorted(path for kind in ('msg', 'srv', 'action') for path in ROOT.glob(f'{kind}/*'))
FIELD = re.compile(r'^[A-Za-z][\w/]*(\[[^\]]*\])? +[A-Za-z]\w*( *=.*| .*)?$')
UNITS = {'ns': 'int64', 'ms': 'float64', 's': 'float64', 'hz': 'float64', 'bytes': 'uint64'}


def names(path: Path) -> str:
    return path.name


def paragraphs(path: Path) -> list[list[str]]:
    """What stands between blank lines and ---."""
    text = re.sub(r'^---$', '', path.read_text(encoding='utf-8'), flags=re.MULTILINE)
    return [part.strip().splitlines() for part in re.split(r'\n\s*\n', text) if part.strip()]


def fields(path: Path) -> list[tuple[str, str]]:
    """(type, name) of every field, constants left out."""
    lines = [line for part in paragraphs(path) for line in part if not line.startswith('#')]
    words = [line.split() for line in lines if '=' not in line]
    return [(kind, name) for kind, name, *_ in words]


def test_there_is_something_to_check():
    assert len(FILES) >= 20
    assert {path.suffix for path in FILES} == {'.msg', '.srv', '.action'}


@pytest.mark.ros
@pytest.mark.parametrize('path', FILES, ids=names)
def test_every_interface_is_built_from_the_present_file(path):
    kind = path.suffix.removeprefix('.')
    built = getattr(importlib.import_module(f'vla_cache_interfaces.{kind}'), path.stem)
    parts = {
        'msg': (built,),
        'srv': (getattr(built, 'Request', None), getattr(built, 'Response', None)),
        'action': tuple(getattr(built, part, None) for part in ('Goal', 'Result', 'Feedback')),
    }[kind]
    made = [name for part in parts for name in part.get_fields_and_field_types()]
    written = [name for _, name in fields(path)]
    assert [name for name in made if name != 'structure_needs_at_least_one_member'] == written
    for part in parts:
        part()


@pytest.mark.parametrize('path', FILES, ids=names)
def test_every_field_is_explained(path):
    for part in paragraphs(path):
        assert part[0].startswith('# '), f'{path.name}: nothing is said of {part[0]!r}'
        for line in part:
            assert line.startswith('#') or FIELD.match(line), line
            assert len(line) <= 99, line


@pytest.mark.parametrize('path', FILES, ids=names)
def test_a_unit_in_a_name_has_its_type(path):
    for kind, name in fields(path):
        unit = name.rpartition('_')[2]
        if unit in UNITS:
            assert kind == UNITS[unit], f'{path.name}: {name} is {kind}'
