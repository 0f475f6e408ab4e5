"""Runs the episodes that a store does not hold yet.

todo = asked for - finished, arms of one initial state next to one another
row  = crew(todo), stored at once; a simulator's error is tried again when the rest is done
"""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from vla_cache_ros.core.errors import ConfigError, EvaluationError
from vla_cache_ros.evaluation.arms import parse_arm
from vla_cache_ros.evaluation.crew import Crew
from vla_cache_ros.evaluation.episode import EpisodeRow, EpisodeSpec
from vla_cache_ros.evaluation.runner import Job
from vla_cache_ros.evaluation.store import EpisodeStore

MAX_SIMULATOR_ERRORS_IN_A_ROW = 3
"""After so many different episodes the simulator is taken for broken."""

MAX_ATTEMPTS = 2
"""How often one run tries an episode whose simulator fails."""


def evaluate(
    job: Job,
    specs: Sequence[EpisodeSpec],
    crew: Crew,
    store: EpisodeStore,
    *,
    fingerprints: Mapping[str, str] | None = None,
    on_row: Callable[[EpisodeRow], None] | None = None,
    max_attempts: int = MAX_ATTEMPTS,
) -> list[EpisodeRow]:
    """Run what is not finished yet, and return all that was asked for.

    Args:
        job: Policies and simulators.
        specs: Which episodes.
        crew: Who runs them.
        store: Holds the finished episodes and takes the new ones, each as soon as it is there.
        fingerprints: Preset -> a name of its weights and settings, kept with each row.
        on_row: Called with each new row, when it is stored; a failed attempt is a row, too.
        max_attempts: How often to try an episode whose simulator fails.

    Returns:
        One row per spec, in the order of `specs`; outcome 'simulator_error' where no attempt, now
        or earlier, gave a judgement.

    Raises:
        ConfigError: An arm is unknown, max_attempts is below 1, or the policy or the simulator
            refuses what it is asked for.
        EvaluationError: The policy raised, the simulator failed in several different episodes in
            a row, or a row could not be stored.
    """
    for spec in specs:
        parse_arm(spec.arm)
    if max_attempts < 1:
        raise ConfigError(f'max_attempts is {max_attempts}; valid: at least 1.')
    names = fingerprints or {}

    def keep(row: EpisodeRow) -> None:
        row = replace(row, fingerprint=names.get(parse_arm(row.spec.arm).preset, ''))
        store.add(row)
        if on_row is not None:
            on_row(row)

    finished = store.finished()
    todo = [spec for spec in running_order(specs) if spec not in finished]
    failed: dict[EpisodeSpec, EpisodeRow] = {}
    for attempt in range(max_attempts):
        failed = _run(job, todo, crew, keep, may_stop=attempt == 0)
        todo = list(failed)
        if not todo:
            break
    known = failed | {row.spec: row for row in store.rows(specs)}
    return [known[spec] for spec in specs]


def _run(
    job: Job,
    specs: Sequence[EpisodeSpec],
    crew: Crew,
    keep: Callable[[EpisodeRow], None],
    may_stop: bool,
) -> dict[EpisodeSpec, EpisodeRow]:
    """Try every episode once; returns those whose simulator failed."""
    failed: dict[EpisodeSpec, EpisodeRow] = {}
    in_a_row = 0
    with contextlib.closing(crew.run(job, specs)) as rows:
        for row in rows:
            keep(row)
            in_a_row = 0 if row.judged else in_a_row + 1
            if not row.judged:
                failed[row.spec] = row
            # Those tried again have failed before: in a row they say nothing about the others.
            if may_stop and in_a_row == MAX_SIMULATOR_ERRORS_IN_A_ROW:
                raise EvaluationError(
                    f'the simulator failed in {in_a_row} different episodes in a row, last in '
                    f'{row.spec.name}, initial state {row.spec.init_state}: {row.note}'
                )
    return failed


def running_order(specs: Sequence[EpisodeSpec]) -> list[EpisodeSpec]:
    """Each once: the tasks and arms as they were named, the arms of a start side by side.

    Pairs are then finished together, on a machine in the same state, and a worker seldom has to
    build another simulator.
    """
    tasks = {name: i for i, name in enumerate(dict.fromkeys(spec.name for spec in specs))}
    arms = {arm: i for i, arm in enumerate(dict.fromkeys(spec.arm for spec in specs))}

    def key(spec: EpisodeSpec) -> tuple[int, int, int, str, int]:
        return tasks[spec.name], spec.init_state, spec.seed, spec.condition, arms[spec.arm]

    return sorted(dict.fromkeys(specs), key=key)
