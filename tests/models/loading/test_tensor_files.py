import json
import os
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from vla_cache_models.loading.tensor_files import (
    JoinedFiles,
    SafetensorsFile,
    TorchFile,
    fingerprint,
    open_safetensors,
    read_json,
    refuse_quantised,
)
from vla_cache_ros.core.errors import CheckpointError

TENSORS = {
    'a.weight': torch.arange(6, dtype=torch.float32).reshape(2, 3),
    'a.bias': torch.ones(3, dtype=torch.bfloat16),
    'b': torch.tensor(2.5, dtype=torch.float16),
    'ids': torch.arange(4),
}
NESTED = {'a': {'weight': TENSORS['a.weight'], 'bias': TENSORS['a.bias']}, 'b': TENSORS['b']}
LFS_POINTER = 'version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 15\n'


@pytest.fixture
def safetensors_path(tmp_path):
    save_file(TENSORS, tmp_path / 'model.safetensors', metadata={'format': 'pt'})
    return tmp_path / 'model.safetensors'


@pytest.fixture
def torch_path(tmp_path):
    torch.save({'model': NESTED, 'step': 3}, tmp_path / 'x.pt')
    return tmp_path / 'x.pt'


def assert_holds(file, tensors):
    assert set(file.names()) == set(tensors)
    for name, tensor in tensors.items():
        assert file.shape(name) == tuple(tensor.shape)
        assert file.dtype(name) == tensor.dtype
        assert torch.equal(file.read(name), tensor)


def test_safetensors_are_read_as_written(safetensors_path):
    assert_holds(SafetensorsFile(safetensors_path), TENSORS)


def test_nested_torch_file_is_read_as_written(torch_path):
    flat = {name: tensor for name, tensor in TENSORS.items() if name != 'ids'}
    assert_holds(TorchFile(torch_path, key='model'), flat)


def test_prefix_of_data_parallel_training_is_stripped(tmp_path):
    torch.save({'module.fc1.weight': torch.ones(2), 'fc2.bias': torch.ones(1)}, tmp_path / 'x.pt')
    assert set(TorchFile(tmp_path / 'x.pt', strip='module.').names()) == {'fc1.weight', 'fc2.bias'}


@pytest.mark.parametrize('kind', ['safetensors', 'torch'])
def test_values_are_mapped_not_copied(kind, safetensors_path, torch_path):
    if kind == 'safetensors':
        path = safetensors_path
        file, name = SafetensorsFile(path), 'a.weight'
        assert str(path) not in Path('/proc/self/maps').read_text()
    else:
        path = torch_path
        file, name = TorchFile(path, key='model'), 'a.weight'
    tensor = file.read(name)
    address = tensor.data_ptr()
    mapped = [
        line for line in Path('/proc/self/maps').read_text().splitlines() if str(path) in line
    ]
    spans = [[int(end, 16) for end in line.split()[0].split('-')] for line in mapped]
    assert any(start <= address < stop for start, stop in spans)


@given(share=st.floats(0, 0.999))
def test_a_safetensors_file_cut_anywhere_is_named(tmp_path_factory, share):
    path = tmp_path_factory.mktemp('cut') / 'model.safetensors'
    save_file(TENSORS, path)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(CheckpointError, match=r'model\.safetensors'):
        SafetensorsFile(path)


@given(share=st.floats(0, 0.999))
def test_a_torch_file_cut_anywhere_is_named(tmp_path_factory, share):
    path = tmp_path_factory.mktemp('cut') / 'x.pt'
    torch.save({'model': NESTED}, path)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(CheckpointError, match=r'x\.pt'):
        TorchFile(path, key='model')


def test_truncation_says_how_much_is_there(safetensors_path):
    size = safetensors_path.stat().st_size
    os.truncate(safetensors_path, size - 5)
    with pytest.raises(CheckpointError, match=f'truncated.*{size} bytes.*{size - 5}'):
        SafetensorsFile(safetensors_path)


def test_bytes_behind_the_last_tensor_are_damage(safetensors_path):
    with safetensors_path.open('ab') as file:
        file.write(b'more')
    with pytest.raises(CheckpointError, match='damaged'):
        SafetensorsFile(safetensors_path)


