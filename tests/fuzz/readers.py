"""Every reader of files of the project, each with a small good file of its kind.

A `Reader` makes a good folder, says which of its files to damage, and reads all there is to read.
"""

import dataclasses
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vla_cache_ros.core.types import Observation, Proprioception


@dataclass(frozen=True)
class Reader:
    """One reader.

    Attributes:
        make: Writes good files into a folder.
        files: Which of them to damage.
        read: Reads the folder, everything in it.
    """

    make: Callable[[Path], Any]
    files: tuple[str, ...]
    read: Callable[[Path], Any]


def _make_dataset(folder: Path) -> None:
    from vla_cache_ros.dataset import DatasetSpec, DatasetWriter, Episode, EpisodeInfo

    spec = DatasetSpec(image_size_px=16, relevance_rows=2)
    rng = np.random.default_rng(0)

    def floats(*shape: int) -> np.ndarray:
        return rng.uniform(-1, 1, (2, *shape)).astype(np.float32)

    writer = DatasetWriter(folder, spec)
    for seed in range(2):
        writer.append(
            Episode(
                images={camera: np.zeros((2, 16, 16, 3), np.uint8) for camera in spec.cameras},
                state=floats(9),
                action=floats(7),
                executed_action=floats(7),
                label_chunk=floats(8, 7),
                label_valid=np.ones((2, 8), bool),
                target_position_m=floats(3),
                goal_position_m=floats(3),
                relevance=np.zeros((2, 2, 2, 2), np.uint8),
                policy_drives=np.ones(2, bool),
                info=EpisodeInfo('lift the can', suite='fake', task=1, seed=seed, attempt=seed),
            )
        )


def _read_dataset(folder: Path) -> None:
    from vla_cache_ros.dataset import DemonstrationDataset
    from vla_cache_ros.dataset.index import read_tasks

    dataset = DemonstrationDataset.open(folder)
    read_tasks(folder)
    list(dataset.load_episodes())


def _make_small_checkpoint(folder: Path) -> None:
    from tests.models.conftest import make_checkpoint, tiny_config
    from vla_cache_models.small.checkpoint import save_checkpoint

    save_checkpoint(make_checkpoint(tiny_config()), folder)


def _read_small_checkpoint(folder: Path) -> None:
    from vla_cache_models.small.checkpoint import load_checkpoint

    load_checkpoint(folder)


TENSORS = {'a.weight': (2, 3), 'b.bias': (5,)}


def _tensors() -> dict[str, Any]:
    import torch

    return {name: torch.ones(shape) for name, shape in TENSORS.items()}


def _make_safetensors(folder: Path) -> None:
    from safetensors.torch import save_file

    save_file(_tensors(), folder / 'model.safetensors')


def _read_all(file: Any) -> None:
    for name in file.names():
        file.shape(name)
        file.dtype(name)
        file.read(name)


def _read_safetensors(folder: Path) -> None:
    from vla_cache_models.loading.tensor_files import SafetensorsFile

    _read_all(SafetensorsFile(folder / 'model.safetensors'))


def _make_torch_file(folder: Path) -> None:
    import torch

    torch.save({'model': _tensors()}, folder / 'model.pt')


def _read_torch_file(folder: Path) -> None:
    from vla_cache_models.loading.tensor_files import TorchFile

    _read_all(TorchFile(folder / 'model.pt', key='model'))


def _make_shards(folder: Path) -> None:
    from safetensors.torch import save_file

    shards = {f'model-{number}.safetensors': name for number, name in enumerate(TENSORS)}
    for shard, name in shards.items():
        save_file({name: _tensors()[name]}, folder / shard)
    index = {'metadata': {}, 'weight_map': {name: shard for shard, name in shards.items()}}
    (folder / 'model.safetensors.index.json').write_text(json.dumps(index))


def _read_shards(folder: Path) -> None:
    from vla_cache_models.loading.tensor_files import open_safetensors

    _read_all(open_safetensors(folder))


def _make_norm_stats(folder: Path) -> None:
    bounds = {'q01': [-1.0] * 7, 'q99': [1.0] * 7, 'mask': [True] * 6 + [False]}
    stats = {'bridge': {'action': bounds, 'proprio': bounds, 'num_trajectories': 3}}
    (folder / 'dataset_statistics.json').write_text(json.dumps(stats))


def _read_norm_stats(folder: Path) -> None:
    from vla_cache_models.prismatic.norm_stats import read_norm_stats

    read_norm_stats({}, folder)


def _make_tokenizer(folder: Path) -> None:
    from tests.models.prismatic.tiny_tokenizer import write_tiny_tokenizer

    write_tiny_tokenizer(folder, 600)


def _read_tokenizer(folder: Path) -> None:
    from vla_cache_models.prismatic.prompt import TokenizerFile

    TokenizerFile(folder, sizes=(601,))('In: what should the robot do?')


def _make_engine(folder: Path) -> None:
    from vla_cache_trt.manifest import (
        MANIFEST,
        GraphRecord,
        Identity,
        Manifest,
        Verification,
        record_files,
        write_json,
    )

    (folder / 'plan.bin').write_bytes(b'a plan')
    identity = Identity('small', 'abc', (0, 2), 1, 'float32', 'ort', '1', 'avx2', 'fp32', (64,))
    record = GraphRecord('spec', 'onnx', record_files(folder), 1.5)
    verified = Verification(True, {'dense': {'motion': 0.0}}, {'motion': 1e-4}, 8, 'it', 'today')
    manifest = Manifest(identity, {'head': record}, 23, 'today', 1.5, verified)
    write_json(folder / MANIFEST, manifest)
    write_json(folder / 'record.json', record)


