import json
import os
import shutil

import pytest

from tests.models.tiny_checkpoints import write_tiny_openvla
from vla_cache_ros.cli.main import main
from vla_cache_ros.resources import resource_folder


@pytest.fixture(scope='module')
def openvla(tmp_path_factory):
    return write_tiny_openvla(tmp_path_factory.mktemp('openvla'))


def test_a_checkpoint_that_loads_is_0(openvla, capsys):
    assert main(['inspect', str(openvla)]) == 0
    printed = capsys.readouterr().out
    for word in ('openvla', 'vision primary', 'libero_object_no_noops', 'It loads.'):
        assert word in printed


def test_json_is_one_object(openvla, capsys):
    assert main(['inspect', str(openvla), '--json']) == 0
    document = json.loads(capsys.readouterr().out)
    assert document['loads'] is True
    assert document['format'] == 'openvla'


def test_the_small_vla_is_inspected_too(capsys):
    assert main(['inspect', str(resource_folder('weights'))]) == 0
    assert 'vision agentview' in capsys.readouterr().out


@pytest.mark.parametrize('as_json', [True, False])
def test_a_checkpoint_with_problems_is_1(as_json, openvla, tmp_path, capsys):
    folder = shutil.copytree(openvla, tmp_path / 'copy')
    os.truncate(folder / 'model-00001-of-00002.safetensors', 5000)
    assert main(['inspect', str(folder), *(['--json'] if as_json else [])]) == 1
    printed = capsys.readouterr().out
    assert 'model-00001-of-00002.safetensors is truncated' in printed
    if not as_json:
        assert 'It does not load.' in printed


def test_tensors_that_do_not_fit_are_listed(openvla, tmp_path, capsys):
    folder = shutil.copytree(openvla, tmp_path / 'copy')
    path = folder / 'config.json'
    config = json.loads(path.read_text())
    config['text_config']['num_hidden_layers'] = 5
    path.write_text(json.dumps(config))
    assert main(['inspect', str(folder)]) == 1
    printed = ''.join(capsys.readouterr().out.split())
    for part in ('input_layernorm', 'self_attn.q_proj', 'self_attn.v_proj', 'mlp.down_proj'):
        assert f'language_model.model.layers.4.{part}.weight' in printed


def test_a_folder_without_a_checkpoint_is_2(tmp_path, capsys):
    assert main(['inspect', str(tmp_path)]) == 2
    assert 'config.json' in capsys.readouterr().err
