"""The JSON files under meta/: read with clear errors, appended a line at a time."""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from vla_cache_ros.core.errors import DatasetError
from vla_cache_ros.dataset.episode import EpisodeInfo
from vla_cache_ros.dataset.layout import EPISODES_PATH, INFO_PATH, TASKS_PATH, DatasetSpec

_OWN_FIELDS = {field.name for field in fields(EpisodeInfo)} - {'instruction'}


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
        info = json.loads(path.read_text(encoding='utf-8'))
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
    return [entry['task'] for entry in read_lines(root / TASKS_PATH)]


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
            own = {name: line[name] for name in _OWN_FIELDS if name in line}
            info = EpisodeInfo(instruction=line['tasks'][0], **own)
            entries.append(EpisodeEntry(number, int(line['length']), info))
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise DatasetError(
                f'{root / EPISODES_PATH} is damaged: {error!r}; copy the dataset again.'
            ) from error
    return entries


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
    text = path.read_text(encoding='utf-8')
    for number, line in enumerate(text[: text.rfind('\n') + 1].splitlines(), start=1):
        try:
            yield json.loads(line)
        except ValueError as error:
            raise DatasetError(
                f'{path}, line {number}, is not JSON ({error}); copy the dataset again.'
            ) from error
