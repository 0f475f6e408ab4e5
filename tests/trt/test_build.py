import json
from dataclasses import replace

import pytest
import torch

from tests.models.conftest import make_checkpoint, tiny_config
from tests.trt.conftest import BUILD, files_of
from vla_cache_models.policy import make_policy
from vla_cache_models.small.vla import SmallVla
from vla_cache_ros.core.errors import ConfigError, EngineError, UnknownNameError
from vla_cache_trt import backends, store
from vla_cache_trt.build import (
    Wanted,
    build_command,
    build_engines,
    default_buckets,
    graph_buckets,
    load_engines,
    on_engines,
    settle_buckets,
)
from vla_cache_trt.manifest import MANIFEST, read_manifest, sha256_of

GRAPHS = ['tower', 'decoder_0_4', 'head']


@pytest.fixture
def built(wanted):
    build_engines(wanted)
    return wanted


def test_build_writes_a_manifest_that_says_what_it_is_for(wanted, fake, model):
    steps = []
    folder = build_engines(wanted, (16, 32), lambda *step: steps.append(step))
    manifest = read_manifest(folder, BUILD)
    assert fake.exported == fake.compiled == list(manifest.graphs) == GRAPHS
    identity = manifest.identity
    assert (identity.backend, identity.backend_version, identity.precision) == (
        'fake',
        '1.0',
        'fp32',
    )
    assert identity.buckets == (16, 32, model.max_tokens - 1)
    assert identity.device == store.cpu_identity()
    assert identity.checkpoint == store.weights_fingerprint(model)
    assert manifest.opset == 23
    assert all(record.files and record.onnx_sha256 for record in manifest.graphs.values())
    assert steps[-1] == ('built', 3, 3)
    assert ('compiling head, 1 of 2', 2, 3) in steps


def test_engines_run_the_policy_as_torch_does(built, model, frames):
    ours = make_policy(on_engines(built), 'safe', auto_off=False)
    theirs = make_policy(model, 'safe', auto_off=False)
    modes = set()
    for frame in frames:
        mine, reference = ours.act(frame), theirs.act(frame)
        torch.testing.assert_close(
            torch.from_numpy(mine.actions), torch.from_numpy(reference.actions)
        )
        modes.add(mine.report.mode)
    assert modes == {'keyframe', 'cached'}


def test_backend_torch_is_the_model_itself(model):
    assert on_engines(Wanted(model, model.preset('safe'), 'torch', 'fp32')) is model


def test_what_compiles_nothing_needs_no_build(model, tmp_path):
    wanted = Wanted(model, model.preset('safe'), 'torch', 'fp32', root=tmp_path / 'engines')
    engines = load_engines(wanted)
    assert engines.engines.keys() == set(GRAPHS)
    assert engines.relevance_layer == 1
    assert not wanted.folder.exists()
    build_engines(wanted, (16,))
    assert load_engines(wanted).engines['decoder_0_4'].buckets == (16, 49)


def test_a_second_build_does_nothing(built, fake):
    before = read_manifest(built.folder, BUILD)
    build_engines(built)
    assert fake.compiled == fake.exported == GRAPHS
    assert read_manifest(built.folder, BUILD) == before


def test_precisions_share_one_export(built, fake):
    build_engines(replace(built, precision='int8'))
    assert fake.exported == GRAPHS
    assert fake.compiled == GRAPHS * 2
    assert load_engines(built).engines.keys() == set(GRAPHS)


def test_an_interrupted_build_is_taken_up_where_it_stopped(wanted, fake):
    fake.fails_at = 'head'
    with pytest.raises(KeyboardInterrupt):
        build_engines(wanted)
    assert MANIFEST not in files_of(wanted.folder)
    assert not [name for name in files_of(wanted.folder) if 'begun' in name or 'head' in name]
    with pytest.raises(EngineError, match=f'no engine in .* Build it with: {BUILD}'):
        load_engines(wanted)
    fake.fails_at = ''
    build_engines(wanted)
    assert fake.exported == GRAPHS
    assert fake.compiled == GRAPHS
    assert load_engines(wanted).engines.keys() == set(GRAPHS)


def test_an_interrupted_export_is_taken_up_where_it_stopped(wanted, fake, monkeypatch):
    from vla_cache_trt import export

    def interrupted(graph, path, opset=23):
        if graph.spec.name == 'head':
            path.write_text('half')
            raise KeyboardInterrupt
        fake.export_onnx(graph, path, opset)

    with monkeypatch.context() as patch:
        patch.setattr(export, 'export_onnx', interrupted)
        with pytest.raises(KeyboardInterrupt):
            build_engines(wanted)
    assert fake.exported == GRAPHS[:2]
    assert fake.compiled == []
    build_engines(wanted)
    assert fake.exported == GRAPHS


def test_nothing_was_built_names_the_command(wanted):
    with pytest.raises(EngineError, match=f'Build it with: {BUILD}'):
        load_engines(wanted)


def test_a_plan_for_another_checkpoint_is_not_taken(built):
    other = SmallVla(make_checkpoint(tiny_config()))
    with torch.no_grad():
        other.network.decoder.layers[0].mlp.down.weight.mul_(2)
    with pytest.raises(EngineError, match='no engine'):
        load_engines(replace(built, model=other))
    moved = replace(built, model=other)  # someone copies the files over
    moved.folder.parent.parent.mkdir(parents=True)
    built.folder.parent.rename(moved.folder.parent)
    with pytest.raises(EngineError, match=f'checkpoint: built for .*{BUILD}'):
        load_engines(moved)


