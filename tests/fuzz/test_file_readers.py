"""Damaged files: every reader reads them or refuses them by name, and raises nothing else."""

import os
import shutil
import warnings
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz.damage import DEEP_JSON, damaged_bytes, damaged_json
from tests.fuzz.readers import READERS
from vla_cache_ros.core.errors import VlaCacheError

EXAMPLES = int(os.environ.get('FUZZ_EXAMPLES', '25'))
"""More of them look further: FUZZ_EXAMPLES=2000 pytest tests/fuzz"""

CASES = [(name, file) for name, reader in READERS.items() for file in reader.files]
JSON_CASES = [(name, file) for name, file in CASES if 'json' in Path(file).suffix]


@pytest.fixture(scope='module')
def good(tmp_path_factory):
    """Name of a reader -> a folder of good files, and a fresh copy of it."""
    made: dict[str, tuple[Path, Path]] = {}

    def folders(name: str) -> tuple[Path, Path]:
        if name not in made:
            root = tmp_path_factory.mktemp('good')
            (root / 'good').mkdir()
            READERS[name].make(root / 'good')
            made[name] = root / 'good', root / 'tried'
        source, tried = made[name]
        shutil.rmtree(tried, ignore_errors=True)
        shutil.copytree(source, tried)
        return source, tried

    return folders


def read_or_refuse(name: str, folder: Path) -> None:
    """Read a folder; a refusal must name it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            READERS[name].read(folder)
    except VlaCacheError as error:
        message = str(error)
    else:
        return
    assert str(folder) in message, message
    assert len(message) < 5000


@pytest.mark.parametrize('name', READERS)
def test_good_files_are_read(name, good):
    _, folder = good(name)
    READERS[name].read(folder)


@pytest.mark.slow
@pytest.mark.parametrize(('name', 'file'), CASES)
@settings(max_examples=EXAMPLES)
@given(data=st.data())
def test_damaged_file_is_read_or_refused_by_name(name, file, good, data):
    source, folder = good(name)
    whole = (source / file).read_bytes()
    damaged = damaged_json if (name, file) in JSON_CASES else damaged_bytes
    (folder / file).write_bytes(data.draw(damaged(whole)))
    read_or_refuse(name, folder)


@pytest.mark.parametrize(('name', 'file'), CASES)
def test_cut_file_is_read_or_refused_by_name(name, file, good):
    source, folder = good(name)
    whole = (source / file).read_bytes()
    for length in (0, 1, 7, 8, 9, len(whole) // 2, len(whole) - 1):
        (folder / file).write_bytes(whole[:length])
        read_or_refuse(name, folder)


@pytest.mark.parametrize(('name', 'file'), JSON_CASES)
@pytest.mark.parametrize('text', [DEEP_JSON, b'1' * 5000, b'\xff\xfe{}', b'[]', b'null'])
def test_json_of_another_kind_is_refused_by_name(name, file, text, good):
    _, folder = good(name)
    (folder / file).write_bytes(text + b'\n')
    with pytest.raises(VlaCacheError) as raised:
        READERS[name].read(folder)
    assert str(folder) in str(raised.value)
