"""`vla-cache eval`: success over tasks and initial states, dense, cached or paired."""

import json
import os
import shlex
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tyro.conf import Positional

from vla_cache_ros import __version__
from vla_cache_ros.cli.checkpoints import CheckpointPolicies, PolicyOptions
from vla_cache_ros.cli.environments import (
    check_simulators,
    environment_factory,
    simulator_versions,
)
from vla_cache_ros.cli.evaluate_terminal import (
    EpisodeProgress,
    plan_of,
    print_plan,
    print_summary,
    say,
    working,
)
from vla_cache_ros.cli.tasks import parse_indices, parse_tasks
from vla_cache_ros.core.errors import ConfigError, EvaluationError
from vla_cache_ros.evaluation.arms import parse_arm, parse_arms
from vla_cache_ros.evaluation.crew import STEP_TIMEOUT_S, Crew, LocalCrew
from vla_cache_ros.evaluation.environment import EnvironmentFactory, PolicyFactory
from vla_cache_ros.evaluation.episode import UNDISTURBED, EpisodeRow, EpisodeSpec
from vla_cache_ros.evaluation.evaluate import evaluate
from vla_cache_ros.evaluation.runner import Job
from vla_cache_ros.evaluation.store import FILE, EpisodeStore
from vla_cache_ros.evaluation.summary import DENSE, summarise

BROUGHT = 'small'
"""Stands for the weights that the package brings."""

RESULT = 'result.json'
STOPPED = 1


@dataclass(frozen=True)
class EvaluateConfig(PolicyOptions):
    """Measure a policy's success in closed loop."""

    tasks: Positional[str] = 'libero_object'
    """Comma-separated: a suite (all of its tasks), libero_object/3, or an instruction's words."""
    policy: str = BROUGHT
    """small: the weights that the package brings; else a checkpoint's folder."""
    cache: str = 'paired'
    """Arms, comma-separated, all on the same episodes: off (dense), safe, paper and other reuse
    presets; off@7 executes 7 actions of each chunk; paired: off,safe."""
    episodes: int | None = None
    """Initial states per task, the first ones; default: all official ones."""
    init_states: str = ''
    """Which initial states instead: 0-9 or 0,3,7."""
    conditions: str = UNDISTURBED
    """What disturbs the episodes, comma-separated; none: nothing."""
    seed: int = 0
    """Seeds whatever the simulator draws."""
    out: Path = Path('runs', 'eval')
    """Folder of the episodes and the report. The same command goes on where it was stopped; more
    tasks, arms, initial states or conditions extend it."""
    workers: int = 0
    """Worker processes of one thread each; 0: one per core, of a cluster one per free CPU."""
    step_timeout_s: float = STEP_TIMEOUT_S
    """A simulator that makes no step for so long is killed, its episode tried again."""
    ray: str = ''
    """Run the episodes on a Ray cluster, with one policy that batches their requests: local (start
    one here), auto (the one of this machine), HOST:PORT."""
    stack: str = 'current'
    """Versions of the simulators: current, published."""
    divergence: bool = True
    """Whether every cached chunk is compared with the dense one of the same observation: a dense
    step more, outside of all times. Do without it where times are to be compared."""
    auto_off: bool = False
    """Let the reuse switch itself off where it does not pay. It judges by times, so that success
    would depend on the machine's load."""
    margin: float = 0.01
    """The loss of success, as a share, that the verdict of non-inferiority tolerates."""
    videos: int = 3
    """Episodes to replay as video in the report, those that diverged most; 0: none."""
    dry_run: bool = False
    """Print what would run and how much of it is done."""
    json: bool = False
    """Print the result as JSON on stdout, nothing else."""


