import threading
from dataclasses import replace

import pytest
import torch

from tests.models.conftest import make_checkpoint, tiny_config
from tests.trt.conftest import files_of
from vla_cache_models.small.vla import SmallVla
from vla_cache_ros.core.errors import EngineError
from vla_cache_trt import store
from vla_cache_trt.manifest import MANIFEST, Identity, Verification, read_manifest
from vla_cache_trt.store import (
    UNFINISHED,
    EngineFolder,
    cpu_identity,
    default_root,
    device_identity,
    folder_of,
    mark_verified,
    reuse_cuts,
    stored_engines,
    weights_fingerprint,
)

BUILD = 'vla-cache engine build'
IDENTITY = Identity(
    'small', 'abc', (0, 2), 1, 'float32', 'ort', '1.31', 'x86_64 avx2', 'fp32', (64, 605)
)
VERIFICATION = Verification(True, {}, {}, 1, '', '')


def writer(text, calls=None):
    def write(folder):
        if calls is not None:
            calls.append(text)
        (folder / 'plan.bin').write_text(text)

    return write


def fill(path, identity=IDENTITY, names=('tower', 'head'), onnx='onnx', calls=None):
    with EngineFolder(path, identity, BUILD) as folder:
        for name in names:
            folder.graph(name, 'spec', onnx, writer(name, calls))
        return folder.finish()


def test_a_finished_folder_holds_graphs_and_manifest(tmp_path):
    manifest = fill(tmp_path / 'ort-fp32')
    assert files_of(tmp_path / 'ort-fp32') == [
        'head/plan.bin',
        'head/record.json',
        MANIFEST,
        'tower/plan.bin',
        'tower/record.json',
    ]
    assert read_manifest(tmp_path / 'ort-fp32', BUILD) == manifest
    assert list(manifest.graphs) == ['tower', 'head']


def test_what_is_there_already_is_not_made_again(tmp_path):
    calls = []
    fill(tmp_path / 'a', calls=calls)
    blessed = mark_verified(tmp_path / 'a', VERIFICATION, BUILD)
    assert fill(tmp_path / 'a', calls=calls) == blessed
    assert calls == ['tower', 'head']


@pytest.mark.parametrize(
    'change',
    [
        {'onnx': 'another'},
        {'identity': replace(IDENTITY, buckets=(605,))},
    ],
)
def test_what_is_made_from_something_else_is_made_again_and_not_blessed(change, tmp_path):
    calls = []
    fill(tmp_path / 'a', calls=calls)
    mark_verified(tmp_path / 'a', VERIFICATION, BUILD)
    assert not fill(tmp_path / 'a', calls=calls, **change).is_blessed
    assert calls == ['tower', 'head'] * 2


def test_an_interrupted_build_leaves_finished_graphs_and_no_manifest(tmp_path):
    def interrupt(folder):
        (folder / 'plan.bin').write_text('half')
        raise KeyboardInterrupt

    with EngineFolder(tmp_path / 'a', IDENTITY, BUILD) as folder:
        folder.graph('tower', 'spec', 'onnx', writer('tower'))
        with pytest.raises(KeyboardInterrupt):
            folder.graph('head', 'spec', 'onnx', interrupt)
    assert files_of(tmp_path / 'a') == ['tower/plan.bin', 'tower/record.json', UNFINISHED]
    with pytest.raises(EngineError, match='no engine'):
        read_manifest(tmp_path / 'a', BUILD)

    calls = []
    fill(tmp_path / 'a', calls=calls)
    assert calls == ['head']
    assert UNFINISHED not in files_of(tmp_path / 'a')


def test_a_killed_build_is_taken_up_too(tmp_path):
    fill(tmp_path / 'a', names=('tower',))
    (tmp_path / 'a' / MANIFEST).rename(tmp_path / 'a' / UNFINISHED)
    leftover = tmp_path / 'a' / '.head.partial'
    leftover.mkdir()
    (leftover / 'plan.bin').write_text('half')
    calls = []
    fill(tmp_path / 'a', calls=calls)
    assert calls == ['head']
    assert not leftover.exists()


def test_a_damaged_graph_is_made_again(tmp_path):
    fill(tmp_path / 'a')
    (tmp_path / 'a' / 'tower' / 'plan.bin').write_text('tow')
    calls = []
    fill(tmp_path / 'a', calls=calls)
    assert calls == ['tower']


