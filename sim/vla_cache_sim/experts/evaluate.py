"""How often a scripted expert succeeds, from official or random starts.

python -m vla_cache_sim.experts.evaluate --suite libero_object --tasks 0-9 --init-states 10
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import numpy as np

from vla_cache_ros.core.errors import ConfigError, VlaCacheError
from vla_cache_sim.experts.pick_place import Expert, make_expert
from vla_cache_sim.experts.tabletop import TabletopExpert
from vla_cache_sim.libero import LiberoEnv
from vla_cache_sim.maniskill import ManiSkillEnv
from vla_cache_sim.suites import SUITES, find_suite

NOISE_SCALE = np.array([0.3, 0.3, 0.3, 0.1, 0.1, 0.1, 0.0])
"""Standard deviation of the noise on a perturbed action, in action units."""


@dataclass(frozen=True)
class TaskResult:
    """The expert on one task."""

    suite: str
    task: int
    instruction: str
    episodes: int
    successes: int
    mean_steps: float
    failed: tuple[int, ...]
    """Initial states, or seeds of random starts, at which the expert failed."""


def evaluate_task(
    env: LiberoEnv | ManiSkillEnv,
    task: int,
    episodes: int,
    *,
    random_starts: bool,
    perturbed_share: float,
) -> TaskResult:
    """Run the expert on one task.

    Args:
        env: An environment of the task's suite.
        task: Task index.
        episodes: Number of episodes; episode i starts at official state i, or from seed i.
        random_starts: Start at random instead of at official initial states.
        perturbed_share: Share of the steps at which noise is added to the executed action.
    """
    steps, failed = [], []
    for episode in range(episodes):
        rng = np.random.default_rng(episode)
        start = 'random' if random_starts else episode
        env.start(seed=episode, options={'task': task, 'init_state': start})
        expert = _expert_of(env)
        done = success = False
        while not done:
            action = expert.act()
            if rng.random() < perturbed_share:
                action = action + NOISE_SCALE * rng.standard_normal(7)
            _, success, truncated, _ = env.advance(action)
            done = success or truncated
        steps.append(env.elapsed_steps)
        if not success:
            failed.append(episode)
    return TaskResult(
        suite=env.suite.name,
        task=task,
        instruction=env.instruction,
        episodes=episodes,
        successes=episodes - len(failed),
        mean_steps=float(np.mean(steps)),
        failed=tuple(failed),
    )


def _expert_of(env: LiberoEnv | ManiSkillEnv) -> Expert | TabletopExpert:
    return make_expert(env) if isinstance(env, LiberoEnv) else TabletopExpert(env)


def parse_tasks(text: str, tasks: int) -> list[int]:
    """Parse '0-3,7' into [0, 1, 2, 3, 7].

    Raises:
        ConfigError: Not such a list, or an index that the suite does not have.
    """
    indices: list[int] = []
    try:
        for part in text.split(','):
            first, _, last = part.partition('-')
            indices.extend(range(int(first), int(last or first) + 1))
    except ValueError:
        indices = []
    if not indices or not all(0 <= index < tasks for index in indices):
        raise ConfigError(f'tasks are indices in 0..{tasks - 1}, as in "0-3,7"; got {text!r}')
    return indices


def evaluate(arguments: argparse.Namespace) -> Iterator[TaskResult]:
    """Evaluate every requested task in turn."""
    suite = find_suite(arguments.suite)
    tasks = parse_tasks(arguments.tasks or f'0-{suite.tasks - 1}', suite.tasks)
    if arguments.init_states < 1:
        raise ConfigError(f'--init-states must be at least 1, not {arguments.init_states}')
    if suite.simulator != 'libero' and (arguments.random_starts or arguments.perturb):
        raise ConfigError(f'{suite.name} has no random starts, and no noise in its units')
    env_class = LiberoEnv if suite.simulator == 'libero' else ManiSkillEnv
    env = env_class(suite.name, tasks[0])
    for task in tasks:
        yield evaluate_task(
            env,
            task,
            arguments.init_states,
            random_starts=arguments.random_starts,
            perturbed_share=arguments.perturb,
        )
    env.close()


def main(argv: list[str] | None = None) -> int:
    """Command line of this module."""
    parser = argparse.ArgumentParser(description=(__doc__ or '').splitlines()[0])
    parser.add_argument('--suite', default='libero_object', help=', '.join(SUITES))
    parser.add_argument('--tasks', default='', help='indices, e.g. 0-3,7; default: all')
    parser.add_argument('--init-states', type=int, default=10, help='episodes per task')
    parser.add_argument('--random-starts', action='store_true', help='train-time random starts')
    parser.add_argument(
        '--perturb', type=float, default=0.0, metavar='SHARE', help='share of noisy actions, 0..1'
    )
    parser.add_argument('--json', action='store_true', help='results as JSON on stdout')
    arguments = parser.parse_args(argv)
    results: list[TaskResult] = []
    start_s = time.monotonic()
    try:
        for result in evaluate(arguments):
            results.append(result)
            failed = f', failed at {list(result.failed)}' if result.failed else ''
            sys.stderr.write(
                f'[{time.monotonic() - start_s:5.0f} s] {result.suite} task {result.task}: '
                f'{result.successes}/{result.episodes}, {result.mean_steps:.0f} steps{failed}  '
                f'"{result.instruction}"\n'
            )
            sys.stderr.flush()
    except VlaCacheError as error:
        sys.stderr.write(f'error: {error}\n')
        return 2
    if arguments.json:
        sys.stdout.write(json.dumps([asdict(result) for result in results], indent=2) + '\n')
    return 0


if __name__ == '__main__':
    sys.exit(main())
