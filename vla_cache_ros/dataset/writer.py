"""Append episodes to a dataset folder; any number of processes may do so at once.

An episode's files are written under temporary names, then, under the folder's lock, renamed into
place and announced by one line in episodes.jsonl. That line makes the episode exist: whatever a
killed process left before it is overwritten by the next episode and read by nobody.
"""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from vla_cache_ros.core.errors import DatasetError
from vla_cache_ros.dataset.episode import FIELD_OF_FEATURE, Episode, EpisodeInfo
from vla_cache_ros.dataset.index import (
    EpisodeEntry,
    append_line,
    episode_line,
    read_entries,
    read_lines,
    read_spec,
    read_tasks,
    write_json,
)
from vla_cache_ros.dataset.layout import (
    EPISODES_PATH,
    INFO_PATH,
    STATS_PATH,
    TASKS_PATH,
    DatasetSpec,
    data_file,
    video_file,
    video_key,
)
from vla_cache_ros.dataset.video import encode_video


class DatasetWriter:
    """Writes one dataset folder."""

    def __init__(self, root: Path, spec: DatasetSpec) -> None:
        """Create the folder, or go on with the one that is there.

        Args:
            root: The dataset's folder.
            spec: What its episodes have in common.

        Raises:
            DatasetError: The folder holds a dataset with another specification.
        """
        self.root = Path(root)
        self.spec = spec
        (self.root / 'meta').mkdir(parents=True, exist_ok=True)
        with self._lock():
            if (self.root / INFO_PATH).exists():
                found = read_spec(self.root)
                if found != spec:
                    raise DatasetError(
                        f'{self.root} holds a dataset recorded as {found}; asked for {spec}. '
                        'Choose another folder, or the same settings.'
                    )
            self._write_info(read_entries(self.root))

    def append(self, episode: Episode) -> int:
        """Store one episode, wholly or not at all.

        Returns:
            Its index.

        Raises:
            DatasetError: The episode does not fit the dataset's specification.
        """
        episode.check(self.spec)
        with self._scratch() as scratch:
            for camera, frames in episode.images.items():
                encode_video(scratch / f'{camera}.mp4', frames, self.spec.fps)
            return self._commit(
                episode.info, _own_columns(episode, self.spec), _stats_of(episode), scratch
            )

    def adopt(self, source: Path, entry: EpisodeEntry, stats: dict[str, Any]) -> int:
        """Store an episode of another dataset of the same specification; no new encoding.

        Args:
            source: The other dataset's folder.
            entry: The episode.
            stats: Its line of episodes_stats.jsonl.

        Returns:
            Its index in this dataset.
        """
        with self._scratch() as scratch:
            for camera in self.spec.cameras:
                video = video_file(source, entry.episode_index, camera)
                shutil.copyfile(video, scratch / f'{camera}.mp4')
            table = pq.read_table(data_file(source, entry.episode_index))
            columns = table.select(list(self.spec.array_shapes))
            return self._commit(entry.info, columns, stats, scratch)

    def _commit(
        self, info: EpisodeInfo, columns: pa.Table, stats: dict[str, Any], scratch: Path
    ) -> int:
        """Number, name and announce an episode whose videos lie in the scratch folder."""
        with self._lock():
            entries = read_entries(self.root)
            entry = EpisodeEntry(len(entries), columns.num_rows, info)
            first_frame = sum(other.length for other in entries)
            table = _number(
                columns, self.spec.fps, entry, first_frame, self._task_index(info.instruction)
            )
            pq.write_table(
                table, scratch / 'data.parquet', compression='zstd', write_statistics=False
            )
            _move(scratch / 'data.parquet', data_file(self.root, entry.episode_index))
            for camera in self.spec.cameras:
                target = video_file(self.root, entry.episode_index, camera)
                _move(scratch / f'{camera}.mp4', target)
            self._append_stats(entry, stats)
            append_line(self.root / EPISODES_PATH, episode_line(entry))
            self._write_info([*entries, entry])
            return entry.episode_index

    def _task_index(self, instruction: str) -> int:
        tasks = read_tasks(self.root)
        if instruction not in tasks:
            append_line(self.root / TASKS_PATH, {'task_index': len(tasks), 'task': instruction})
            tasks.append(instruction)
        return tasks.index(instruction)

    def _append_stats(self, entry: EpisodeEntry, stats: dict[str, Any]) -> None:
        """Append a line of statistics; a killed writer may have left one too many before it."""
        path = self.root / STATS_PATH
        if len(list(read_lines(path))) > entry.episode_index:
            keep = path.read_bytes().splitlines(keepends=True)[: entry.episode_index]
            path.write_bytes(b''.join(keep))
        append_line(path, {'episode_index': entry.episode_index, 'stats': stats})

    def _write_info(self, entries: list[EpisodeEntry]) -> None:
        frames = sum(entry.length for entry in entries)
        info = self.spec.info(len(entries), frames, len(read_tasks(self.root)))
        write_json(self.root / INFO_PATH, info)

    @contextmanager
    def _scratch(self) -> Iterator[Path]:
        """A folder on the dataset's own file system, gone afterwards."""
        scratch = Path(tempfile.mkdtemp(prefix='.new-', dir=self.root))
        try:
            yield scratch
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    @contextmanager
    def _lock(self) -> Iterator[None]:
        """Hold the folder's lock; the kernel frees it when a process dies."""
        with (self.root / 'meta' / '.lock').open('w') as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def _own_columns(episode: Episode, spec: DatasetSpec) -> pa.Table:
    """The episode's features, one row per frame."""
    columns: dict[str, pa.Array] = {}
    for feature in spec.array_shapes:
        value: NDArray[Any] = getattr(episode, FIELD_OF_FEATURE[feature])
        columns[feature] = _column(value if value.ndim <= 3 else value.reshape(len(value), -1))
    return pa.table(columns)