def run_evaluate(
    config: EvaluateConfig,
    make_policy: PolicyFactory | None = None,
    make_env: EnvironmentFactory | None = None,
) -> int:
    """Run what is not finished, store it, and report.

    Args:
        config: What to run.
        make_policy: Builds the policy of a preset; default: from the checkpoint.
        make_env: Builds a suite's simulator; default: by suite and stack.

    Returns:
        0: every episode is judged; 1: it was stopped, or simulator errors remain.

    Raises:
        ConfigError: An option is out of its range, or the folder holds other settings.
        KeyboardInterrupt: SIGINT or SIGTERM; the finished episodes are stored.
        SimulatorError: A simulator or its files are missing.
        UnknownNameError: There is no such task, arm, condition, backend or stack.
    """
    specs = episode_grid(config)
    crew = choose_crew(config)
    simulators = environment_factory(config.stack)
    presets = list(dict.fromkeys(parse_arm(spec.arm).preset for spec in specs))
    settings = describe_run(config, specs)
    if make_env is None:
        check_simulators(dict.fromkeys(spec.name for spec in specs), config.stack)
    if make_policy is None:
        make_policy, weights = _load_policies(config, presets)
        settings |= weights
    if config.dry_run:
        return _dry_run(config, specs, settings)

    # Imported before hours are spent: what the report needs may not be installed.
    from vla_cache_ros.cli.report.evaluation_page import write_evaluation_report
    from vla_cache_ros.cli.report.evaluation_videos import record_worst

    fingerprints = {preset: str(settings.get(f'weights.{preset}', '')) for preset in presets}
    job = Job(make_policy, make_env or simulators, config.divergence)
    with _terminable():
        run = _run(config, job, specs, crew, settings, fingerprints)
        if config.videos and config.divergence:
            with working('playing the episodes again that diverged most'):
                record_worst(config.out, run.rows, job, config.videos)
        page = write_evaluation_report(
            config.out, run.rows, run.settings, command=shlex.join(sys.argv), margin=config.margin
        )
    return _report(config, run, page)


@dataclass(frozen=True)
class _Run:
    """What a run left behind.

    Attributes:
        rows: Of the episodes asked for; all of them unless it was stopped.
        settings: Of the folder.
        attempts: Episodes of the folder whose simulator failed, each time counted.
        stopped: Why it was stopped; empty where it was not.
    """

    rows: list[EpisodeRow]
    settings: Mapping[str, Any]
    attempts: int
    stopped: str = ''


def _run(
    config: EvaluateConfig,
    job: Job,
    specs: Sequence[EpisodeSpec],
    crew: Crew,
    settings: Mapping[str, Any],
    fingerprints: Mapping[str, str],
) -> _Run:
    """Run what is not finished, under a progress bar."""
    stopped = ''
    with EpisodeStore.open(config.out, settings) as store:
        try:
            with EpisodeProgress(specs, store.finished(), config.json) as progress:
                rows = evaluate(
                    job, specs, crew, store, fingerprints=fingerprints, on_row=progress.show
                )
        except EvaluationError as error:
            rows, stopped = store.rows(specs), str(error)
        except KeyboardInterrupt:
            done = len(store.finished().intersection(specs))
            say(f'{done} of {len(specs)} episodes are in {config.out}; the same command goes on.')
            raise
        if (served := getattr(crew, 'statistics', None)) is not None and not config.json:
            lost = len(getattr(crew, 'reruns', ()))
            say(f'policy server: {served}; {lost} episodes lost their process and ran again.')
        return _Run(rows, store.settings, len(store.attempts()), stopped)


def episode_grid(config: EvaluateConfig) -> list[EpisodeSpec]:
    """Every episode that the configuration names."""
    from vla_cache_sim.suites import find_suite

    arms = parse_arms(config.cache)
    conditions = _parse_conditions(config.conditions)
    return [
        EpisodeSpec(name.suite, name.task, init_state, arm, config.seed, condition)
        for name in dict.fromkeys(parse_tasks(config.tasks))
        for init_state in _init_states(config, find_suite(name.suite).init_states)
        for condition in conditions
        for arm in arms
    ]


def choose_crew(config: EvaluateConfig) -> Crew:
    """Who runs the episodes: this machine, or a cluster."""
    if config.ray:
        from vla_cache_models.batching import act_together
        from vla_cache_ros.evaluation.ray_crew import RayCrew

        return RayCrew(
            config.ray,
            config.workers,
            config.step_timeout_s,
            act_together=act_together,
            gpus=1 if config.device.startswith('cuda') else 0,
        )
    return LocalCrew(config.workers or os.cpu_count() or 1, config.step_timeout_s)


