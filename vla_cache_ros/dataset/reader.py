"""Read a dataset folder into memory, episode by episode."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from vla_cache_ros.core.errors import DatasetError, UnknownNameError
from vla_cache_ros.dataset.episode import FIELD_OF_FEATURE, Episode
from vla_cache_ros.dataset.index import EpisodeEntry, read_entries, read_spec
from vla_cache_ros.dataset.layout import DatasetSpec, data_file, video_file
from vla_cache_ros.dataset.video import decode_video


@dataclass(frozen=True)
class DemonstrationDataset:
    """A dataset folder, its index read, its episodes still on disk.

        >>> dataset = DemonstrationDataset.open('data/demos')
        >>> for episode in dataset.load_episodes(suite='libero_object', tasks=[0, 3]):
        ...     episode.images['wrist'], episode.label_chunk

    Attributes:
        root: The folder.
        spec: What the episodes have in common.
        entries: One entry per episode, in the order of their index.
    """

    root: Path
    spec: DatasetSpec
    entries: tuple[EpisodeEntry, ...]

    @classmethod
    def open(cls, path: Path | str) -> 'DemonstrationDataset':
        """Read the index and check that every file it names is there.

        Files may still be appended by a running recorder: episodes that come later are not seen.

        Raises:
            DatasetError: No dataset, another layout, damaged index, or missing files.
        """
        root = Path(path)
        dataset = cls(root, read_spec(root), tuple(read_entries(root)))
        for entry in dataset.entries:
            files = [data_file(root, entry.episode_index)]
            files += [video_file(root, entry.episode_index, c) for c in dataset.spec.cameras]
            for file in files:
                if not file.is_file() or not file.stat().st_size:
                    raise DatasetError(
                        f'{file} is missing or empty, though the index of {root} names it; copy '
                        'the dataset again.'
                    )
        return dataset

    def __len__(self) -> int:
        """Number of episodes."""
        return len(self.entries)

    @property
    def num_frames(self) -> int:
        """Stored frames of all episodes together."""
        return sum(entry.length for entry in self.entries)

    def select(
        self,
        suite: str | None = None,
        tasks: Sequence[int] | None = None,
        sources: Sequence[str] | None = None,
        successful: bool | None = None,
    ) -> list[EpisodeEntry]:
        """Entries of the episodes that fit every given condition (None: any)."""
        return [
            entry
            for entry in self.entries
            if (suite is None or entry.info.suite == suite)
            and (tasks is None or entry.info.task in tasks)
            and (sources is None or entry.info.source in sources)
            and (successful is None or entry.info.success == successful)
        ]

    def load_episodes(
        self, entries: Iterable[EpisodeEntry] | None = None, cameras: Sequence[str] | None = None
    ) -> Iterator[Episode]:
        """Decode episodes one after the other, in the calling thread.

        Args:
            entries: Which ones, e.g. from `select`; None: all.
            cameras: Which cameras to decode; None: all.

        Yields:
            Episodes in the order of `entries`.

        Raises:
            UnknownNameError: A camera is not in the dataset.
            DatasetError: A file is truncated or does not fit the index.
        """
        for entry in self.entries if entries is None else entries:
            yield self.load(entry, cameras)

    def load(self, entry: EpisodeEntry, cameras: Sequence[str] | None = None) -> Episode:
        """Decode one episode; see `load_episodes`."""
        cameras = self.spec.cameras if cameras is None else cameras
        for camera in cameras:
            if camera not in self.spec.cameras:
                raise UnknownNameError('camera', camera, self.spec.cameras)
        table = self._read_table(entry)
        try:
            arrays: dict[str, Any] = {
                FIELD_OF_FEATURE[feature]: _array(table[feature], (entry.length, *shape), dtype)
                for feature, (shape, dtype) in self.spec.array_shapes.items()
            }
        except (TypeError, ValueError, pa.ArrowException) as error:
            raise DatasetError(
                f'{data_file(self.root, entry.episode_index)} holds a column of another kind '
                f'({error}). Copy the dataset again.'
            ) from error
        arrays['policy_drives'] = arrays['policy_drives'].reshape(-1)
        images = {
            camera: decode_video(video_file(self.root, entry.episode_index, camera), entry.length)
            for camera in cameras
        }
        return Episode(images=images, **arrays, info=entry.info)

    def _read_table(self, entry: EpisodeEntry) -> pa.Table:
        path = data_file(self.root, entry.episode_index)
        try:
            table = pq.read_table(path)
            missing = set(self.spec.array_shapes) - set(table.column_names)
        except (OSError, UnicodeDecodeError, pa.ArrowException) as error:
            raise DatasetError(
                f'cannot read {path}: {error}; it is missing or truncated. Copy the dataset again.'
            ) from error
        missing = set(self.spec.array_shapes) - set(table.column_names)
        if missing or table.num_rows != entry.length:
            raise DatasetError(
                f'{path} has {table.num_rows} rows, its index {entry.length}; missing columns: '
                f'{sorted(missing) or "none"}. Copy the dataset again.'
            )
        return table


def _array(column: pa.ChunkedArray, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    values: Any = column.combine_chunks()
    while pa.types.is_fixed_size_list(values.type) or pa.types.is_list(values.type):
        values = values.flatten()
    return values.to_numpy(zero_copy_only=False).astype(dtype, copy=False).reshape(shape)
