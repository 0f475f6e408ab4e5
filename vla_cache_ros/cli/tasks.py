"""A task as people name it: 'libero_object/2', 'libero_object:2', or its instruction."""

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from vla_cache_ros.core.errors import ConfigError, UnknownNameError
from vla_cache_ros.evaluation.episode import TaskName

if TYPE_CHECKING:
    from vla_cache_sim.suites import Suite


def parse_task(text: str) -> TaskName:
    """Find the task that a person means.

    Args:
        text: '<suite>/<index>', '<suite>:<index>', '<suite>' alone (its first task), or the
            instruction's words in any case.

    Raises:
        UnknownNameError: No task has that name.
        SimulatorError: An instruction was given and LIBERO is not installed.
    """
    from vla_cache_sim.suites import SUITES

    match = re.fullmatch(r'\s*(\w+?)\s*(?:[/:]\s*(\d+))?\s*', text)
    if match and match[1] in SUITES:
        index, tasks = int(match[2] or 0), SUITES[match[1]].tasks
        if index >= tasks:
            raise UnknownNameError(f'task of {match[1]}', index, [f'0..{tasks - 1}'])
        return TaskName(match[1], index)
    if match and match[2] is not None:
        raise UnknownNameError('suite', match[1], SUITES, 'Name a task as libero_object/0.')
    return _find_instruction(text)


def parse_tasks(text: str) -> list[TaskName]:
    """Parse a comma-separated list of tasks; a suite's name stands for all of its tasks.

    Raises:
        ConfigError: There is no task in it.
        UnknownNameError: There is no such suite or task.
    """
    from vla_cache_sim.suites import SUITES, find_suite

    tasks: list[TaskName] = []
    for part in (part.strip() for part in text.split(',')):
        if part in SUITES or part.endswith(('/*', ':*')):
            suite = find_suite(re.sub(r'\s*[/:]\*$', '', part))
            tasks += [TaskName(suite.name, i) for i in range(suite.tasks)]
        elif part:
            tasks.append(parse_task(part))
    if not tasks:
        raise ConfigError(f'no task in {text!r}; name some as libero_object/0,libero_spatial/3.')
    return tasks


def parse_indices(text: str, limit: int) -> list[int]:
    """Parse '0-9', '0,3,7' or '0-4,10' into ascending, distinct indices below `limit`.

    Raises:
        ConfigError: It cannot be read, or an index is out of range.
    """
    indices: set[int] = set()
    for part in text.split(','):
        match = re.fullmatch(r'\s*(\d+)\s*(?:-\s*(\d+))?\s*', part)
        if match is None:
            raise ConfigError(f'cannot read indices from {text!r}; valid: 0-9 or 0,3,7 or 0-4,10.')
        indices.update(range(int(match[1]), int(match[2] or match[1]) + 1))
    if not indices or max(indices) >= limit:
        raise ConfigError(f'indices {text!r} leave the valid range 0..{limit - 1}.')
    return sorted(indices)


def _find_instruction(text: str) -> TaskName:
    from vla_cache_sim.suites import SUITES

    wanted = _words(text)
    instructions = {
        TaskName(suite.name, index): instruction
        for suite in SUITES.values()
        for index, instruction in enumerate(_instructions(suite))
    }
    for task, instruction in instructions.items():
        if _words(instruction) == wanted:
            return task
    # A part of an instruction will do where only one task holds it.
    partial = [task for task, said in instructions.items() if wanted and wanted in _words(said)]
    if len(partial) == 1:
        return partial[0]
    raise UnknownNameError('task', text, _listing(instructions.items(), partial))


def _instructions(suite: 'Suite') -> Sequence[str]:
    from vla_cache_sim.libero_assets import find_task

    return suite.instructions or [
        find_task(suite.name, index).instruction for index in range(suite.tasks)
    ]


def _listing(
    instructions: Iterable[tuple[TaskName, str]], partial: list[TaskName]
) -> Iterable[str]:
    return (
        f'\n  {task} "{said}"' for task, said in instructions if not partial or task in partial
    )


def _words(text: str) -> str:
    return ' '.join(re.findall(r'[a-z0-9]+', text.lower()))
