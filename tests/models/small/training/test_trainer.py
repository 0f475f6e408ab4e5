"""Training on a toy dataset: it learns, it resumes exactly, it sees new episodes."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.models.conftest import INSTRUCTION, make_observation, tiny_config
from vla_cache_models.policy import load_policy
from vla_cache_models.small.checkpoint import load_checkpoint
from vla_cache_models.small.tokenizer import WordTokenizer
from vla_cache_models.small.training.losses import relevance_loss
from vla_cache_models.small.training.patch_drop import choose_patches
from vla_cache_models.small.training.trainer import TrainConfig, Trainer
from vla_cache_ros.core.errors import CheckpointError, ConfigError, DatasetError
from vla_cache_ros.dataset import DatasetSpec, DatasetWriter, Episode, EpisodeInfo

SPEC = DatasetSpec(image_size_px=32, chunk_size=4, relevance_rows=4)
CONFIG = TrainConfig(
    steps=60,
    batch_size=8,
    learning_rate=3e-3,
    warmup_steps=5,
    decay_steps=10,
    ema_decay=0.9,
    kept_patches=((8, 12),),
    save_every_steps=30,
)


def make_episode(seed: int, instruction: str = INSTRUCTION) -> Episode:
    """A bright square whose column is what the action's x says."""
    rng = np.random.default_rng(seed)
    frames = 10
    column = rng.integers(0, 4, frames)
    image = np.zeros((frames, 32, 32, 3), dtype=np.uint8)
    relevance = np.zeros((frames, 2, 4, 4), dtype=np.uint8)
    for frame, col in enumerate(column):
        image[frame, 8:16, 8 * col : 8 * col + 8] = 255
        relevance[frame, :, 1, col] = 1
    action = np.zeros((frames, 7), dtype=np.float32)
    action[:, 0] = column / 2 - 0.75
    state = np.tile(np.array([0, 0, 1, 0, 0, 0, 1, 0.04, -0.04], np.float32), (frames, 1))
    return Episode(
        images={'agentview': image, 'wrist': image.copy()},
        state=state,
        action=action,
        executed_action=action,
        label_chunk=np.repeat(action[:, None], 4, axis=1),
        label_valid=np.ones((frames, 4), dtype=bool),
        target_position_m=np.zeros((frames, 3), np.float32),
        goal_position_m=np.zeros((frames, 3), np.float32),
        relevance=relevance,
        policy_drives=np.zeros(frames, dtype=bool),
        info=EpisodeInfo(instruction, suite='toy', seed=seed, attempt=seed),
    )


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """Four toy episodes."""
    folder = tmp_path / 'dataset'
    writer = DatasetWriter(folder, SPEC)
    for seed in range(4):
        writer.append(make_episode(seed))
    return folder


def make_trainer(dataset: Path, out: Path, config: TrainConfig = CONFIG) -> Trainer:
    """A trainer of the tiny VLA."""
    tokenizer = WordTokenizer.fit([INSTRUCTION], 12)
    return Trainer(tiny_config(), tokenizer, dataset, out, config)


def test_the_policy_learns_where_the_square_is(dataset: Path, tmp_path: Path) -> None:
    trainer = make_trainer(dataset, tmp_path / 'run', replace(CONFIG, steps=150))
    seen: list[float] = []
    trainer.run(lambda losses: seen.append(losses.action), report_every_steps=10)
    assert seen[-1] < 0.5 * seen[0]
    assert load_policy(tmp_path / 'run', 'off').act(make_observation(np.random.default_rng(0)))
    assert (tmp_path / 'run' / 'loss.csv').read_text().count('\n') == 16


