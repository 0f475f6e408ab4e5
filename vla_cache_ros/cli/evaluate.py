"""`vla-cache eval`: success over tasks and initial states, dense, cached or paired."""

import importlib
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
from vla_cache_ros.cli.environments import environment_factory, simulator_versions
from vla_cache_ros.cli.progress import Progress
from vla_cache_ros.cli.tasks import parse_indices, parse_tasks
from vla_cache_ros.core.errors import ConfigError, EvaluationError
from vla_cache_ros.evaluation.arms import parse_arm, parse_arms
from vla_cache_ros.evaluation.crew import STEP_TIMEOUT_S, Crew, LocalCrew
from vla_cache_ros.evaluation.environment import EnvironmentFactory, PolicyFactory
from vla_cache_ros.evaluation.episode import UNDISTURBED, EpisodeRow, EpisodeSpec
from vla_cache_ros.evaluation.evaluate import evaluate, running_order
from vla_cache_ros.evaluation.runner import Job
from vla_cache_ros.evaluation.store import FILE, EpisodeStore
from vla_cache_ros.evaluation.summary import ALL, DENSE, EvaluationSummary, summarise

BROUGHT = 'small'
"""Stands for the weights that the package brings."""

RESULT = 'result.json'
STOPPED = 1
REPORT_MODULE = 'vla_cache_ros.cli.report.evaluation_page'
"""Imported by name: it needs what is only installed with the report's requirements."""


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
        UnknownNameError: There is no such task, arm, condition, backend or stack.
    """
    specs = episode_grid(config)
    crew = choose_crew(config)
    simulators = environment_factory(config.stack)
    presets = list(dict.fromkeys(parse_arm(spec.arm).preset for spec in specs))
    settings = describe_run(config, specs)
    if make_policy is None:
        make_policy, weights = _load_policies(config, presets)
        settings |= weights
    if config.dry_run:
        return _print_plan(config, specs, settings)

    # What the report needs must be there before hours are spent, not after.
    importlib.import_module(REPORT_MODULE)
    fingerprints = {preset: str(settings.get(f'weights.{preset}', '')) for preset in presets}
    job = Job(make_policy, make_env or simulators, config.divergence)
    stopped = ''
    with EpisodeStore.open(config.out, settings) as store, _terminable():
        try:
            with _Monitor(specs, store.finished(), config.json) as monitor:
                rows = evaluate(
                    job, specs, crew, store, fingerprints=fingerprints, on_row=monitor.show
                )
        except EvaluationError as error:
            rows, stopped = store.rows(specs), str(error)
        except KeyboardInterrupt:
            done = len(store.finished().intersection(specs))
            _say(f'{done} of {len(specs)} episodes are in {config.out}; the same command goes on.')
            raise
        attempts = len(store.attempts())
        settings = store.settings
    if (served := getattr(crew, 'statistics', None)) is not None and not config.json:
        _say(f'policy server: {served}.')
    return _report(config, rows, settings, attempts, stopped)


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
    """The settings that every episode of a folder shares, the weights excepted."""
    suites = dict.fromkeys(spec.suite for spec in specs)
    versions = simulator_versions(suites, config.stack)
    return {
        'version': __version__,
        'stack': config.stack,
        'divergence': config.divergence,
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


class _Monitor:
    """The progress bar, with the success of each arm in this run so far."""

    def __init__(
        self, specs: Sequence[EpisodeSpec], finished: set[EpisodeSpec], quiet: bool
    ) -> None:
        todo = set(specs) - finished
        self._bar = Progress('episodes', total=len(todo), quiet=quiet)
        self._trials = dict.fromkeys((spec.arm for spec in specs), 0)
        self._successes = dict(self._trials)
        if len(todo) < len(specs) and not quiet:
            _say(f'{len(specs) - len(todo)} of {len(specs)} episodes are done already.')

    def __enter__(self) -> '_Monitor':
        self._bar.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._bar.__exit__(*error)

    def show(self, row: EpisodeRow) -> None:
        """Count a row; a simulator's error, which is tried again, is no progress."""
        if not row.judged:
            _say(f'{row.spec.name}, initial state {row.spec.init_state}: {row.note}')
            return
        self._trials[row.spec.arm] += 1
        self._successes[row.spec.arm] += row.success
        rates = (f'{arm} {self._successes[arm]}/{n}' for arm, n in self._trials.items())
        self._bar.advance(note=', '.join(rates))


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


