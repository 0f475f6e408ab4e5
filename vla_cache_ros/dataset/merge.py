"""Put the episodes of several dataset folders into one, without encoding them anew."""

from collections.abc import Callable, Sequence
from pathlib import Path

from vla_cache_ros.core.errors import DatasetError
from vla_cache_ros.dataset.index import read_entries, read_lines
from vla_cache_ros.dataset.layout import STATS_PATH
from vla_cache_ros.dataset.reader import DemonstrationDataset
from vla_cache_ros.dataset.writer import DatasetWriter


def merge_datasets(
    sources: Sequence[Path], target: Path, progress: Callable[[int], None] | None = None
) -> int:
    """Append the episodes of `sources` to `target`; those already there are left out.

    An episode is known by its origin (suite, task, source, seed, attempt), so that a merge may be
    repeated after an interruption, or when the sources have grown.

    Args:
        sources: Dataset folders of one specification.
        target: Folder to create or to go on with; none of the sources.
        progress: Called with the number of episodes appended so far.

    Returns:
        Episodes appended.

    Raises:
        DatasetError: A source is damaged, or the specifications differ.
    """
    datasets = [DemonstrationDataset.open(source) for source in sources]
    if not datasets:
        raise DatasetError('nothing to merge: name at least one source folder.')
    if Path(target).resolve() in {Path(source).resolve() for source in sources}:
        raise DatasetError(f'{target} is both source and target; choose another target.')
    for dataset in datasets[1:]:
        if dataset.spec != datasets[0].spec:
            raise DatasetError(
                f'{dataset.root} was recorded as {dataset.spec}, {datasets[0].root} as '
                f'{datasets[0].spec}; only datasets of one specification can be merged.'
            )
    writer = DatasetWriter(Path(target), datasets[0].spec)
    known = {entry.info for entry in read_entries(writer.root)}
    appended = 0
    for dataset in datasets:
        stats = [line['stats'] for line in read_lines(dataset.root / STATS_PATH)]
        for entry in dataset.entries:
            if entry.info in known:
                continue
            writer.adopt(dataset.root, entry, stats[entry.episode_index])
            known.add(entry.info)
            appended += 1
            if progress is not None:
                progress(appended)
    return appended