def test_a_folder_that_cannot_be_written_says_so(tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(EngineError, match='--engine-folder'):
        fill(tmp_path / 'file' / 'a')


def test_a_full_disk_leaves_no_half_written_graph(tmp_path):
    def full(folder):
        (folder / 'plan.bin').write_text('half')
        raise OSError(28, 'No space left on device')

    with (
        EngineFolder(tmp_path / 'a', IDENTITY, BUILD) as folder,
        pytest.raises(EngineError, match='No space left.*vla-cache engine build'),
    ):
        folder.graph('tower', 'spec', 'onnx', full)
    assert files_of(tmp_path / 'a') == [UNFINISHED]


def test_only_one_fills_a_folder_at_a_time(tmp_path):
    calls, begun, done = [], threading.Event(), threading.Event()

    def slow(folder):
        begun.set()
        done.wait(5)
        writer('tower', calls)(folder)

    def first():
        with EngineFolder(tmp_path / 'a', IDENTITY, BUILD) as folder:
            folder.graph('tower', 'spec', 'onnx', slow)
            folder.finish()

    threads = [
        threading.Thread(target=first),
        threading.Thread(
            target=fill, args=(tmp_path / 'a', IDENTITY, ('tower',)), kwargs={'calls': calls}
        ),
    ]
    threads[0].start()
    assert begun.wait(5)
    threads[1].start()
    done.set()
    for thread in threads:
        thread.join(5)
    assert calls == ['tower']


def test_engines_are_listed_with_what_ails_them(tmp_path):
    whole = folder_of(tmp_path, IDENTITY)
    fill(whole)
    broken = folder_of(tmp_path, replace(IDENTITY, precision='fp16'))
    fill(broken)
    (broken / 'head' / 'plan.bin').unlink()
    begun = folder_of(tmp_path, replace(IDENTITY, precision='int8'))
    fill(begun)
    (begun / MANIFEST).rename(begun / UNFINISHED)
    problems = {engine.path.name: engine.problem for engine in stored_engines(tmp_path)}
    assert problems == {
        'ort-fp16': 'head/plan.bin is missing or truncated',
        'ort-fp32': '',
        'ort-int8': 'the build was interrupted',
    }
    assert all(engine.nbytes > 0 for engine in stored_engines(tmp_path))
    assert stored_engines(tmp_path / 'nowhere') == []


def test_folders_of_different_engines_differ(tmp_path):
    changes = {
        'model': 'openvla',
        'checkpoint': 'def',
        'prune_layers': (0,),
        'relevance_layer': None,
        'backend': 'openvino',
        'device': 'SM 8.9',
        'precision': 'bf16',
    }
    folders = {folder_of(tmp_path, IDENTITY)}
    for name, value in changes.items():
        folders.add(folder_of(tmp_path, replace(IDENTITY, **{name: value})))
    assert len(folders) == 1 + len(changes)


def test_root_is_the_users_cache_unless_said_otherwise(monkeypatch, tmp_path):
    monkeypatch.setenv('VLA_CACHE_ENGINES', str(tmp_path / 'mine'))
    assert default_root() == tmp_path / 'mine'
    monkeypatch.delenv('VLA_CACHE_ENGINES')
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    assert default_root() == tmp_path / 'vla_cache_ros' / 'engines'


def test_weights_without_a_file_are_told_apart(model):
    again = SmallVla(make_checkpoint(tiny_config()))
    assert weights_fingerprint(again) == weights_fingerprint(model)
    with torch.no_grad():
        again.network.decoder.layers[2].mlp.down.weight += 0.01
    assert weights_fingerprint(again) != weights_fingerprint(model)
    again.weights_sha256 = 'ab' * 32
    assert weights_fingerprint(again) == 'ab' * 6


def test_cuts_of_the_presets(model):
    assert reuse_cuts(model, model.preset('safe')) == ((0,), 1)
    assert reuse_cuts(model, model.preset('off')) == ((0,), None)
    assert reuse_cuts(model, model.preset('paper'))[0] == (0, 1)


def test_cpu_is_known_by_its_instructions(tmp_path):
    cpuinfo = tmp_path / 'cpuinfo'
    cpuinfo.write_text('flags : fpu amx_bf16 avx2 sse\n')
    assert cpu_identity(cpuinfo).endswith(' avx2 amx_bf16')
    assert 'avx2' not in cpu_identity(tmp_path / 'none')


def test_a_gpu_is_known_by_its_compute_capability(monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    with pytest.raises(EngineError, match='--compute-capability'):
        device_identity('cuda')
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'get_device_capability', lambda device: (8, 9))
    assert device_identity('cuda:1') == 'SM 8.9'
    assert device_identity('cpu') == store.cpu_identity()
