import dataclasses
import json
import re

import pytest

from vla_cache_ros.core.errors import EngineError
from vla_cache_trt.manifest import (
    IN_WORDS,
    MANIFEST,
    GraphRecord,
    Identity,
    Manifest,
    Verification,
    check,
    check_files,
    hash_of_files,
    read_manifest,
    read_record,
    record_files,
    write_json,
)

BUILD = 'vla-cache engine build --backend ort'
IDENTITY = Identity(
    'small', 'abc', (0, 2), 1, 'float32', 'ort', '1.31', 'x86_64 avx2', 'fp32', (64, 605)
)
OTHERS = {
    'model': 'openvla',
    'checkpoint': 'def',
    'prune_layers': (0,),
    'relevance_layer': None,
    'dtype': 'float16',
    'backend': 'openvino',
    'backend_version': '1.30',
    'device': 'SM 8.9',
    'precision': 'int8',
    'buckets': (605,),
}


@pytest.fixture
def record(tmp_path):
    (tmp_path / 'plan.bin').write_bytes(b'a plan')
    (tmp_path / 'deep').mkdir()
    (tmp_path / 'deep' / 'weights.bin').write_bytes(bytes(100))
    return GraphRecord('spec', 'onnx', record_files(tmp_path), 1.5)


def test_what_is_written_is_read(tmp_path, record):
    verification = Verification(
        True, {'dense': {'motion': 0.0}}, {'motion': 1e-4}, 8, 'an episode', '2026-01-01'
    )
    manifest = Manifest(IDENTITY, {'head': record}, 23, '2026-01-01', 1.5, verification)
    write_json(tmp_path / MANIFEST, manifest)
    assert read_manifest(tmp_path, BUILD) == manifest
    assert manifest.is_blessed
    assert not dataclasses.replace(manifest, verification=None).is_blessed
    write_json(tmp_path / 'record.json', record)
    assert read_record(tmp_path, BUILD) == record
    assert not list(tmp_path.glob('*.partial'))


def test_records_leave_themselves_out(tmp_path, record):
    write_json(tmp_path / 'record.json', record)
    assert set(record_files(tmp_path)) == {'plan.bin', 'deep/weights.bin'}


def test_equal_identities_pass(tmp_path):
    check(IDENTITY, IDENTITY, tmp_path, BUILD)
    check(IDENTITY, dataclasses.replace(IDENTITY, buckets=()), tmp_path, BUILD)


def test_every_field_has_its_word_and_its_case_here():
    fields = {field.name for field in dataclasses.fields(Identity)}
    assert fields == set(IN_WORDS) == set(OTHERS)


@pytest.mark.parametrize('name', OTHERS)
def test_each_mismatch_is_refused_by_name_with_the_command(name, tmp_path):
    wanted = dataclasses.replace(IDENTITY, **{name: OTHERS[name]})
    with pytest.raises(EngineError) as caught:
        check(IDENTITY, wanted, tmp_path, BUILD)
    message = str(caught.value)
    assert f'{IN_WORDS[name]}: built for ' in message
    assert message.count('built for') == 1
    assert message.endswith(f'Rebuild it with: {BUILD}')


def test_several_mismatches_are_all_named(tmp_path):
    wanted = dataclasses.replace(IDENTITY, device='SM 12.0', backend_version='2.0')
    with pytest.raises(EngineError, match=r'version of the backend: .*; device: '):
        check(IDENTITY, wanted, tmp_path, BUILD)


def test_whole_files_pass(tmp_path, record):
    check_files(record, tmp_path, BUILD)


@pytest.mark.parametrize(
    ('spoil', 'said'),
    [
        (lambda path: path.write_bytes(b'a pl'), 'truncated: 4 bytes of 6'),
        (lambda path: path.write_bytes(b''), 'truncated: 0 bytes of 6'),
        (lambda path: path.write_bytes(b'a plan!'), 'too long'),
        (lambda path: path.write_bytes(b'A plan'), 'was changed'),
        (lambda path: path.unlink(), 'is missing'),
    ],
)
def test_damaged_files_are_refused(spoil, said, tmp_path, record):
    spoil(tmp_path / 'plan.bin')
    with pytest.raises(EngineError, match=said) as caught:
        check_files(record, tmp_path, BUILD)
    assert 'plan.bin' in str(caught.value)
    assert BUILD in str(caught.value)


def test_the_hash_of_files_depends_on_names_and_content(tmp_path, record):
    before = hash_of_files(record.files)
    assert hash_of_files(dict(reversed(record.files.items()))) == before
    (tmp_path / 'plan.bin').write_bytes(b'A plan')
    assert hash_of_files(record_files(tmp_path)) != before
    (tmp_path / 'plan.bin').write_bytes(b'a plan')
    (tmp_path / 'plan.bin').rename(tmp_path / 'plan2.bin')
    assert hash_of_files(record_files(tmp_path)) != before


def test_no_manifest_names_the_command(tmp_path):
    with pytest.raises(EngineError, match=re.escape(f'no engine in {tmp_path}. Build it with: ')):
        read_manifest(tmp_path, BUILD)
    assert read_record(tmp_path, BUILD) is None


@pytest.mark.parametrize(
    'text',
    [
        '',
        '{',
        '[]',
        '{"format": "another"}',
        '{"format": "vla_cache_ros engine 1"}',
        '{"format": "vla_cache_ros engine 1", "identity": {"model": 1}, "verification": null}',
    ],
)
def test_damaged_manifest_is_refused(text, tmp_path):
    (tmp_path / MANIFEST).write_text(text)
    with pytest.raises(EngineError, match=re.escape(BUILD)):
        read_manifest(tmp_path, BUILD)


def test_damaged_record_is_refused(tmp_path, record):
    write_json(tmp_path / 'record.json', record)
    values = json.loads((tmp_path / 'record.json').read_text())
    del values['files']
    (tmp_path / 'record.json').write_text(json.dumps(values))
    with pytest.raises(EngineError, match='damaged'):
        read_record(tmp_path, BUILD)
