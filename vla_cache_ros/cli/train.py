"""`vla-cache train`: behaviour cloning, then DAgger beside it.

DAgger records while the trainer trains: a second process drives the simulator with the newest
checkpoint, the expert labels every state that it visits, and the trainer finds the new episodes in
the dataset folder. One command, stopped and resumed at will.
"""

import json
import multiprocessing
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vla_cache_ros.cli.progress import Progress
from vla_cache_ros.cli.tasks import parse_tasks
from vla_cache_ros.core.errors import ConfigError
from vla_cache_ros.core.types import Observation

if TYPE_CHECKING:
    from vla_cache_models.small.training.trainer import Losses, Trainer

REPORT_EVERY_STEPS = 20
CHECKPOINT_POLL_S = 5.0


@dataclass(frozen=True)
class TrainConfig:
    """Options of `vla-cache train`.

    Attributes:
        dataset: Folder that `vla-cache demos` recorded.
        out: Folder of the run: checkpoint, trainer state, loss curve. An existing one is resumed.
        start: Checkpoint of the small VLA to begin from, e.g. to teach it more tasks; default:
            random weights. A resumed run goes on from its own state.
        steps: Optimiser steps in all.
        batch_size: Samples per step.
        learning_rate: Peak learning rate.
        decay_steps: Steps of the final learning-rate decay.
        spatial_weight: How often a libero_spatial task is drawn, relative to any other: a bowl's
            rim takes more practice than a can.
        attention: 'camera_isolated', 'vision_isolated' or 'all', see TokenLayout.
        seed: Seeds weights and batches.
        device: 'cpu' or 'cuda'.
        threads: CPU threads; 0 leaves it to torch.
        dagger_episodes: Episodes per task to record with the policy at the wheel; 0: no DAgger.
        dagger_tasks: Their tasks, comma-separated; empty: those of the dataset.
        dagger_processes: Simulators that record them.
        dagger_after_steps: Optimiser steps before the first of them.
        dagger_source: Name of these episodes in the dataset.
        json: Print the outcome as JSON at the end.
    """

    dataset: Path = Path('data/demos')
    out: Path = Path('runs/train')
    start: Path | None = None
    steps: int = 4000
    batch_size: int = 32
    learning_rate: float = 1e-3
    decay_steps: int = 800
    spatial_weight: float = 1.0
    attention: str = 'camera_isolated'
    seed: int = 0
    device: str = 'cpu'
    threads: int = 0
    dagger_episodes: int = 0
    dagger_tasks: str = ''
    dagger_processes: int = 1
    dagger_after_steps: int = 600
    dagger_source: str = 'dagger'
    json: bool = False