def _print_plan(
    config: EvaluateConfig, specs: Sequence[EpisodeSpec], settings: Mapping[str, Any]
) -> int:
    """What --dry-run prints: the episodes by task, arm and condition, and how many are done."""
    finished: set[EpisodeSpec] = set()
    if (config.out / FILE).exists():
        with EpisodeStore.read(config.out) as store:
            store.check(settings)
            finished = store.finished()
    counts: dict[tuple[str, str, str], list[int]] = {}
    for spec in running_order(specs):
        count = counts.setdefault((str(spec.name), spec.condition, spec.arm), [0, 0])
        count[0] += 1
        count[1] += spec in finished
    plan = [
        {'task': task, 'condition': condition, 'arm': arm, 'episodes': total, 'done': done}
        for (task, condition, arm), (total, done) in counts.items()
    ]
    if config.json:
        print(json.dumps({'settings': dict(settings), 'plan': plan}, indent=2))
        return 0
    from rich.table import Table

    table = Table('task', 'condition', 'arm', 'episodes', 'done')
    for line in plan:
        table.add_row(*map(str, line.values()))
    _console().print(table)
    done = len(finished.intersection(specs))
    _console().print(f'{len(specs)} episodes, {done} done; nothing was run.', highlight=False)
    return 0


def _report(
    config: EvaluateConfig,
    rows: Sequence[EpisodeRow],
    settings: Mapping[str, Any],
    attempts: int,
    stopped: str,
) -> int:
    """Write and print the result; returns the exit code."""
    summary = summarise(rows, config.margin)
    document = {
        **summary.as_dict(),
        'failed_attempts': attempts,
        'stopped': stopped,
        'settings': dict(settings),
    }
    text = json.dumps(document, indent=2)
    (config.out / RESULT).write_text(text + '\n', encoding='utf-8')
    page = importlib.import_module(REPORT_MODULE).write_evaluation_report(
        config.out, rows, settings, command=shlex.join(sys.argv), margin=config.margin
    )
    if config.json:
        print(text)
    else:
        _print_summary(summary, attempts)
        _console().print(f'report: {page}', markup=False, highlight=False, soft_wrap=True)
    if stopped:
        _say(f'vla-cache: stopped: {stopped}')
    return STOPPED if stopped or summary.failures else 0


def _print_summary(summary: EvaluationSummary, attempts: int) -> None:
    from rich.table import Table

    table = Table('condition', 'arm', 'success [95 %]', 'policy step, ms', 'vision work saved')
    for arm in summary.arms:
        step_ms, saved = arm.step_ms.get(ALL), arm.vision_work_saved
        table.add_row(
            arm.condition,
            arm.arm,
            str(arm.success),
            f'{step_ms.p50:.1f}' if step_ms else '-',
            f'{saved:.0%}' if saved is not None else '-',
        )
    console = _console()
    console.print(table)
    for pair in summary.paired:
        console.print(f'{pair.condition}: {pair.in_words()}', markup=False, highlight=False)
    if attempts:
        console.print(
            f'The simulator failed in {attempts} attempts; {len(summary.failures)} episodes are '
            'without a judgement, and in no rate.',
            highlight=False,
        )


def _console() -> Any:
    from rich.console import Console

    return Console()


def _say(text: str) -> None:
    """Print on stderr, beside the bar."""
    from rich.console import Console

    Console(stderr=True).print(text, markup=False, highlight=False, soft_wrap=True)