@pytest.mark.parametrize(
    ('header', 'message'),
    [
        ({'w': {'dtype': 'F32', 'shape': [3], 'data_offsets': [0, 8]}}, 'w .*8 bytes'),
        ({'w': {'dtype': 'F4', 'shape': [2], 'data_offsets': [0, 8]}}, 'w is of type F4'),
        ({'w': {'shape': [2]}}, 'damaged header'),
        ([], 'damaged header'),
    ],
)
def test_a_header_that_contradicts_itself_is_damage(header, message, tmp_path):
    encoded = json.dumps(header).encode()
    path = tmp_path / 'model.safetensors'
    path.write_bytes(len(encoded).to_bytes(8, 'little') + encoded + bytes(8))
    with pytest.raises(CheckpointError, match=message):
        SafetensorsFile(path)


@pytest.mark.parametrize('name', ['model.safetensors', 'x.pt', 'config.json'])
def test_a_git_lfs_pointer_is_named_with_the_command(name, tmp_path):
    (tmp_path / name).write_text(LFS_POINTER)
    read = {'.safetensors': SafetensorsFile, '.pt': TorchFile, '.json': read_json}
    with pytest.raises(CheckpointError, match=f'git-lfs pointer.*git -C {tmp_path} lfs pull'):
        read[Path(name).suffix](tmp_path / name)


@pytest.mark.parametrize('read', [SafetensorsFile, TorchFile, read_json])
def test_a_missing_file_is_named(read, tmp_path):
    with pytest.raises(CheckpointError, match='nowhere is missing'):
        read(tmp_path / 'nowhere')


def write_shards(folder):
    save_file({'a': torch.ones(1)}, folder / 'model-00001-of-00002.safetensors')
    save_file({'b': torch.ones(2)}, folder / 'model-00002-of-00002.safetensors')
    weight_map = {f'{"ab"[n]}': f'model-0000{n + 1}-of-00002.safetensors' for n in range(2)}
    index = folder / 'model.safetensors.index.json'
    index.write_text(json.dumps({'weight_map': weight_map}))
    return index


def test_shards_are_one_file(tmp_path):
    write_shards(tmp_path)
    assert_holds(open_safetensors(tmp_path), {'a': torch.ones(1), 'b': torch.ones(2)})


def test_a_missing_shard_is_named_with_the_index(tmp_path):
    index = write_shards(tmp_path)
    (tmp_path / 'model-00002-of-00002.safetensors').unlink()
    with pytest.raises(CheckpointError, match='1 of 2 shards.*model-00002-of-00002') as caught:
        open_safetensors(tmp_path)
    assert str(index) in str(caught.value)


def test_shards_without_an_index_are_named(tmp_path):
    write_shards(tmp_path).unlink()
    with pytest.raises(CheckpointError, match=r'index\.json is missing'):
        open_safetensors(tmp_path)


def test_an_index_of_another_checkpoint_is_named(tmp_path):
    index = write_shards(tmp_path)
    save_file({'c': torch.ones(2)}, tmp_path / 'model-00002-of-00002.safetensors')
    with pytest.raises(CheckpointError, match='b in model-00002'):
        open_safetensors(tmp_path)
    index.write_text('{"weight_map": {}}')
    with pytest.raises(CheckpointError, match='weight_map'):
        open_safetensors(tmp_path)


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


def test_a_pickle_that_asks_for_more_than_tensors_is_refused_and_never_run(tmp_path):
    torch.save({'w': torch.ones(1), 'trap': Malicious(tmp_path / 'sprung')}, tmp_path / 'x.pt')
    with pytest.raises(CheckpointError, match=r'posix\.mkdir.*never executed'):
        TorchFile(tmp_path / 'x.pt')
    assert not (tmp_path / 'sprung').exists()