def test_a_resumed_run_equals_an_unbroken_one(dataset: Path, tmp_path: Path) -> None:
    unbroken = make_trainer(dataset, tmp_path / 'unbroken')
    unbroken.run(lambda _: None)

    broken = make_trainer(dataset, tmp_path / 'broken')

    def interrupt(_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        broken.run(interrupt, report_every_steps=20)
    resumed = make_trainer(dataset, tmp_path / 'broken')
    assert resumed.step == 20
    resumed.run(lambda _: None)
    for name, tensor in unbroken.average.state_dict().items():
        torch.testing.assert_close(tensor, resumed.average.state_dict()[name], msg=name)


def test_a_run_may_begin_from_a_checkpoint(dataset: Path, tmp_path: Path) -> None:
    first = make_trainer(dataset, tmp_path / 'first')
    first.run(lambda _: None)
    start = load_checkpoint(tmp_path / 'first')
    tokenizer = WordTokenizer.fit([INSTRUCTION], 12)
    second = Trainer(tiny_config(), tokenizer, dataset, tmp_path / 'second', CONFIG, start)
    for name, tensor in start.model.state_dict().items():
        torch.testing.assert_close(second.model.state_dict()[name], tensor, rtol=0, atol=0)
        torch.testing.assert_close(second.average.state_dict()[name], tensor, rtol=0, atol=0)
    assert second.scale == start.proprioception_scale
    assert second.step == 0


def test_new_episodes_are_found(dataset: Path, tmp_path: Path) -> None:
    trainer = make_trainer(dataset, tmp_path / 'run')
    before = len(trainer.store)
    assert trainer.load_new_episodes() == 0
    DatasetWriter(dataset, SPEC).append(make_episode(9))
    assert trainer.load_new_episodes() == 1
    assert len(trainer.store) == before + 10


def test_another_vocabulary_is_not_resumed(dataset: Path, tmp_path: Path) -> None:
    make_trainer(dataset, tmp_path / 'run').save()
    with pytest.raises(CheckpointError, match='another vocabulary'):
        Trainer(
            tiny_config(),
            WordTokenizer(['milk'], 12),
            dataset,
            tmp_path / 'run',
            CONFIG,
        )


def test_missing_and_empty_datasets_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match='vla-cache demos'):
        make_trainer(tmp_path / 'nothing', tmp_path / 'run')
    DatasetWriter(tmp_path / 'empty', SPEC)
    with pytest.raises(DatasetError, match='no episode'):
        make_trainer(tmp_path / 'empty', tmp_path / 'run')


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match='do not fit'):
        TrainConfig(steps=10, warmup_steps=6, decay_steps=6)


def test_rate_rises_stays_and_falls_to_zero() -> None:
    rates = [CONFIG.rate_at(step) for step in range(CONFIG.steps)]
    assert rates[:5] == sorted(rates[:5])
    assert set(rates[5:50]) == {CONFIG.learning_rate}
    assert rates[50:] == sorted(rates[50:], reverse=True)
    assert rates[-1] < 0.1 * CONFIG.learning_rate


def test_tasks_are_drawn_alike_often_whatever_their_size(dataset: Path, tmp_path: Path) -> None:
    DatasetWriter(dataset, SPEC).append(make_episode(5, 'place the milk'))
    trainer = make_trainer(dataset, tmp_path / 'run')
    rng = np.random.default_rng(0)
    batch = trainer.store.draw(rng, 400, trainer.tokenizer, trainer.scale)
    rare = torch.tensor(trainer.tokenizer('place the milk'))
    share = (batch.text == rare).all(dim=1).float().mean().item()
    assert 0.4 < share < 0.6


def test_a_suite_of_weight_three_is_drawn_three_times_as_often(
    dataset: Path, tmp_path: Path
) -> None:
    episode = make_episode(5, 'place the milk')
    info = replace(episode.info, suite='hard')
    DatasetWriter(dataset, SPEC).append(replace(episode, info=info))
    config = replace(CONFIG, suite_weights=(('hard', 3.0),))
    trainer = make_trainer(dataset, tmp_path / 'run', config)
    batch = trainer.store.draw(np.random.default_rng(0), 400, trainer.tokenizer, trainer.scale)
    hard = torch.tensor(trainer.tokenizer('place the milk'))
    assert 0.65 < (batch.text == hard).all(dim=1).float().mean().item() < 0.85


def test_kept_patches_are_ascending_distinct_and_prefer_contrast() -> None:
    patches = torch.zeros(64, 16, 12, dtype=torch.uint8)
    patches[:, 3, ::2] = 255
    kept = choose_patches(patches, 4, torch.Generator().manual_seed(0))
    assert kept.shape == (64, 4)
    assert (kept.diff(dim=1) > 0).all()
    assert (kept == 3).any(dim=1).float().mean() > 0.9


def test_relevance_loss_is_least_where_attention_is_on_the_task() -> None:
    relevant = torch.tensor([[True, False, False, False, True, False]])
    on_task = torch.tensor([[0.9, 0.05, 0.05, 0.05, 0.9, 0.05]])
    assert relevance_loss(on_task, relevant, [3, 3]) < relevance_loss(
        on_task.flip(1), relevant, [2, 4]
    )
    nothing_shown = torch.zeros(1, 6, dtype=torch.bool)
    assert relevance_loss(on_task, nothing_shown, [3, 3]) == 0
