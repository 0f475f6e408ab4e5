"""Behaviour cloning of the small VLA on a dataset folder that may grow while it trains."""

import csv
import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from vla_cache_models.probe import AttentionProbe
from vla_cache_models.small.checkpoint import Checkpoint, save_checkpoint
from vla_cache_models.small.network import ParallelVla, VlaConfig
from vla_cache_models.small.proprioception import ProprioceptionScale
from vla_cache_models.small.tokenizer import WordTokenizer
from vla_cache_models.small.training.losses import (
    LossWeights,
    action_loss,
    position_loss,
    relevance_loss,
)
from vla_cache_models.small.training.patch_drop import choose_patches
from vla_cache_models.small.training.samples import Batch, SampleStore
from vla_cache_ros.core.errors import CheckpointError, ConfigError
from vla_cache_ros.core.json_text import need
from vla_cache_ros.dataset.layout import RELEVANCE_BITS
from vla_cache_ros.dataset.reader import DemonstrationDataset

_PLAIN = [SDPBackend.MATH]
_FUSED_OR_PLAIN = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]

STATE_NAME = 'trainer_state.pt'
CURVE_NAME = 'loss.csv'


@dataclass(frozen=True)
class TrainConfig:
    """Settings of a training run.

    Attributes:
        steps: Optimiser steps in all.
        batch_size: Samples per step.
        learning_rate: Peak; warmed up linearly, then constant, then cosine to zero.
        warmup_steps: Length of the warm-up.
        decay_steps: Length of the final decay; it also sees every patch.
        weight_decay: AdamW's, on matrices.
        ema_decay: Of the averaged weights that are saved.
        kept_patches: Patches per camera that take part in a step, one choice drawn per step;
            during the final decay all do.
        loss_weights: Auxiliary terms.
        seed: Of weights and batches.
        save_every_steps: Between two checkpoints.
        reload_every_steps: Between two looks for new episodes in the dataset folder; 0 never.
        suite_weights: (suite, weight) pairs: how often its tasks are drawn, relative to weight 1.
        execute_steps: Written to the checkpoint: actions executed per policy refresh.
        device: Where to train.
        threads: CPU threads; 0 leaves torch's choice.
    """

    steps: int = 4000
    batch_size: int = 32
    learning_rate: float = 1e-3
    warmup_steps: int = 100
    decay_steps: int = 800
    weight_decay: float = 0.02
    ema_decay: float = 0.995
    kept_patches: tuple[tuple[int, int], ...] = ((80, 112), (96, 128), (128, 160))
    loss_weights: LossWeights = LossWeights()
    seed: int = 0
    save_every_steps: int = 200
    reload_every_steps: int = 50
    suite_weights: tuple[tuple[str, float], ...] = ()
    execute_steps: int = 4
    device: str = 'cpu'
    threads: int = 0

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            ConfigError: One is out of range.
        """
        if self.steps < 1 or self.batch_size < 1:
            raise ConfigError('steps and batch_size must be at least 1.')
        if not 0 <= self.warmup_steps + self.decay_steps <= self.steps:
            raise ConfigError(
                f'warmup_steps {self.warmup_steps} and decay_steps {self.decay_steps} do not fit '
                f'into {self.steps} steps.'
            )

    def rate_at(self, step: int) -> float:
        """Learning rate of one step."""
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        left = self.steps - step
        if left < self.decay_steps:
            return self.learning_rate * 0.5 * (1 - math.cos(math.pi * left / self.decay_steps))
        return self.learning_rate

    def sees_every_patch(self, step: int) -> bool:
        """Whether the step belongs to the second half of the final decay."""
        return self.steps - step <= self.decay_steps // 2


@dataclass(frozen=True)
class Losses:
    """Mean losses over some steps."""

    step: int
    total: float
    action: float
    relevance: float
    position_cm: float


class Trainer:
    """A training run in a folder.

    The folder holds the checkpoint (averaged weights), the trainer's own state and the loss
    curve. Starting a trainer in it again resumes the run.
    """

    def __init__(
        self,
        model_config: VlaConfig,
        tokenizer: WordTokenizer,
        dataset_folder: Path,
        out: Path,
        config: TrainConfig,
        start: Checkpoint | None = None,
    ) -> None:
        """Load the episodes, build or resume the network.

        Args:
            model_config: Architecture.
            tokenizer: Of the instructions.
            dataset_folder: Where the episodes lie.
            out: Folder of the run.
            config: Settings.
            start: Weights to begin from, with the scale of their inputs; None: random ones.

        Raises:
            DatasetError: The dataset cannot be read or is empty.
            CheckpointError: The folder holds the state of another architecture.
        """
        if config.threads:
            torch.set_num_threads(config.threads)
        torch.manual_seed(config.seed)
        self.config = config
        self.out = out
        self.dataset_folder = dataset_folder
        self.device = torch.device(config.device)
        self.tokenizer = tokenizer
        self.store = SampleStore(
            model_config.cameras,
            RELEVANCE_BITS['target'] | RELEVANCE_BITS['goal'],
            dict(config.suite_weights),
        )
        self.load_new_episodes()
        self.scale = ProprioceptionScale.fit(self.store.ee_positions_m)
        self.model = ParallelVla(model_config).to(self.device)
        if start is not None:
            self.model.load_state_dict(start.model.state_dict())
            self.scale = start.proprioception_scale
        self.average = ParallelVla(model_config).to(self.device).requires_grad_(False)
        self.average.load_state_dict(self.model.state_dict())
        self.optimiser = torch.optim.AdamW(_parameter_groups(self.model, config.weight_decay))
        self.step = 0
        self._resume()

    def load_new_episodes(self) -> int:
        """Add the episodes that were recorded since the last look; returns how many."""
        dataset = DemonstrationDataset.open(self.dataset_folder)
        new = dataset.entries[self.store.episodes :]
        return self.store.add(dataset.load_episodes(new, self.store.cameras))

    def run(self, on_losses: Callable[[Losses], None], report_every_steps: int = 20) -> None:
        """Train to the end; saves on the way, at the end and on interruption."""
        recent: list[tuple[float, float, float, float]] = []
        last_save = self.step
        try:
            while self.step < self.config.steps:
                recent.append(self.train_step())
                if self.step % report_every_steps == 0:
                    losses = Losses(self.step, *np.mean(recent, axis=0).tolist())
                    recent.clear()
                    self._log(losses)
                    on_losses(losses)
                if self.step % self.config.save_every_steps == 0:
                    self.save()
                    last_save = self.step
                reload_every = self.config.reload_every_steps
                if reload_every and self.step % reload_every == 0:
                    self.load_new_episodes()
        finally:
            if self.step != last_save:
                self.save()

    def train_step(self) -> tuple[float, float, float, float]:
        """One optimiser step; returns (total, action, relevance, position in cm)."""
        # Seeded by the step, so that a resumed run draws what an unbroken one would have drawn.
        rng = np.random.default_rng((self.config.seed, self.step))
        batch = self.store.draw(rng, self.config.batch_size, self.tokenizer, self.scale)
        batch = batch.to(self.device)
        for group in self.optimiser.param_groups:
            group['lr'] = self.config.rate_at(self.step)
        keep = self._choose_kept(batch, rng)

        # On a CPU the fused attention's backward is slow: plain products take a third less.
        backends = _PLAIN if self.device.type == 'cpu' else _FUSED_OR_PLAIN
        with torch.autocast(self.device.type, torch.bfloat16), sdpa_kernel(backends):
            actions, relevance, offsets = self._forward(batch, keep)
        action = action_loss(actions, batch)
        attention = relevance_loss(*self._relevance_targets(relevance, batch, keep))
        position = position_loss(offsets, batch)
        weights = self.config.loss_weights
        loss = action + weights.relevance * attention + weights.position * position

        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimiser.step()
        self._update_average()
        self.step += 1
        return loss.item(), action.item(), attention.item(), 10 * position.item()

    def save(self) -> None:
        """Write the averaged weights as a checkpoint, and the state to resume from."""
        checkpoint = Checkpoint(
            self.average, self.tokenizer, self.scale, self.config.execute_steps
        )
        save_checkpoint(checkpoint, self.out)
        state = {
            'step': self.step,
            'model': self.model.state_dict(),
            'average': self.average.state_dict(),
            'optimiser': self.optimiser.state_dict(),
            'scale': dataclasses.asdict(self.scale),
            'words': list(self.tokenizer.words),
        }
        partial = self.out / f'{STATE_NAME}.partial'
        torch.save(state, partial)
        partial.replace(self.out / STATE_NAME)

    def _forward(self, batch: Batch, keep: list[Tensor] | None) -> tuple[Tensor, Tensor, Tensor]:
        config = self.model.config
        kept = None if keep is None else [own.shape[1] for own in keep]
        layout = config.layout(config.text_tokens, kept)
        probe = AttentionProbe(layout, config.relevance_layer)
        actions, hidden = self.model(batch.images, batch.proprioception, batch.text, keep, probe)
        assert probe.relevance is not None, 'the relevance layer always runs'
        return actions, probe.relevance, self.model.locate(hidden)

    def _choose_kept(self, batch: Batch, rng: np.random.Generator) -> list[Tensor] | None:
        if self.config.sees_every_patch(self.step):
            return None
        kept = self.config.kept_patches[rng.integers(len(self.config.kept_patches))]
        generator = torch.Generator(self.device).manual_seed(int(rng.integers(2**31)))
        patches = self.model.patch_embedding.patchify(batch.images)
        per_camera = patches.split(self.model.config.grid**2, dim=1)
        return [
            choose_patches(own, count, generator)
            for own, count in zip(per_camera, kept, strict=True)
        ]

    def _relevance_targets(
        self, relevance: Tensor, batch: Batch, keep: list[Tensor] | None
    ) -> tuple[Tensor, Tensor, list[int]]:
        cameras = list(batch.relevant.unbind(dim=1))
        if keep is not None:
            cameras = [mask.gather(1, own) for mask, own in zip(cameras, keep, strict=True)]
        return relevance, torch.cat(cameras, dim=1), [mask.shape[1] for mask in cameras]

    @torch.no_grad()
    def _update_average(self) -> None:
        # The average forgets its random start quickly: early steps use a smaller decay.
        decay = min(self.config.ema_decay, (1 + self.step) / (10 + self.step))
        pairs = zip(self.average.parameters(), self.model.parameters(), strict=True)
        for averaged, current in pairs:
            averaged.lerp_(current, 1 - decay)

    def _resume(self) -> None:
        path = self.out / STATE_NAME
        if not path.exists():
            return
        try:
            state = torch.load(path, map_location=self.device, weights_only=True)
            if list(self.tokenizer.words) != state['words']:
                raise CheckpointError(
                    f'{path} was trained with another vocabulary; choose another folder.'
                )
            self.model.load_state_dict(state['model'])
            self.average.load_state_dict(state['average'])
            self.optimiser.load_state_dict(state['optimiser'])
            # The inputs keep the scale that the weights were trained with.
            self.scale = ProprioceptionScale(**state['scale'])
            self.step = need(state['step'], int, 'step')
        except CheckpointError:
            raise
        except Exception as error:  # torch raises whatever its reader meets in a damaged file
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise CheckpointError(
                f'{path} cannot be resumed: {reason}. Choose another folder, or delete it.'
            ) from error

    def _log(self, losses: Losses) -> None:
        path = self.out / CURVE_NAME
        path.parent.mkdir(parents=True, exist_ok=True)
        is_new = not path.exists()
        with path.open('a', newline='') as file:
            writer = csv.writer(file)
            if is_new:
                writer.writerow([field.name for field in dataclasses.fields(Losses)])
            writer.writerow([f'{value:.6g}' for value in dataclasses.astuple(losses)])


def _parameter_groups(model: ParallelVla, weight_decay: float) -> list[dict[str, object]]:
    """Matrices decay; vectors, embeddings and learned positions do not."""
    decayed, kept = [], []
    for name, parameter in model.named_parameters():
        is_table = any(part in name for part in ('embedding.weight', 'position', 'queries'))
        (kept if parameter.ndim < 2 or is_table else decayed).append(parameter)
    return [
        {'params': decayed, 'weight_decay': weight_decay},
        {'params': kept, 'weight_decay': 0.0},
    ]