def test_the_old_torch_format_is_named_with_the_conversion(tmp_path):
    path = tmp_path / 'x.pt'
    torch.save({'w': torch.ones(1)}, path, _use_new_zipfile_serialization=False)
    with pytest.raises(CheckpointError, match='before 1.6') as caught:
        TorchFile(path)
    # The command in the message works.
    code = str(caught.value).partition('python -c "')[2].rpartition('"')[0]
    exec(code)
    assert TorchFile(path).names() == ('w',)


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        (torch.ones(1), 'holds a Tensor'),
        ({'a': {'b': 3}}, r'a\.b is a int'),
    ],
)
def test_what_is_no_dictionary_of_tensors_is_refused(content, message, tmp_path):
    torch.save(content, tmp_path / 'x.pt')
    with pytest.raises(CheckpointError, match=message):
        TorchFile(tmp_path / 'x.pt')


def test_a_file_of_another_kind_is_named(tmp_path):
    (tmp_path / 'x.pt').write_bytes(b'hello world')
    with pytest.raises(CheckpointError, match='not a torch file'):
        TorchFile(tmp_path / 'x.pt')


def test_a_file_too_large_to_be_mapped_is_not_called_damaged(torch_path, monkeypatch):
    def load(*_, **__):
        raise RuntimeError('unable to mmap 9 bytes from file <x>: Cannot allocate memory (12)')

    monkeypatch.setattr(torch, 'load', load)
    with pytest.raises(CheckpointError, match='cannot be mapped.*overcommit_memory'):
        TorchFile(torch_path, key='model')


def test_a_missing_key_lists_what_is_there(torch_path):
    with pytest.raises(CheckpointError, match="'weights'.*model, step"):
        TorchFile(torch_path, key='weights')


def test_a_tensor_in_two_files_is_refused(safetensors_path):
    file = SafetensorsFile(safetensors_path)
    with pytest.raises(CheckpointError, match=r'tensor \S+ is in .* again in'):
        JoinedFiles([('', file), ('', file)])
    assert set(JoinedFiles([('', file), ('x.', file)]).names()) >= {'a.weight', 'x.a.weight'}


def test_fp8_tensors_are_named(tmp_path):
    tensors = {'q.weight': torch.ones(2).to(torch.float8_e4m3fn), 'norm.weight': torch.ones(2)}
    save_file(tensors, tmp_path / 'model.safetensors')
    with pytest.raises(CheckpointError, match=r'q\.weight \(float8_e4m3fn\).*bf16') as caught:
        refuse_quantised(SafetensorsFile(tmp_path / 'model.safetensors'))
    assert 'norm.weight' not in str(caught.value)


@pytest.mark.parametrize(
    'name', ['q.weight.absmax', 'q.weight.quant_state.bitsandbytes__nf4', 'q.SCB', 'q.qweight']
)
def test_quantised_tensors_are_named(name, tmp_path):
    tensors = {'q.weight': torch.ones(2).to(torch.uint8), name: torch.ones(2)}
    save_file(tensors, tmp_path / 'model.safetensors')
    with pytest.raises(CheckpointError, match=f'quantised.*{name}'):
        refuse_quantised(SafetensorsFile(tmp_path / 'model.safetensors'))


def test_plain_tensors_are_not_quantised(safetensors_path):
    refuse_quantised(SafetensorsFile(safetensors_path))


@pytest.mark.parametrize('content', ['{', '[]', '\xff'])
def test_json_that_is_no_object_is_named(content, tmp_path):
    (tmp_path / 'config.json').write_bytes(content.encode('latin-1'))
    with pytest.raises(CheckpointError, match=r'config\.json'):
        read_json(tmp_path / 'config.json')


def test_a_fingerprint_follows_content_and_name(tmp_path):
    path = tmp_path / 'model.safetensors'
    save_file({'w': torch.zeros(100_000)}, path)
    first = fingerprint([path])
    assert fingerprint([path]) == first
    for place in (10, 200_000, 399_990):
        content = bytearray(path.read_bytes())
        content[place : place + 20_000] = bytes(x ^ 1 for x in content[place : place + 20_000])
        changed = tmp_path / 'changed' / 'model.safetensors'
        changed.parent.mkdir(exist_ok=True)
        changed.write_bytes(content)
        assert fingerprint([changed]) != first
    other = path.rename(tmp_path / 'other.safetensors')
    assert fingerprint([other]) != first


def test_an_empty_file_has_a_fingerprint(tmp_path):
    (tmp_path / 'x.pt').touch()
    assert fingerprint([tmp_path / 'x.pt'])
