"""Checkpoint of a parallel VLA: a folder with config.json and model.safetensors."""

import hashlib
import json
import math
import typing
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from vla_cache_models.decoder import DecoderConfig
from vla_cache_models.small.network import ParallelVla, VlaConfig
from vla_cache_models.small.proprioception import ProprioceptionScale
from vla_cache_models.small.tokenizer import WordTokenizer
from vla_cache_ros.core.errors import CheckpointError, ConfigError
from vla_cache_ros.core.json_text import need, parse_json

MODEL_TYPE = 'parallel_vla'
CONFIG_NAME = 'config.json'
WEIGHTS_NAME = 'model.safetensors'
GREATEST_SIZE, GREATEST_LAYERS = 1 << 16, 256
"""Bounds of a config's numbers: more is damage, and would take hours to build."""

ConfigT = TypeVar('ConfigT')


@dataclass(frozen=True)
class Checkpoint:
    """All that inference needs.

    Attributes:
        model: The network, in eval mode.
        tokenizer: Of the instructions.
        proprioception_scale: Of the training data.
        execute_steps: Actions of a chunk to execute before the next policy refresh.
        weights_sha256: Hash of model.safetensors, to name the checkpoint in reports.
    """

    model: ParallelVla
    tokenizer: WordTokenizer
    proprioception_scale: ProprioceptionScale
    execute_steps: int
    weights_sha256: str = ''


def save_checkpoint(checkpoint: Checkpoint, folder: Path) -> None:
    """Write a checkpoint; the folder holds either the old or the new one, never half of one."""
    folder.mkdir(parents=True, exist_ok=True)
    config: dict[str, Any] = {
        'model_type': MODEL_TYPE,
        'architecture': asdict(checkpoint.model.config),
        'words': checkpoint.tokenizer.words,
        'proprioception_scale': asdict(checkpoint.proprioception_scale),
        'execute_steps': checkpoint.execute_steps,
    }
    weights = {
        name: tensor.detach().to('cpu', torch.float32).contiguous()
        for name, tensor in checkpoint.model.state_dict().items()
    }
    partial = folder / f'{WEIGHTS_NAME}.partial'
    save_file(weights, partial)
    partial_config = folder / f'{CONFIG_NAME}.partial'
    partial_config.write_text(json.dumps(config, indent=2) + '\n')
    partial.replace(folder / WEIGHTS_NAME)
    partial_config.replace(folder / CONFIG_NAME)


def load_checkpoint(folder: Path, device: str = 'cpu') -> Checkpoint:
    """Read a checkpoint.

    Args:
        folder: Holds config.json and model.safetensors.
        device: Where the network goes.

    Raises:
        CheckpointError: A file is missing or damaged, or the tensors do not fit the config.
    """
    config = _read_config(folder)
    vla_config = read_architecture(folder, config)
    try:
        words = [need(word, str, 'a word') for word in need(config['words'], list, 'words')]
        tokenizer = WordTokenizer(words, vla_config.text_tokens)
        scale = _read_scale(config['proprioception_scale'])
        execute_steps = need(config['execute_steps'], int, 'execute_steps')
    except (KeyError, TypeError, ValueError, ConfigError) as error:
        raise _undescribed(folder, error) from error
    with torch.device('meta'):
        model = ParallelVla(vla_config)
    weights = _read_weights(folder / WEIGHTS_NAME, device)
    _check_tensors(model.state_dict(), weights, folder)
    model.load_state_dict(weights, assign=True)
    return Checkpoint(
        model.eval().requires_grad_(False),
        tokenizer,
        scale,
        execute_steps,
        hashlib.sha256((folder / WEIGHTS_NAME).read_bytes()).hexdigest(),
    )


def read_architecture(folder: Path, config: Mapping[str, Any]) -> VlaConfig:
    """The network's shape from the content of config.json.

    Args:
        folder: The checkpoint, for the message.
        config: What its config.json holds.

    Raises:
        CheckpointError: The content does not describe a small VLA.
    """
    try:
        architecture = dict(config['architecture'])
        architecture['tower'] = _checked(DecoderConfig, architecture['tower'])
        architecture['decoder'] = _checked(DecoderConfig, architecture['decoder'])
        cameras = need(architecture['cameras'], list, 'cameras')
        architecture['cameras'] = tuple(need(camera, str, 'a camera') for camera in cameras)
        return _checked(VlaConfig, architecture)
    except (KeyError, TypeError, ValueError, ArithmeticError, ConfigError) as error:
        raise _undescribed(folder, error) from error


def _checked(table: type[ConfigT], values: Mapping[str, Any]) -> ConfigT:
    """Build a part of the architecture from numbers of the right kind and a plausible size.

    Raises:
        ValueError: One is not.
        TypeError, ConfigError: As the table itself says.
    """
    kinds = typing.get_type_hints(table)
    for name, value in values.items():
        if kinds.get(name) is int:
            greatest = GREATEST_LAYERS if name == 'layers' else GREATEST_SIZE
            if not 0 <= need(value, int, name) <= greatest:
                raise ValueError(f'{name} is {value}; valid: 0 to {greatest}')
        elif kinds.get(name) is float and not 0 <= float(value) < math.inf:
            raise ValueError(f'{name} is {value}; valid: a finite number from 0')
        elif kinds.get(name) is str:
            need(value, str, name)
    return table(**values)


def _read_scale(values: Mapping[str, Any]) -> ProprioceptionScale:
    scale = ProprioceptionScale(**values)
    numbers = (*scale.position_mean_m, *scale.position_std_m, scale.gripper_open_m)
    if len(numbers) != 7 or not all(math.isfinite(number) for number in numbers):
        raise ValueError('proprioception_scale does not hold 3, 3 and 1 finite numbers')
    return scale


def _undescribed(folder: Path, error: Exception) -> CheckpointError:
    return CheckpointError(f'{folder / CONFIG_NAME} does not describe a {MODEL_TYPE}: {error}')


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG_NAME
    try:
        config = parse_json(path.read_bytes())
    except FileNotFoundError:
        raise CheckpointError(
            f'no checkpoint at {folder}: {CONFIG_NAME} is missing. Train one with '
            '`vla-cache train`, or name the folder of an existing one.'
        ) from None
    except ValueError as error:
        raise CheckpointError(f'{path} is not readable JSON: {error}') from error
    if not isinstance(config, dict) or config.get('model_type') != MODEL_TYPE:
        raise CheckpointError(
            f'{path} has no model_type {MODEL_TYPE!r}, the one type this version loads.'
        )
    return config


def _read_weights(path: Path, device: str) -> dict[str, torch.Tensor]:
    try:
        return load_file(path, device=device)
    except FileNotFoundError:
        raise CheckpointError(f'{path} is missing; copy the checkpoint folder again.') from None
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f'{path} is truncated or damaged ({error}); copy the checkpoint folder again.'
        ) from error


def _check_tensors(
    expected: dict[str, torch.Tensor], found: dict[str, torch.Tensor], folder: Path
) -> None:
    problems = [f'missing {name}' for name in sorted(expected.keys() - found.keys())]
    problems += [f'unexpected {name}' for name in sorted(found.keys() - expected.keys())]
    problems += [
        f'{name} has shape {list(found[name].shape)}, expected {list(expected[name].shape)}'
        for name in sorted(expected.keys() & found.keys())
        if found[name].shape != expected[name].shape
    ]
    if problems:
        shown = '; '.join(problems[:8]) + ('; ...' if len(problems) > 8 else '')
        raise CheckpointError(
            f'{folder}: {len(problems)} tensors do not fit the architecture: {shown}'
        )
