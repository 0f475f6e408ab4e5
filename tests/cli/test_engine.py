"""`vla-cache engine` on the tiny model, with a real export and real engines of ONNX Runtime."""

import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest

from tests.models.conftest import make_checkpoint, make_observation, tiny_config
from vla_cache_models.small.vla import SmallVla
from vla_cache_ros.cli import checkpoints
from vla_cache_ros.cli.checkpoints import CheckpointPolicies, ModelOptions, PolicyOptions
from vla_cache_ros.cli.engine import parse_buckets
from vla_cache_ros.cli.main import main
from vla_cache_ros.cli.recording import save_observations
from vla_cache_ros.core.errors import ConfigError, EngineError, UnknownNameError
from vla_cache_trt import backends, choose
from vla_cache_trt.backends import probe
from vla_cache_trt.build import Wanted, export_graphs
from vla_cache_trt.choose import Timing, candidates, choose_backend, synthetic_frames
from vla_cache_trt.manifest import read_manifest

ORT = ('--backend', 'ort', '--precision', 'fp32')


@pytest.fixture(scope='session')
def model():
    return SmallVla(make_checkpoint(tiny_config()))


@pytest.fixture
def tiny(monkeypatch, model):
    """Every checkpoint is the tiny model."""
    monkeypatch.setattr(checkpoints, '_load', lambda policies: model)
    checkpoints._engine_model.cache_clear()
    return model


@pytest.fixture(scope='session')
def exported(model, tmp_path_factory):
    """A store that holds the exported graphs: exporting takes most of the time."""
    root = tmp_path_factory.mktemp('engines')
    export_graphs(Wanted(model, model.preset('safe'), 'ort', 'fp32', root=root))
    return root


@pytest.fixture
def engines(tiny, exported, monkeypatch, tmp_path):
    """A copy of that store, where engines lie in this test."""
    shutil.copytree(exported, tmp_path / 'engines')
    monkeypatch.setenv('VLA_CACHE_ENGINES', str(tmp_path / 'engines'))
    return tmp_path / 'engines'


@pytest.fixture
def empty(monkeypatch, tmp_path):
    """No engines yet."""
    monkeypatch.setenv('VLA_CACHE_ENGINES', str(tmp_path / 'empty'))
    return tmp_path / 'empty'


def test_build_verify_and_list(engines, tmp_path, capsys):
    assert main(['engine', 'build', *ORT, '--buckets', '16,32']) == 0
    told = capsys.readouterr().out
    assert 'buckets 16, 32, 49' in told
    assert 'vla-cache engine verify --backend ort --precision fp32 --cache safe' in told

    assert main(['engine', 'list', '--json']) == 0
    listed = json.loads(capsys.readouterr().out)
    assert [entry['verified'] for entry in listed['engines']] == [False, False]

    rng = np.random.default_rng(0)
    frames = [make_observation(rng) for _ in range(3)]
    save_observations(tmp_path / 'frames.npz', frames, 'three frames')
    assert main(['engine', 'verify', *ORT, '--frames', str(tmp_path / 'frames.npz')]) == 0
    assert 'Verified' in capsys.readouterr().out
    assert main(['engine', 'verify', *ORT, '--json', '--steps', '3']) == 0
    document = json.loads(capsys.readouterr().out)
    assert document['passed']
    assert document['failures'] == []
    assert document['figures']['cached']['motion'] < 1e-4

    assert main(['engine', 'list']) == 0
    assert 'ort fp32' in capsys.readouterr().out
    assert main(['engine', 'list', '--json']) == 0
    listed = json.loads(capsys.readouterr().out)
    assert {
        entry['manifest']['identity']['backend']: entry['verified'] for entry in listed['engines']
    } == {'onnx': False, 'ort': True}


def test_export_prints_the_files(engines, capsys):
    assert main(['engine', 'export']) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [re.search(r'(\w+)\.onnx', line)[1] for line in lines] == [
        'tower',
        'decoder_0_4',
        'head',
    ]


def test_a_wrong_engine_is_refused_with_exit_code_1(engines, monkeypatch, capsys):
    monkeypatch.setattr(
        'vla_cache_trt.verify.differences', lambda *_: {'motion': 0.5, 'hidden_cosine': 0.1}
    )
    folder = ('--engine-folder', str(engines))
    main(['engine', 'build', *ORT, *folder])
    assert main(['engine', 'verify', *ORT, *folder, '--steps', '2']) == 1
    assert 'Refused' in capsys.readouterr().out
    assert main(['engine', 'list', *folder]) == 0
    assert 'refused' in capsys.readouterr().out


