"""`vla-cache demos`: record the scripted experts' demonstrations as a LeRobot dataset."""

import json
import signal
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vla_cache_ros.cli.progress import Progress
from vla_cache_ros.cli.tasks import parse_tasks

if TYPE_CHECKING:
    from vla_cache_sim.demonstrations.recorder import (
        Outcome,
        RecordingConfig,
        RecordingResult,
        Tally,
    )

Tallies = Mapping[tuple[str, int], 'Tally']


@dataclass(frozen=True)
class DemosConfig:
    """Options of `vla-cache demos`.

    Attributes:
        output: Dataset folder. An existing one is gone on with: episodes in it count.
        tasks: Comma-separated, e.g. 'libero_object/0,libero_spatial/3' or 'libero_object/*'.
        episodes: Successful episodes wanted of each task.
        seed: Seeds starts and noise; none of them is an official evaluation state.
        processes: Simulators at once; each takes one core and about 1 GB of memory.
        spread: How far the random starts deviate from the official region, 1 = as trained.
        noise: Largest standard deviation of the noise on executed actions, in action units.
        json: Print the counts as JSON at the end.
    """

    output: Path = Path('data/demos')
    tasks: str = 'libero_object/0,libero_object/1,libero_object/2,libero_object/3,libero_object/4'
    episodes: int = 45
    seed: int = 0
    processes: int = 2
    spread: float = 1.0
    noise: float = 0.35
    json: bool = False


def run_demos(config: DemosConfig) -> int:
    """Record until every task has its episodes.

    Returns:
        0; 1 when a task was given up; 130 when interrupted (run again to go on).

    Raises:
        UnknownNameError: Unknown suite or task.
        DatasetError: The folder holds another kind of dataset.
        SimulatorError: LIBERO is not installed, or a process died.
    """
    from vla_cache_sim.demonstrations.drivers import NoiseConfig
    from vla_cache_sim.demonstrations.recorder import RecordingConfig, record_demonstrations

    recording = RecordingConfig(
        output=config.output,
        tasks=tuple((name.suite, name.task) for name in parse_tasks(config.tasks)),
        episodes_per_task=config.episodes,
        seed=config.seed,
        processes=config.processes,
        spread=config.spread,
        noise=NoiseConfig(max_std=config.noise),
    )
    # A terminated recording ends as an interrupted one does: running episodes are stored.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with Progress('episodes', _episodes_wanted(recording), quiet=config.json) as progress:

        def report(outcome: 'Outcome', tallies: Tallies) -> None:
            if outcome.stored:
                progress.advance(_note(outcome, tallies))

        result = record_demonstrations(recording, report=report)
    summary = _summary(recording, result)
    print(json.dumps(summary, indent=2) if config.json else _describe(summary))
    if result.interrupted:
        return 130
    return 1 if summary['given_up'] else 0


def _episodes_wanted(recording: 'RecordingConfig') -> int:
    """Episodes that the folder lacks."""
    from vla_cache_sim.demonstrations.recorder import count_stored

    return sum(
        max(recording.episodes_per_task - stored, 0) for stored in count_stored(recording).values()
    )


def _summary(recording: 'RecordingConfig', result: 'RecordingResult') -> dict[str, Any]:
    from vla_cache_ros.dataset import DemonstrationDataset

    dataset = DemonstrationDataset.open(recording.output)
    files = (file for file in recording.output.rglob('*') if file.is_file())
    return {
        'output': str(recording.output),
        'episodes': len(dataset),
        'frames': dataset.num_frames,
        'size_mb': round(sum(file.stat().st_size for file in files) / 1e6, 1),
        'tasks': {f'{s}/{t}': asdict(tally) for (s, t), tally in result.tallies.items()},
        'given_up': [f'{suite}/{task}' for suite, task in result.given_up(recording)],
        'interrupted': result.interrupted,
    }


def _describe(summary: dict[str, Any]) -> str:
    lines = [
        f'{name}: {tally["stored"]} episodes stored; expert succeeded in {tally["successes"]} of '
        f'{tally["attempts"]} attempts of this run'
        for name, tally in summary['tasks'].items()
    ]
    lines.append(
        f'{summary["output"]}: {summary["episodes"]} episodes, {summary["frames"]} frames, '
        f'{summary["size_mb"]} MB'
    )
    if summary['given_up']:
        lines.append(f'given up, failed too often in a row: {", ".join(summary["given_up"])}')
    if summary['interrupted']:
        lines.append('interrupted; the same command goes on where this one stopped')
    return '\n'.join(lines)


def _note(outcome: 'Outcome', tallies: Tallies) -> str:
    suite, task = outcome.attempt.suite, outcome.attempt.task
    tally = tallies[suite, task]
    verdict = 'success' if outcome.success else 'failure'
    return (
        f'{suite}/{task} attempt {outcome.attempt.number}: {verdict} after '
        f'{outcome.control_steps} steps; stored {tally.stored}, '
        f'{tally.successes} of {tally.attempts} succeeded'
    )
