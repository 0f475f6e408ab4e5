"""From a folder of each public layout to a policy that acts, dense and cached."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.models.prismatic import reference
from tests.models.prismatic.conftest import MODELS, make_observation, tiny_prismatic_config
from tests.models.tiny_checkpoints import write_tiny_cogact, write_tiny_oft, write_tiny_openvla
from vla_cache_models.policy import load_model, load_policy, make_policy, random_model
from vla_cache_models.prismatic.build import random_vla
from vla_cache_ros.core.errors import CheckpointError, ConfigError, UnknownNameError

KEYS = {
    'openvla': 'libero_object',
    'openvla_oft': 'libero_spatial',
    'cogact': 'fractal20220817_data',
}
WRITERS = {
    'openvla': write_tiny_openvla,
    'openvla_oft': write_tiny_oft,
    'cogact': write_tiny_cogact,
}


@pytest.fixture(scope='module')
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One checkpoint of each layout."""
    return {
        name: write(tmp_path_factory.mktemp(name) / 'checkpoint')
        for name, write in WRITERS.items()
    }


@pytest.mark.parametrize('name', MODELS)
def test_a_checkpoint_acts_dense_and_cached(
    name: str, folders: dict[str, Path], rng: np.random.Generator
) -> None:
    model = load_model(folders[name], unnorm_key=KEYS[name])
    dense, cached = make_policy(model, 'off'), make_policy(model, 'paper', auto_off=False)
    observation = make_observation(rng)
    for step in range(3):
        chunk = cached.act(observation)
        expected = dense.act(observation)
        assert chunk.actions.shape == (cached.chunk_size, 7)
        assert chunk.report is not None
        assert chunk.report.mode == ('keyframe' if step == 0 else 'cached')
        np.testing.assert_allclose(chunk.actions, expected.actions, atol=1e-4)
    assert not chunk.report.plan.is_dense
    assert cached.weights_sha256 == dense.weights_sha256 != ''


@pytest.mark.parametrize('name', MODELS)
@pytest.mark.parametrize('dtype', ['bfloat16', 'float16'])
def test_half_precision_acts(
    name: str, dtype: str, folders: dict[str, Path], rng: np.random.Generator
) -> None:
    policy = load_policy(folders[name], 'safe', unnorm_key=KEYS[name], dtype=dtype)
    assert policy._model.decoder.norm.weight.dtype == getattr(torch, dtype)
    for _ in range(2):
        assert np.isfinite(policy.act(make_observation(rng)).actions).all()


def test_cogact_keeps_its_diffusion_transformer_in_float32(folders: dict[str, Path]) -> None:
    loaded = load_model(folders['cogact'], unnorm_key='bridge_orig', dtype='bfloat16')
    assert loaded._network.action_model.positional_embedding.dtype == torch.float32
    assert loaded._network.text_embedding.weight.dtype == torch.bfloat16


def test_every_tensor_of_the_decoder_arrives(folders: dict[str, Path]) -> None:
    raw = {
        name: tensor
        for file in folders['openvla'].glob('*.safetensors')
        for name, tensor in load_file(file).items()
    }
    network = load_model(folders['openvla'], unnorm_key='libero_object')._network
    llama = reference.llama_from(network).state_dict()
    theirs = {
        name.removeprefix('language_model.'): tensor
        for name, tensor in raw.items()
        if name.startswith('language_model.') and 'inv_freq' not in name
    }
    assert llama.keys() == theirs.keys()
    assert all(torch.equal(llama[name], tensor) for name, tensor in theirs.items())


@pytest.mark.parametrize('name', MODELS)
def test_an_unknown_dataset_lists_the_valid_ones(name: str, folders: dict[str, Path]) -> None:
    with pytest.raises(UnknownNameError, match=KEYS[name]):
        load_policy(folders[name], unnorm_key='berkeley_autolab_ur5')
    with pytest.raises(ConfigError, match=f'Valid: .*{KEYS[name]}'):
        load_policy(folders[name])


def test_oft_without_statistics_of_the_state_is_refused(tmp_path: Path) -> None:
    folder = write_tiny_oft(tmp_path / 'oft')
    path = folder / 'dataset_statistics.json'
    statistics = json.loads(path.read_text())
    for entry in statistics.values():
        del entry['proprio']
    path.write_text(json.dumps(statistics))
    with pytest.raises(CheckpointError, match='no proprioception'):
        load_policy(folder, unnorm_key='libero_object')


def test_a_missing_preprocessor_config_is_refused(tmp_path: Path) -> None:
    folder = write_tiny_openvla(tmp_path / 'openvla')
    (folder / 'preprocessor_config.json').unlink()
    with pytest.raises(CheckpointError, match='preprocessor_config.json is missing'):
        load_policy(folder, unnorm_key='libero_object')


def test_policies_share_the_weights_and_nothing_else(
    folders: dict[str, Path], rng: np.random.Generator
) -> None:
    model = load_model(folders['cogact'], unnorm_key='fractal20220817_data')
    first, second = make_policy(model, 'off'), make_policy(model, 'off')
    a = first._model.decoder.layers[0].mlp.down.weight
    assert a.data_ptr() == second._model.decoder.layers[0].mlp.down.weight.data_ptr()
    observation = make_observation(rng)
    alone = make_policy(model, 'off').act(observation).actions
    first.act(observation)  # moves its own noise, ensemble and gripper on
    assert np.array_equal(second.act(observation).actions, alone)


def test_random_weights_are_seeded() -> None:
    config = tiny_prismatic_config()

    def weights(seed: int, **options: int) -> dict[str, torch.Tensor]:
        return random_vla('openvla_oft', config, seed=seed, **options)._network.state_dict()

    name = 'decoder.layers.1.mlp.down.weight'
    assert torch.equal(weights(0)[name], weights(0)[name])
    assert torch.equal(weights(0)[name], weights(0, layers=2)[name])
    assert not torch.equal(weights(0)[name], weights(1)[name])


def test_unknown_random_model_is_refused() -> None:
    with pytest.raises(UnknownNameError, match='valid: openvla, openvla_oft, cogact'):
        random_model('pi0')