def test_an_empty_store_says_how_to_fill_it(empty, capsys):
    assert main(['engine', 'list']) == 0
    assert 'vla-cache engine build' in capsys.readouterr().out


@pytest.mark.parametrize(
    ('words', 'said'),
    [
        (('build', *ORT, '--buckets', '64,32'), 'do not increase'),
        (('build', *ORT, '--buckets', '0'), 'from 1 or more'),
        (('build', *ORT, '--buckets', '16,5000'), 'above the longest sequence'),
        (('build', *ORT, '--buckets', 'many'), 'not whole numbers'),
        (('build', *ORT, '--cache', 'off'), 'name --cache safe'),
        (('build', *ORT, '--cache', 'fast'), 'unknown preset'),
        (('build', '--backend', 'ort', '--precision', 'bf16'), 'valid: fp32, fp16, int8'),
        (('build', '--backend', 'tflite'), 'unknown backend'),
        (('build', *ORT, '--compute-capability', '8.9'), 'this machine alone'),
        (('build', *ORT, '--layers', '2'), 'random weights alone'),
        (('verify', *ORT, '--steps', '1'), 'at least 2'),
        (('verify', '--backend', 'torch'), 'the others are compared with'),
        (('verify', *ORT, '--frames', 'nowhere.npz'), 'nowhere.npz does not exist'),
    ],
)
def test_bad_input_is_one_line_with_exit_code_2(words, said, tiny, empty, capsys):
    assert main(['engine', *words]) == 2
    assert said in capsys.readouterr().err
    assert not list(empty.rglob('manifest.json'))


def test_backend_torch_needs_no_build(tiny, capsys):
    assert main(['engine', 'build', '--backend', 'torch']) == 0
    assert 'nothing to build' in capsys.readouterr().out


def test_a_backend_that_is_not_installed_is_said_before_anything_is_loaded(monkeypatch, capsys):
    monkeypatch.setattr(
        'vla_cache_trt.backends.importlib.util.find_spec', lambda name, *rest: None
    )
    assert main(['engine', 'build', '--backend', 'openvino']) == 2
    assert 'pip install openvino' in capsys.readouterr().err


@pytest.mark.parametrize('action', ['build', 'verify'])
def test_a_backend_without_its_gpu_is_refused_by_name(action, monkeypatch, capsys):
    monkeypatch.setattr('torch.cuda.is_available', lambda: False)
    assert main(['engine', action, '--backend', 'torch_cuda_graph', '--device', 'cuda']) == 2
    assert 'backend torch_cuda_graph cannot run here' in capsys.readouterr().err


def test_a_missing_engine_names_the_whole_command(tiny, empty, capsys):
    assert main(['engine', 'verify', *ORT, '--engine-folder', str(empty)]) == 2
    command = (
        f'vla-cache engine build --backend ort --precision fp32 --cache safe '
        f'--engine-folder {empty}'
    )
    assert command in capsys.readouterr().err


def test_buckets_as_typed():
    assert parse_buckets('16, 32') == (16, 32)
    assert parse_buckets(' ') is None
    with pytest.raises(ConfigError, match='not whole numbers'):
        parse_buckets('16,,32')


def test_policies_build_quick_engines_themselves_and_share_them(engines):
    policies = CheckpointPolicies.chosen(PolicyOptions(backend='ort'), 'safe')
    assert (policies.precision, policies.dtype) == ('fp32', 'float32')
    dense, cached = policies('off'), policies('safe')
    assert len(list(engines.rglob('ort-fp32/manifest.json'))) == 1
    rng = np.random.default_rng(0)
    observation = make_observation(rng)
    reference = CheckpointPolicies(policies.checkpoint)('off').act(observation).actions
    np.testing.assert_allclose(dense.act(observation).actions, reference, atol=1e-5)
    np.testing.assert_allclose(cached.act(observation).actions, reference, atol=1e-5)


def test_engines_that_take_long_are_never_built_unasked(tiny, empty, monkeypatch):
    policies = CheckpointPolicies.chosen(PolicyOptions(backend='ort'))
    find = backends.find_backend
    monkeypatch.setattr(backends, 'find_backend', lambda name: replace(find(name), quick=False))
    with pytest.raises(EngineError, match='Build it with: vla-cache engine build --backend ort'):
        policies('safe')