def _number(
    columns: pa.Table, fps: int, entry: EpisodeEntry, first_frame: int, task_index: int
) -> pa.Table:
    """Append LeRobot's own columns, which depend on the episode's place in the dataset."""
    frames = np.arange(columns.num_rows)
    for name, value in (
        ('timestamp', (frames / fps).astype(np.float32)),
        ('frame_index', frames),
        ('episode_index', np.full_like(frames, entry.episode_index)),
        ('index', frames + first_frame),
        ('task_index', np.full_like(frames, task_index)),
    ):
        columns = columns.append_column(name, pa.array(value))
    return columns


def _column(rows: NDArray[Any]) -> pa.Array:
    """Lists of fixed size, nested as deep as a row has dimensions."""
    column = pa.array(rows.reshape(-1))
    for size in reversed(rows.shape[1:]):
        column = pa.FixedSizeListArray.from_arrays(column, size)
    return column


def _stats(value: NDArray[Any]) -> dict[str, Any]:
    """LeRobot's statistics of one feature, per element."""
    values = {
        'min': value.min(0),
        'max': value.max(0),
        'mean': value.mean(0),
        'std': value.std(0),
    }
    rounded = {name: [float(f'{v:.6g}') for v in row] for name, row in values.items()}
    return rounded | {'count': [len(value)]}


def _stats_of(episode: Episode) -> dict[str, Any]:
    stats = {video_key(name): _image_stats(video) for name, video in episode.images.items()}
    for feature in ('observation.state', 'action', 'action.executed'):
        stats[feature] = _stats(getattr(episode, FIELD_OF_FEATURE[feature]))
    return stats


def _image_stats(video: NDArray[np.uint8]) -> dict[str, Any]:
    """LeRobot's statistics of a camera: per channel, of values in [0, 1], shape [3, 1, 1]."""
    stats = _stats(video.reshape(-1, 3) / 255)
    nested = {name: [[[v]] for v in row] for name, row in stats.items() if name != 'count'}
    return nested | {'count': [len(video)]}


def _move(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    os.replace(source, target)
