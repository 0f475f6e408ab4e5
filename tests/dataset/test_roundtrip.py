"""What is written is what is read; what is damaged is named."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest

from vla_cache_ros.core.errors import DatasetError, UnknownNameError
from vla_cache_ros.dataset import (
    DatasetSpec,
    DatasetWriter,
    DemonstrationDataset,
    Episode,
    merge_datasets,
)
from vla_cache_ros.dataset.episode import FIELD_OF_FEATURE
from vla_cache_ros.dataset.layout import (
    EPISODES_PATH,
    INFO_PATH,
    STATS_PATH,
    data_file,
    video_file,
)

MakeEpisode = Callable[..., Episode]


@pytest.fixture
def root(tmp_path: Path, spec: DatasetSpec, make_episode: MakeEpisode) -> Path:
    """A dataset of three episodes of two tasks."""
    writer = DatasetWriter(tmp_path / 'demos', spec)
    for seed, instruction in enumerate(('lift the can', 'lift the box', 'lift the can')):
        writer.append(make_episode(frames=4 + seed, seed=seed, instruction=instruction))
    return writer.root


def assert_equal(left: Episode, right: Episode) -> None:
    for field in FIELD_OF_FEATURE.values():
        np.testing.assert_array_equal(getattr(left, field), getattr(right, field), err_msg=field)
        assert getattr(left, field).dtype == getattr(right, field).dtype
    assert left.info == right.info


def test_arrays_return_exactly_and_images_closely(root: Path, make_episode: MakeEpisode) -> None:
    dataset = DemonstrationDataset.open(root)
    assert len(dataset) == 3
    assert dataset.num_frames == 4 + 5 + 6
    for seed, episode in enumerate(dataset.load_episodes()):
        written = make_episode(4 + seed, seed, ('lift the can', 'lift the box')[seed % 2])
        assert_equal(written, episode)
        for camera, video in written.images.items():
            error = video.astype(int) - episode.images[camera]
            assert episode.images[camera].shape == video.shape
            assert np.abs(error).mean() < 3


def test_meta_files_hold_lerobots_totals(root: Path) -> None:
    info = json.loads((root / INFO_PATH).read_text())
    assert info['codebase_version'] == 'v2.1'
    assert (info['total_episodes'], info['total_frames'], info['total_tasks']) == (3, 15, 2)
    assert (info['total_videos'], info['splits'], info['fps']) == (6, {'train': '0:3'}, 10)
    episodes = [json.loads(line) for line in (root / EPISODES_PATH).read_text().splitlines()]
    assert [episode['length'] for episode in episodes] == [4, 5, 6]
    stats = [json.loads(line) for line in (root / STATS_PATH).read_text().splitlines()]
    assert np.shape(stats[0]['stats']['observation.images.wrist']['mean']) == (3, 1, 1)
    assert np.shape(stats[2]['stats']['action']['std']) == (7,)


def test_global_index_runs_on_over_episodes(root: Path) -> None:
    import pyarrow.parquet as pq

    tables = [pq.read_table(data_file(root, index)) for index in range(3)]
    assert np.concatenate([table['index'] for table in tables]).tolist() == list(range(15))
    assert [set(table['task_index'].to_pylist()) for table in tables] == [{0}, {1}, {0}]
    np.testing.assert_allclose(np.diff(tables[2]['timestamp']), 0.1, atol=1e-6)


def test_select_and_cameras(root: Path) -> None:
    dataset = DemonstrationDataset.open(root)
    assert len(dataset.select(suite='fake', tasks=[1], successful=True)) == 3
    assert not dataset.select(sources=['dagger-1'])
    entries = dataset.select()[1:2]
    (episode,) = dataset.load_episodes(entries, cameras=['wrist'])
    assert list(episode.images) == ['wrist']
    with pytest.raises(UnknownNameError, match='agentview, wrist'):
        next(dataset.load_episodes(cameras=['left']))


def test_writer_goes_on_where_it_stopped(
    root: Path, spec: DatasetSpec, make_episode: MakeEpisode
) -> None:
    assert DatasetWriter(root, spec).append(make_episode(seed=9)) == 3
    assert len(DemonstrationDataset.open(root)) == 4
    with pytest.raises(DatasetError, match='another folder'):
        DatasetWriter(root, replace(spec, chunk_size=4))


def test_killed_writer_leaves_no_half_episode(
    root: Path, spec: DatasetSpec, make_episode: MakeEpisode
) -> None:
    """Killed just before the announcing line: files and a statistics line are there already."""
    shutil.copy(data_file(root, 0), data_file(root, 3))
    shutil.copy(video_file(root, 0, 'wrist'), video_file(root, 3, 'wrist'))
    with (root / STATS_PATH).open('a') as file:
        file.write('{"episode_index":3,"stats":{}}\n{"episode_in')
    with (root / EPISODES_PATH).open('a') as file:
        file.write('{"episode_index":3,"tas')
    assert len(DemonstrationDataset.open(root)) == 3
    written = make_episode(frames=7, seed=5)
    assert DatasetWriter(root, spec).append(written) == 3
    dataset = DemonstrationDataset.open(root)
    assert_equal(written, dataset.load(dataset.entries[3]))
    stats = [json.loads(line) for line in (root / STATS_PATH).read_text().splitlines()]
    assert [line['episode_index'] for line in stats] == [0, 1, 2, 3]
    assert stats[3]['stats']
    assert not list(root.glob('.new-*'))


def test_failed_append_leaves_nothing(
    root: Path, spec: DatasetSpec, make_episode: MakeEpisode
) -> None:
    writer = DatasetWriter(root, spec)
    good = make_episode()
    bad_state = good.state.copy()
    bad_state[2, 0] = np.nan
    for episode, message in (
        (replace(good, state=bad_state), 'observation.state holds NaN'),
        (replace(good, action=good.action[:, :6]), r'valid: float32 \[5, 7\]'),
        (replace(good, images={'wrist': good.images['wrist']}), 'agentview'),
        (replace(good, info=replace(good.info, instruction=' ')), 'instruction'),
    ):
        with pytest.raises(DatasetError, match=message):
            writer.append(episode)
    assert len(DemonstrationDataset.open(root)) == 3
    assert not list(root.glob('.new-*'))


def _append_three(root: Path, spec: DatasetSpec, episode: Episode) -> None:
    writer = DatasetWriter(root, spec)
    for attempt in range(3):
        writer.append(replace(episode, info=replace(episode.info, attempt=attempt)))


def test_parallel_writers_lose_nothing(
    tmp_path: Path, spec: DatasetSpec, make_episode: MakeEpisode
) -> None:
    context = get_context('spawn')
    processes = [
        context.Process(target=_append_three, args=(tmp_path, spec, make_episode(4, seed)))
        for seed in (1, 2)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    dataset = DemonstrationDataset.open(tmp_path)
    origins = [(entry.info.seed, entry.info.attempt) for entry in dataset.entries]
    assert sorted(origins) == [(seed, attempt) for seed in (1, 2) for attempt in range(3)]
    for episode in dataset.load_episodes():
        np.testing.assert_array_equal(episode.action, make_episode(4, episode.info.seed).action)


def test_merge_can_be_repeated(
    root: Path, tmp_path: Path, spec: DatasetSpec, make_episode: MakeEpisode
) -> None:
    other = DatasetWriter(tmp_path / 'other', spec)
    other.append(make_episode(6, seed=7, instruction='lift the mug'))
    target = tmp_path / 'merged'
    assert merge_datasets([root], target) == 3
    assert merge_datasets([root, other.root], target) == 1
    merged = DemonstrationDataset.open(target)
    originals = [
        *DemonstrationDataset.open(root).load_episodes(),
        *DemonstrationDataset.open(other.root).load_episodes(),
    ]
    for left, right in zip(originals, merged.load_episodes(), strict=True):
        assert_equal(left, right)
        np.testing.assert_array_equal(left.images['wrist'], right.images['wrist'])
    assert json.loads((target / INFO_PATH).read_text())['total_tasks'] == 3
    with pytest.raises(DatasetError, match='both source and target'):
        merge_datasets([root], root)


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_truncated_files_are_named(root: Path) -> None:
    dataset = DemonstrationDataset.open(root)
    _cut(data_file(root, 0))
    _cut(video_file(root, 1, 'wrist'))
    with pytest.raises(DatasetError, match='episode_000000.parquet'):
        dataset.load(dataset.entries[0])
    with pytest.raises(DatasetError, match=r'wrist/episode_000001.mp4'):
        dataset.load(dataset.entries[1])
    video_file(root, 2, 'agentview').unlink()
    with pytest.raises(DatasetError, match='episode_000002.mp4 is missing'):
        DemonstrationDataset.open(root)


def test_video_of_another_episode_is_refused(root: Path) -> None:
    shutil.copy(video_file(root, 0, 'wrist'), video_file(root, 2, 'wrist'))
    dataset = DemonstrationDataset.open(root)
    with pytest.raises(DatasetError, match='holds 4 frames, its episode 6'):
        dataset.load(dataset.entries[2])


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        (None, 'no dataset at'),
        ('{', 'cannot read'),
        ('{"codebase_version": "v3.0"}', "layout 'v3.0'"),
        ('{"codebase_version": "v2.1", "features": {}}', 'without the expert labels'),
    ],
)
def test_unusable_info_is_named(root: Path, content: str | None, message: str) -> None:
    path = root / INFO_PATH
    path.unlink() if content is None else path.write_text(content)
    with pytest.raises(DatasetError, match=message):
        DemonstrationDataset.open(root)


def test_damaged_index_is_named(root: Path) -> None:
    path = root / EPISODES_PATH
    lines = path.read_text().splitlines(keepends=True)
    path.write_text(''.join(lines[1:]))
    with pytest.raises(DatasetError, match='damaged'):
        DemonstrationDataset.open(root)