def test_reports_tell_backends_apart(tmp_path):
    (tmp_path / 'model.safetensors').write_bytes(b'x')
    torch_, ort = (CheckpointPolicies(tmp_path, backend=name) for name in ('torch', 'ort'))
    assert torch_.fingerprint('safe') != ort.fingerprint('safe')


def test_unknown_backend_is_refused_before_loading():
    with pytest.raises(UnknownNameError, match='unknown backend'):
        CheckpointPolicies.chosen(PolicyOptions(backend='fastest'))


def test_random_weights_exclude_a_checkpoint(tmp_path):
    with pytest.raises(ConfigError, match='give one of the two'):
        CheckpointPolicies.chosen(ModelOptions(checkpoint=tmp_path, random_weights='openvla'))


def test_candidates_are_as_exact_as_the_model(monkeypatch):
    monkeypatch.setattr(choose, 'cpu_identity', lambda: 'x86_64 avx2')
    assert candidates('float32', 'cpu') == [
        ('torch', 'fp32'),
        ('ort', 'fp32'),
        ('openvino', 'fp32'),
    ]
    monkeypatch.setattr(choose, 'cpu_identity', lambda: 'x86_64 avx2 amx_bf16')
    assert ('openvino', 'bf16') in candidates('float32', 'cpu')
    assert candidates('float32', 'cpu', 'int8') == [('ort', 'int8'), ('openvino', 'int8')]
    assert candidates('bfloat16', 'cpu') == [('torch', 'bf16')]


def test_slow_builders_are_candidates_once_they_have_built(monkeypatch):
    monkeypatch.setattr(choose, 'probe', lambda name: replace(probe('torch'), name=name))
    built = candidates('float16', 'cuda', '', lambda *engine: engine == ('tensorrt', 'fp16'))
    assert built == [('torch', 'fp16'), ('torch_cuda_graph', 'fp16'), ('tensorrt', 'fp16')]


def test_trying_a_backend_keeps_an_engine_with_buckets_of_ones_own(engines, capsys):
    assert main(['engine', 'build', *ORT, '--buckets', '16']) == 0
    wanted = CheckpointPolicies(None, backend='ort', precision='fp32').wanted('safe')
    timing = choose._try(wanted, synthetic_frames(wanted.model), None)
    assert timing.problem == ''
    assert timing.cached_ms > 0
    assert read_manifest(wanted.folder, '').identity.buckets == (16, 49)


def test_the_fastest_backend_is_chosen_once(tiny, empty, monkeypatch):
    times = {'torch': 30.0, 'ort': 10.0, 'openvino': 20.0}
    tried = []

    def timed(wanted, observations, on_progress):
        tried.append(wanted.backend)
        problem = 'differs' if wanted.backend == 'ort' else ''
        return Timing(wanted.backend, wanted.precision, 50, times[wanted.backend], problem)

    monkeypatch.setattr(choose, '_try', timed)
    monkeypatch.setattr(choose, 'cpu_identity', lambda: 'x86_64')
    policies = CheckpointPolicies(None)
    wanted = lambda backend, precision: CheckpointPolicies(  # noqa: E731
        None, backend=backend, precision=precision
    ).wanted('safe')
    choice = choose_backend(wanted, policies.dtype, 'cpu')
    assert (choice.backend, choice.precision) == ('openvino', 'fp32')
    assert 'openvino in fp32' in choice.in_words()
    assert 'ort fp32 differs' in choice.in_words()
    assert choose_backend(wanted, policies.dtype, 'cpu') == choice
    assert tried == ['torch', 'ort', 'openvino']
    monkeypatch.setattr(choose, 'cpu_identity', lambda: 'aarch64')  # another machine
    choose_backend(wanted, policies.dtype, 'cpu')
    assert len(tried) == 6


def test_no_backend_for_a_precision_is_refused(tiny):
    with pytest.raises(ConfigError, match='no backend of this machine computes fp8'):
        CheckpointPolicies.chosen(PolicyOptions(backend='auto', precision='fp8'))


def test_auto_tries_really_and_says_what_it_chose(engines, capsys, monkeypatch):
    monkeypatch.setattr(choose, 'candidates', lambda *_: [('torch', 'fp32'), ('ort', 'fp32')])
    policies = CheckpointPolicies.chosen(PolicyOptions(backend='auto'))
    assert policies.backend in ('torch', 'ort')
    told = capsys.readouterr().err
    assert f'backend {policies.backend} in fp32: the fastest here' in told
    assert 'ort fp32' in told
    assert 'fails' not in told