def describe_run(config: EvaluateConfig, specs: Sequence[EpisodeSpec]) -> dict[str, Any]:
    """The settings that every episode of a folder shares, the weights excepted.

    Raises:
        SimulatorError: A simulator's own Python environment is not set up.
    """
    suites = dict.fromkeys(spec.suite for spec in specs)
    versions = simulator_versions(suites, config.stack)
    return {
        'version': __version__,
        'stack': config.stack,
        'divergence': config.divergence,
        'batched': bool(config.ray),
        **{f'packages.{package}': version for package, version in versions.items()},
    }


def _init_states(config: EvaluateConfig, available: int) -> list[int]:
    if config.episodes is None:
        return parse_indices(config.init_states or f'0-{available - 1}', available)
    if config.init_states:
        raise ConfigError('--episodes takes the first initial states; give it or --init-states.')
    if not 1 <= config.episodes <= available:
        raise ConfigError(
            f'--episodes is {config.episodes}; valid: 1..{available}, the initial states that '
            'a task has.'
        )
    return list(range(config.episodes))


def _parse_conditions(text: str) -> list[str]:
    names = list(dict.fromkeys(part.strip() for part in text.split(',') if part.strip()))
    if not names:
        raise ConfigError(
            f'no condition was named; {UNDISTURBED} stands for undisturbed episodes.'
        )
    if names != [UNDISTURBED]:
        from vla_cache_sim.conditions import find_condition

        for name in names:
            find_condition(name)
    return names


def _load_policies(
    config: EvaluateConfig, presets: Sequence[str]
) -> tuple[PolicyFactory, dict[str, Any]]:
    """The factory, and the settings that name its weights and how they are run."""
    if config.policy != BROUGHT:
        if config.checkpoint is not None:
            raise ConfigError(
                '--policy and --checkpoint name the same thing; give one of the two.'
            )
        config = replace(config, checkpoint=Path(config.policy))
    chosen = CheckpointPolicies.chosen(
        config, next((preset for preset in presets if preset != DENSE), DENSE)
    )
    policies = replace(chosen, auto_off=config.auto_off)
    for preset in presets:
        policies.prepare(preset)
    names = ('dtype', 'device', 'backend', 'precision', 'unnorm_key', 'embodiment', 'auto_off')
    return policies, {
        **{name: getattr(policies, name) for name in names},
        **{f'weights.{preset}': policies.fingerprint(preset) for preset in presets},
    }


@contextmanager
def _terminable() -> Iterator[None]:
    """Have SIGTERM end the run as Ctrl-C does."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _dry_run(
    config: EvaluateConfig, specs: Sequence[EpisodeSpec], settings: Mapping[str, Any]
) -> int:
    """Print the episodes by task, condition and arm, and how many are done."""
    finished: set[EpisodeSpec] = set()
    if (config.out / FILE).exists():
        with EpisodeStore.read(config.out) as store:
            store.check(settings)
            finished = store.finished()
    plan = plan_of(specs, finished)
    if config.json:
        print(json.dumps({'settings': dict(settings), 'plan': plan}, indent=2))
    else:
        print_plan(plan)
    return 0


def _report(config: EvaluateConfig, run: _Run, page: Path) -> int:
    """Write and print the result; returns the exit code."""
    summary = summarise(run.rows, config.margin)
    document = {
        **summary.as_dict(),
        'failed_attempts': run.attempts,
        'stopped': run.stopped,
        'settings': dict(run.settings),
        'report': str(page),
    }
    text = json.dumps(document, indent=2)
    (config.out / RESULT).write_text(text + '\n', encoding='utf-8')
    if config.json:
        print(text)
    else:
        print_summary(summary, run.attempts, page)
    if run.stopped:
        say(f'vla-cache: stopped: {run.stopped}')
    return STOPPED if run.stopped or summary.failures else 0