def _read_engine(folder: Path) -> None:
    from vla_cache_trt.manifest import check, check_files, read_manifest, read_record

    command = 'vla-cache engine build'
    record = read_record(folder, command)
    manifest = read_manifest(folder, command)
    check(manifest.identity, manifest.identity, folder, command)
    for graph in [record, *manifest.graphs.values()]:
        if graph is not None:
            check_files(graph, folder, command)


def _make_evaluation(folder: Path) -> None:
    from tests.evaluation.synthetic_rows import make_row
    from vla_cache_ros.evaluation.episode import EpisodeSpec
    from vla_cache_ros.evaluation.store import EpisodeStore

    with EpisodeStore.open(folder, {'suite': 'libero_object', 'seed': 0}) as store:
        for task in range(2):
            spec = EpisodeSpec('libero_object', task, 0, 'safe')
            store.add(make_row(spec, policy_steps=3))
        store.add(make_row(EpisodeSpec('libero_object', 3, 0, 'safe'), 'simulator_error'))


def _read_evaluation(folder: Path) -> None:
    from vla_cache_ros.evaluation.store import EpisodeStore

    with EpisodeStore.read(folder) as store:
        store.check({'seed': 0})
        store.finished()
        store.rows()
        store.attempts()


def _make_trace(folder: Path) -> None:
    from vla_cache_ros.cli.recording import save_observations

    numbers = np.array([0, 0, 0, 1], np.float32)
    state = Proprioception(numbers[:3], numbers, numbers[:2])
    image = np.zeros((8, 8, 3), np.uint8)
    observations = [Observation({'front': image}, state, 'lift it', stamp) for stamp in range(2)]
    save_observations(folder / 'frames.npz', observations, 'made up')


def _read_trace(folder: Path) -> None:
    from vla_cache_ros.cli.recording import load_observations

    load_observations(folder / 'frames.npz')


def _describe_weights(folder: Path) -> None:
    from vla_cache_ros.cli.doctor import describe_weights

    describe_weights(folder / 'model.safetensors')


def _make_training(folder: Path) -> None:
    _make_dataset(folder / 'dataset')
    _trainer(folder).save()


def _trainer(folder: Path) -> Any:
    from tests.models.conftest import tiny_config
    from vla_cache_models.small.tokenizer import WordTokenizer
    from vla_cache_models.small.training.trainer import TrainConfig, Trainer

    model = dataclasses.replace(tiny_config(), image_size_px=16, chunk_size=8)
    tokenizer = WordTokenizer.fit(['lift the can'], model.text_tokens)
    config = TrainConfig(
        steps=2, batch_size=1, warmup_steps=1, decay_steps=1, kept_patches=((2, 3),)
    )
    return Trainer(model, tokenizer, folder / 'dataset', folder / 'out', config)


def _make_parameters(folder: Path) -> None:
    root = Path(__file__).resolve().parents[2]
    shutil.copy(root / 'config' / 'libero_small_vla.yaml', folder / 'robot.yaml')


def _check_parameters(folder: Path) -> None:
    from vla_cache_ros.nodes.parameter_files import check_file
    from vla_cache_ros.nodes.parameter_tables.overview import NODES

    problems = check_file(folder / 'robot.yaml', NODES)
    assert all(str(folder) in str(problem) for problem in problems)


def _make_calibration(folder: Path) -> None:
    matrices = {'camera_matrix': 9, 'distortion_coefficients': 5}
    content = {name: {'data': [0.5] * count} for name, count in matrices.items()}
    content |= {'image_width': 640, 'image_height': 480}
    (folder / 'front.yaml').write_text(json.dumps(content))


def _read_calibration(folder: Path) -> None:
    from vla_cache_ros.nodes.cameras.calibration import load_calibration

    load_calibration(folder / 'front.yaml')


READERS: dict[str, Reader] = {
    'evaluation store': Reader(_make_evaluation, ('episodes.sqlite',), _read_evaluation),
    'dataset': Reader(
        _make_dataset,
        (
            'meta/info.json',
            'meta/tasks.jsonl',
            'meta/episodes.jsonl',
            'data/chunk-000/episode_000000.parquet',
            'videos/chunk-000/observation.images.wrist/episode_000001.mp4',
        ),
        _read_dataset,
    ),
    'small checkpoint': Reader(
        _make_small_checkpoint, ('config.json', 'model.safetensors'), _read_small_checkpoint
    ),
    'safetensors': Reader(_make_safetensors, ('model.safetensors',), _read_safetensors),
    'shards': Reader(
        _make_shards, ('model.safetensors.index.json', 'model-0.safetensors'), _read_shards
    ),
    'training': Reader(_make_training, ('out/trainer_state.pt',), _trainer),
    'torch file': Reader(_make_torch_file, ('model.pt',), _read_torch_file),
    'norm stats': Reader(_make_norm_stats, ('dataset_statistics.json',), _read_norm_stats),
    'tokenizer': Reader(_make_tokenizer, ('tokenizer.json',), _read_tokenizer),
    'engine': Reader(_make_engine, ('manifest.json', 'record.json'), _read_engine),
    'recorded frames': Reader(_make_trace, ('frames.npz',), _read_trace),
    'parameter file': Reader(_make_parameters, ('robot.yaml',), _check_parameters),
    'calibration': Reader(_make_calibration, ('front.yaml',), _read_calibration),
    'doctor': Reader(_make_safetensors, ('model.safetensors',), _describe_weights),
}
