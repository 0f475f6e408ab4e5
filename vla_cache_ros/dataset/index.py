"""The JSON files under meta/: read with clear errors, appended a line at a time."""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from vla_cache_ros.core.errors import DatasetError
from vla_cache_ros.core.json_text import need, parse_object
from vla_cache_ros.dataset.episode import EpisodeInfo
from vla_cache_ros.dataset.layout import EPISODES_PATH, INFO_PATH, TASKS_PATH, DatasetSpec

_OWN_FIELDS: dict[str, type] = {
    field.name: type(field.default) for field in fields(EpisodeInfo) if field.name != 'instruction'
}
"""Name of what episodes.jsonl says of an episode's origin -> its type."""


@dataclass(frozen=True)
class EpisodeEntry:
    """One line of episodes.jsonl: number of the episode, stored frames, origin."""

    episode_index: int
    length: int
    info: EpisodeInfo


def read_spec(root: Path) -> DatasetSpec:
    """Read info.json.

    Raises:
        DatasetError: It is missing, broken, or of another layout.
    """
    path = root / INFO_PATH
    try:
        info = parse_object(path.read_bytes())
    except FileNotFoundError as error:
        raise DatasetError(
            f'no dataset at {root}: {INFO_PATH} is missing. Record one with `vla-cache demos`.'
        ) from error
    except (OSError, ValueError) as error:
        raise DatasetError(f'cannot read {path}: {error}; copy the dataset again.') from error
    return DatasetSpec.from_info(info, root)


def read_tasks(root: Path) -> list[str]:
    """Instructions in the order of their task_index.

    Raises:
        DatasetError: A line is broken.
    """
    path = root / TASKS_PATH
    try:
        return [need(entry['task'], str, 'task') for entry in read_lines(path)]
    except (KeyError, ValueError) as error:
        raise DatasetError(f'{path} is damaged: {error!r}; copy the dataset again.') from error


def read_entries(root: Path) -> list[EpisodeEntry]:
    """Episodes in the order of their index.

    Raises:
        DatasetError: A line other than an unfinished last one is broken.
    """
    entries = []
    for number, line in enumerate(read_lines(root / EPISODES_PATH)):
        try:
            if line['episode_index'] != number:
                raise ValueError(f'episode_index {line["episode_index"]} at line {number + 1}')
            own = {name: need(line[name], kind, name) for name, kind in _own_fields(line)}
            info = EpisodeInfo(instruction=need(line['tasks'][0], str, 'task'), **own)
            entries.append(EpisodeEntry(number, need(line['length'], int, 'length'), info))
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise DatasetError(
                f'{root / EPISODES_PATH} is damaged: {error!r}; copy the dataset again.'
            ) from error
    return entries


def _own_fields(line: dict[str, Any]) -> list[tuple[str, type]]:
    return [(name, kind) for name, kind in _OWN_FIELDS.items() if name in line]


def episode_line(entry: EpisodeEntry) -> dict[str, Any]:
    """What episodes.jsonl holds about an episode."""
    base = {'episode_index': entry.episode_index, 'tasks': [entry.info.instruction]}
    return base | {'length': entry.length} | entry.info.as_dict()


def append_line(path: Path, content: dict[str, Any]) -> None:
    """Append one JSON line, after cutting off what a killed writer left of an unfinished one."""
    line = json.dumps(content, separators=(',', ':')) + '\n'
    with path.open('a+b') as file:
        file.seek(0)
        whole = file.read()
        file.truncate(whole.rfind(b'\n') + 1)
        file.write(line.encode())
        file.flush()
        os.fsync(file.fileno())


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Replace a JSON file in one step."""
    temporary = path.with_suffix('.tmp')
    temporary.write_text(json.dumps(content, indent=2) + '\n', encoding='utf-8')
    temporary.replace(path)


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the lines of a .jsonl file; a last line without its line end is not there yet."""
    if not path.exists():
        return
    content = path.read_bytes()
    for number, line in enumerate(content[: content.rfind(b'\n') + 1].splitlines(), start=1):
        try:
            yield parse_object(line)
        except ValueError as error:
            raise DatasetError(
                f'{path}, line {number}, is not JSON ({error}); copy the dataset again.'
            ) from error
