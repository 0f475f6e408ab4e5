"""Saving and loading, and every way in which a folder can be wrong."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.models.conftest import make_checkpoint, make_observation, tiny_config
from vla_cache_models.policy import load_policy
from vla_cache_models.small.checkpoint import (
    CONFIG_NAME,
    WEIGHTS_NAME,
    load_checkpoint,
    save_checkpoint,
)
from vla_cache_ros.core.errors import CheckpointError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A good checkpoint folder."""
    save_checkpoint(make_checkpoint(tiny_config()), tmp_path)
    return tmp_path


def test_round_trip(folder: Path, rng: np.random.Generator) -> None:
    saved, loaded = make_checkpoint(tiny_config()), load_checkpoint(folder)
    assert loaded.model.config == saved.model.config
    assert loaded.tokenizer.words == saved.tokenizer.words
    assert loaded.proprioception_scale == saved.proprioception_scale
    assert loaded.execute_steps == saved.execute_steps
    for name, tensor in saved.model.state_dict().items():
        assert torch.equal(tensor, loaded.model.state_dict()[name])
    assert len(loaded.weights_sha256) == 64
    assert load_policy(folder, 'off').act(make_observation(rng)).actions.shape == (4, 7)


def test_missing_folder_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match='vla-cache train'):
        load_checkpoint(tmp_path / 'nowhere')


def test_truncated_weights(folder: Path) -> None:
    weights = folder / WEIGHTS_NAME
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match='truncated or damaged'):
        load_checkpoint(folder)


def test_missing_weights(folder: Path) -> None:
    (folder / WEIGHTS_NAME).unlink()
    with pytest.raises(CheckpointError, match='is missing'):
        load_checkpoint(folder)


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('{', 'not readable JSON'),
        ('{"model_type": "openvla"}', "no model_type 'parallel_vla'"),
        ('{"model_type": "parallel_vla"}', 'does not describe'),
    ],
)
def test_bad_config(folder: Path, text: str, message: str) -> None:
    (folder / CONFIG_NAME).write_text(text)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(folder)


def test_impossible_architecture(folder: Path) -> None:
    config = json.loads((folder / CONFIG_NAME).read_text())
    config['architecture']['patch_size_px'] = 7
    (folder / CONFIG_NAME).write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match='patch_size_px 7'):
        load_checkpoint(folder)


def test_tensors_that_do_not_fit_are_named(folder: Path) -> None:
    weights = load_file(folder / WEIGHTS_NAME)
    weights['action_head.0.weight'] = torch.zeros(3, 3)
    del weights['decoder.norm.weight']
    weights['stray'] = torch.zeros(1)
    save_file(weights, folder / WEIGHTS_NAME)
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(folder)
    for problem in (
        '3 tensors',
        'missing decoder.norm.weight',
        'unexpected stray',
        r'action_head.0.weight has shape [3, 3], expected [64, 32]',
    ):
        assert problem in str(caught.value)