def run_train(config: TrainConfig) -> int:
    """Train to the end, or resume a run that was stopped.

    Returns:
        0; 130 when interrupted (run again to go on).

    Raises:
        DatasetError: The dataset cannot be read.
        CheckpointError: The folder holds a run of another architecture.
    """
    # A terminated training ends as an interrupted one does: with its state saved.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    trainer = build_trainer(config)
    remaining = max(0, config.steps - trainer.step)
    with (
        _dagger_recorder(config),
        Progress('steps', remaining // REPORT_EVERY_STEPS, quiet=config.json) as progress,
    ):
        interrupted = _train(trainer, lambda losses: progress.advance(_note(losses, trainer)))
    curve = trainer.out / 'loss.png'
    draw_curve(trainer.out / 'loss.csv', curve)
    summary = {
        'step': trainer.step,
        'episodes': trainer.store.episodes,
        'frames': len(trainer.store),
        'checkpoint': str(trainer.out),
        'curve': str(curve),
        'interrupted': interrupted,
    }
    print(
        json.dumps(summary, indent=2)
        if config.json
        else f'step {trainer.step}: checkpoint in {trainer.out}, loss curve in {curve}'
    )
    return 130 if interrupted else 0


def build_trainer(config: TrainConfig) -> 'Trainer':
    """The trainer that the options describe."""
    from vla_cache_models.small.checkpoint import load_checkpoint
    from vla_cache_models.small.config import LIBERO_WORDS, TEXT_TOKENS, small_vla_config
    from vla_cache_models.small.tokenizer import WordTokenizer, split_words
    from vla_cache_models.small.training import trainer as training
    from vla_cache_ros.dataset.reader import DemonstrationDataset

    dataset = DemonstrationDataset.open(config.dataset)
    said = {word for entry in dataset.entries for word in split_words(entry.info.instruction)}
    tokenizer = WordTokenizer((*LIBERO_WORDS, *sorted(said - set(LIBERO_WORDS))), TEXT_TOKENS)
    model_config = small_vla_config(tokenizer.vocabulary_size, config.attention)
    start = None
    if config.start is not None:
        start = load_checkpoint(config.start)
        tokenizer, model_config = start.tokenizer, start.model.config
        if unknown := said - set(tokenizer.words):
            raise ConfigError(
                f'{config.start} does not know the words {", ".join(sorted(unknown))}; train '
                'without --start, or on tasks whose words it knows.'
            )
    return training.Trainer(
        model_config,
        tokenizer,
        config.dataset,
        config.out,
        training.TrainConfig(
            steps=config.steps,
            batch_size=config.batch_size,
            learning_rate=config.learning_rate,
            decay_steps=config.decay_steps,
            suite_weights=(('libero_spatial', config.spatial_weight),),
            seed=config.seed,
            device=config.device,
            threads=config.threads,
        ),
        start,
    )


def draw_curve(csv_path: Path, png_path: Path) -> None:
    """Draw the loss curve of a run."""
    import matplotlib as mpl

    mpl.use('Agg')
    import matplotlib.pyplot as plt

    if not csv_path.exists():
        return
    rows = np.atleast_1d(np.genfromtxt(csv_path, delimiter=',', names=True))
    figure, axes = plt.subplots(1, 3, figsize=(12, 3.2), layout='constrained')
    labels = {
        'action': 'action L1 (weighted)',
        'relevance': 'text-to-vision cross entropy, nats',
        'position_cm': 'target and goal position error, cm',
    }
    for axis, (name, label) in zip(axes, labels.items(), strict=True):
        axis.plot(rows['step'], rows[name], linewidth=1)
        axis.set(xlabel='optimiser step', ylabel=label)
        axis.grid(alpha=0.3)
    figure.savefig(png_path, dpi=110)
    plt.close(figure)


def _train(trainer: 'Trainer', on_losses: Callable[['Losses'], None]) -> bool:
    """Train to the end; returns whether it was interrupted."""
    try:
        trainer.run(on_losses, REPORT_EVERY_STEPS)
    except KeyboardInterrupt:
        return True
    return False


def _note(losses: 'Losses', trainer: 'Trainer') -> str:
    return (
        f'step {losses.step}, action {losses.action:.3f}, relevance {losses.relevance:.2f}, '
        f'position {losses.position_cm:.1f} cm, {trainer.store.episodes} episodes'
    )


@contextmanager
def _dagger_recorder(config: TrainConfig) -> Iterator[None]:
    """A process that records DAgger episodes as long as the block lasts."""
    if not config.dagger_episodes:
        yield
        return
    tasks = _dagger_tasks(config)
    context = multiprocessing.get_context('spawn')
    process = context.Process(target=_record_dagger, args=(config, tasks))
    process.start()
    try:
        yield
    finally:
        process.terminate()
        process.join()


def _dagger_tasks(config: TrainConfig) -> tuple[tuple[str, int], ...]:
    from vla_cache_ros.dataset.reader import DemonstrationDataset

    if config.dagger_tasks:
        return tuple((name.suite, name.task) for name in parse_tasks(config.dagger_tasks))
    entries = DemonstrationDataset.open(config.dataset).entries
    tasks = tuple(sorted({(entry.info.suite, entry.info.task) for entry in entries}))
    if not tasks:
        raise ConfigError(f'{config.dataset} holds no episode to take DAgger tasks from.')
    return tasks


def _record_dagger(config: TrainConfig, tasks: tuple[tuple[str, int], ...]) -> None:
    """Wait for the first checkpoint worth driving with, then record."""
    from vla_cache_sim.demonstrations.recorder import RecordingConfig, record_demonstrations

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        while trained_steps(config.out) < config.dagger_after_steps:
            time.sleep(CHECKPOINT_POLL_S)
        record_demonstrations(
            RecordingConfig(
                output=config.dataset,
                tasks=tasks,
                episodes_per_task=config.dagger_episodes,
                seed=config.seed + 1,
                processes=config.dagger_processes,
                source=config.dagger_source,
                keep_failures=True,
            ),
            driver_factory=NewestPolicyDriver(config.out),
        )
    except KeyboardInterrupt:
        return


def _end_with_parent() -> None:
    """Interrupt this process when the trainer was killed and could not end it."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        signal.raise_signal(signal.SIGTERM)


def trained_steps(run: Path) -> int:
    """Optimiser steps behind the newest loss entry of a run; 0 where there is no checkpoint."""
    curve = run / 'loss.csv'
    if not curve.exists() or not (run / 'model.safetensors').exists():
        return 0
    last = curve.read_text().strip().rsplit('\n', 1)[-1].split(',')[0]
    return int(last) if last.isdigit() else 0


class NewestPolicyDriver:
    """Makes, in each recording process, a DAgger driver that follows a run's checkpoint."""

    def __init__(self, run: Path) -> None:
        """Remember the folder; loading happens in the process that drives."""
        self.run = run

    def __call__(self) -> '_FollowingDriver':
        """Make the driver."""
        import torch

        torch.set_num_threads(1)
        return _FollowingDriver(self.run)


class _FollowingDriver:
    """A DAgger driver whose policy is loaded anew when the checkpoint changed."""

    def __init__(self, run: Path) -> None:
        self._weights = run / 'model.safetensors'
        self._loaded_ns = -1
        self._driver: Any = None

    def begin(self, rng: np.random.Generator) -> None:
        """Load the newest policy and begin an episode."""
        from vla_cache_models.policy import load_policy
        from vla_cache_sim.demonstrations.drivers import DaggerDriver

        changed_ns = self._weights.stat().st_mtime_ns
        if changed_ns != self._loaded_ns:
            policy = load_policy(self._weights.parent, cache='off')
            self._driver = DaggerDriver(policy, replan_steps=policy.execute_steps)
            self._loaded_ns = changed_ns
        self._driver.begin(rng)

    def drive(
        self, label: NDArray[np.float32], observe: Callable[[], Observation]
    ) -> tuple[NDArray[np.float32], bool]:
        """See `vla_cache_sim.demonstrations.drivers.Driver`."""
        return self._driver.drive(label, observe)