def test_a_plan_of_another_version_is_refused(built, monkeypatch):
    monkeypatch.setattr('vla_cache_trt.build.version_of', lambda name: '2.0')
    with pytest.raises(EngineError, match=r'version of the backend: built for 1\.0, this is 2\.0'):
        load_engines(built)
    build_engines(built)
    assert load_engines(built).engines


def test_a_plan_for_another_device_is_refused(built, monkeypatch):
    monkeypatch.setattr('vla_cache_trt.build.device_identity', lambda device: 'x86_64 sse')
    with pytest.raises(EngineError, match='device: built for .*, this is x86_64 sse'):
        load_engines(built)


def test_a_truncated_artifact_is_refused(built):
    plan = built.folder / 'decoder_0_4' / 'plan.bin'
    plan.write_bytes(plan.read_bytes()[:-1])
    with pytest.raises(EngineError, match=f'plan.bin is truncated.*{BUILD}'):
        load_engines(built)


def test_an_onnx_file_edited_by_hand_is_refused(built):
    onnx = built.onnx_folder(23) / 'head' / 'head.onnx'
    onnx.write_text(onnx.read_text().replace('at', 'AT'))
    with pytest.raises(EngineError, match=r'head\.onnx was changed'):
        load_engines(built)
    build_engines(built)  # exports it again
    assert load_engines(built).engines


def test_an_engine_of_another_export_is_refused(built):
    onnx = built.onnx_folder(23) / 'head'
    (onnx / 'head.onnx').write_text('edited')
    record = json.loads((onnx / 'record.json').read_text())
    record['files']['head.onnx'] = {'size': 6, 'sha256': sha256_of(onnx / 'head.onnx')}
    (onnx / 'record.json').write_text(json.dumps(record))
    with pytest.raises(EngineError, match='compiled from another export'):
        load_engines(built)


def test_graphs_of_another_shape_are_refused(built):
    path = built.folder / MANIFEST
    values = json.loads(path.read_text())
    values['graphs']['head']['spec_sha256'] = 'another'
    path.write_text(json.dumps(values))
    with pytest.raises(EngineError, match='graph head has other inputs or outputs'):
        load_engines(built)


def test_a_backend_that_is_not_installed_says_how_to_get_it(wanted, monkeypatch):
    monkeypatch.setattr(backends.importlib.util, 'find_spec', lambda name, *rest: None)
    with pytest.raises(
        EngineError, match='lacks: the Python module fake_engine.*pip install fake'
    ):
        build_engines(wanted)


def test_unknown_backend_and_precision(model):
    reuse = model.preset('safe')
    with pytest.raises(UnknownNameError, match='unknown backend'):
        Wanted(model, reuse, 'tflite', 'fp32')
    with pytest.raises(UnknownNameError, match='precision of backend ort'):
        Wanted(model, reuse, 'ort', 'bf16')


def test_a_model_of_the_wrong_dtype_is_refused(model):
    with pytest.raises(EngineError, match='load it with dtype float16'):
        Wanted(model, model.preset('safe'), 'ort', 'fp16')


def test_a_backend_on_the_wrong_device_is_refused(model):
    with pytest.raises(EngineError, match='does not run on device cpu; valid: cuda'):
        Wanted(model, model.preset('safe'), 'tensorrt', 'fp32')
    with pytest.raises(EngineError, match='this machine alone'):
        Wanted(model, model.preset('safe'), 'ort', 'fp32', compute_capability='8.9')


@pytest.mark.parametrize(
    ('buckets', 'said'),
    [
        ((), 'is empty'),
        ((32, 16), 'do not increase'),
        ((16, 16), 'do not increase'),
        ((0, 16), 'from 1 or more'),
        ((16, 1000), 'bucket 1000 is above the longest sequence of small, 49'),
    ],
)
def test_buckets_that_cannot_be_used_are_refused(buckets, said, wanted, fake):
    with pytest.raises(ConfigError, match=said):
        build_engines(wanted, buckets)
    assert fake.exported == []


def test_the_longest_sequence_is_always_a_bucket(model):
    assert settle_buckets(model, (16,)) == (16, 49)
    assert settle_buckets(model, (16, 49)) == (16, 49)
    chosen = default_buckets(model)
    assert settle_buckets(model, None) == chosen
    assert chosen[-1] == 49
    assert list(chosen) == sorted(set(chosen))


def test_a_tower_has_buckets_without_the_tokens_behind_the_vision_tokens(wanted):
    tower, decoder, head = (graph.spec for graph in wanted.graphs())
    assert graph_buckets(tower, (16, 40, 49)) == (23, 32)
    assert graph_buckets(decoder, (16, 40, 49)) == (16, 40, 49)
    assert graph_buckets(head, (16, 49)) == (16, 49)


def test_the_command_holds_what_was_given():
    command = build_command('ort', 'fp32', 'safe', checkpoint='my dir/x', layers=None, device='')
    assert command == (
        'vla-cache engine build --backend ort --precision fp32 --cache safe '
        "--checkpoint 'my dir/x'"
    )
