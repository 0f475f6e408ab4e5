import sqlite3
import subprocess
import sys
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vla_cache_ros.core.errors import ConfigError, EvaluationError
from vla_cache_ros.evaluation.episode import Divergence, EpisodeRow, EpisodeSpec, PolicyStep
from vla_cache_ros.evaluation.store import FILE, EpisodeStore

SPEC = EpisodeSpec('libero_object', 3, 7, 'safe', 0, 'shake')
STEP = PolicyStep(2, 'cached', 1.5, {'vision': 1.0}, 0.5, 0.4, '', 'age', Divergence(0.1, 0.2, 1))
ROW = EpisodeRow(SPEC, 'success', 90, 2.5, 0.1, (STEP, replace(STEP, divergence=None)), 'abc')

numbers = st.floats(allow_nan=False)
counts = st.integers(0, 2**40)
steps = st.builds(
    PolicyStep,
    st.none() | counts,
    st.sampled_from(['dense', 'keyframe', 'cached']),
    numbers,
    st.dictionaries(st.text(), numbers, max_size=3),
    numbers,
    numbers,
    st.text(),
    st.text(),
    st.none() | st.builds(Divergence, numbers, numbers, counts),
)
specs = st.builds(EpisodeSpec, st.text(), counts, counts, st.text(), counts, st.text())
rows = st.builds(
    EpisodeRow,
    specs,
    st.sampled_from(['success', 'failure']),
    counts,
    numbers,
    numbers,
    st.lists(steps, max_size=3).map(tuple),
    st.text(),
    st.text(),
)


@settings(max_examples=20)
@given(st.lists(rows, max_size=4, unique_by=lambda row: row.spec))
def test_rows_come_back_as_they_were(tmp_path_factory, written):
    folder = tmp_path_factory.mktemp('store')
    with EpisodeStore.open(folder) as store:
        for row in written:
            store.add(row)
        assert store.finished() == {row.spec for row in written}
    with EpisodeStore.read(folder) as store:
        assert store.rows() == written
        backwards = [row.spec for row in reversed(written)]
        assert [row.spec for row in store.rows(backwards)] == backwards


def test_an_episode_is_never_stored_twice(tmp_path):
    with EpisodeStore.open(tmp_path) as store:
        store.add(ROW)
        with pytest.raises(EvaluationError, match='UNIQUE'):
            store.add(replace(ROW, outcome='failure'))
        assert store.rows() == [ROW]


def test_a_simulators_error_is_an_attempt_and_no_episode(tmp_path):
    with EpisodeStore.open(tmp_path) as store:
        failed = EpisodeRow(SPEC, 'simulator_error', note='it \udc80 died')
        store.add(failed)
        store.add(failed)
        assert store.finished() == set()
        assert [(a.spec, a.note) for a in store.attempts()] == [(SPEC, 'it ? died')] * 2
        store.add(ROW)
        assert store.finished() == {SPEC}


def test_an_episode_cut_short_while_it_is_stored_leaves_nothing(tmp_path, monkeypatch):
    def values(step):
        raise KeyboardInterrupt

    with EpisodeStore.open(tmp_path) as store:
        with monkeypatch.context() as patch:
            patch.setattr('vla_cache_ros.evaluation.store._step_values', values)
            with pytest.raises(KeyboardInterrupt):
                store.add(ROW)
        assert store.rows() == []
        store.add(ROW)
        assert store.rows() == [ROW]


def test_a_full_disk_loses_nothing_that_was_stored(tmp_path):
    with EpisodeStore.open(tmp_path) as store:
        store.add(ROW)
        (pages,) = store._db.execute('PRAGMA page_count').fetchone()
        store._db.execute(f'PRAGMA max_page_count = {pages}')
        long = replace(ROW, spec=replace(SPEC, task=4), trace=(STEP,) * 1000)
        with pytest.raises(EvaluationError, match=r'disk is full.*are safe.*same command again'):
            store.add(long)
        assert store.rows() == [ROW]
    with EpisodeStore.open(tmp_path) as store:
        store.add(long)
        assert store.rows() == [ROW, long]


def test_other_settings_are_refused_one_by_one_and_new_ones_are_added(tmp_path):
    asked = {'dtype': 'float32', 'weights.safe': 'aaa', 'divergence': True}
    with EpisodeStore.open(tmp_path, asked) as store:
        store.add(ROW)
    with pytest.raises(ConfigError) as refused:
        EpisodeStore.open(tmp_path, asked | {'dtype': 'bfloat16', 'weights.safe': 'bbb'})
    message = str(refused.value)
    assert "\n  dtype: 'float32' there, 'bfloat16' now" in message
    assert "\n  weights.safe: 'aaa' there, 'bbb' now" in message
    assert 'divergence' not in message
    with EpisodeStore.open(tmp_path, {'dtype': 'float32', 'weights.paper': 'ccc'}) as store:
        assert store.settings == asked | {'weights.paper': 'ccc'}
        assert store.rows() == [ROW]


def test_two_writers_are_refused_while_readers_are_not(tmp_path):
    with EpisodeStore.open(tmp_path) as store:
        store.add(ROW)
        code = (
            'import sys; from pathlib import Path\n'
            'from vla_cache_ros.evaluation.store import EpisodeStore\n'
            'folder = Path(sys.argv[1])\n'
            'print(len(EpisodeStore.read(folder).rows()))\n'
            'EpisodeStore.open(folder)\n'
        )
        other = subprocess.run(
            [sys.executable, '-c', code, str(tmp_path)], capture_output=True, text=True
        )
        assert other.stdout == '1\n'
        assert 'ConfigError: another process (pid ' in other.stderr
    EpisodeStore.open(tmp_path).close()


@pytest.mark.parametrize('content', [b'not a database' * 100, b'SQLite format 3\0' + b'\7' * 4096])
def test_a_damaged_file_is_refused(tmp_path, content):
    (tmp_path / FILE).write_bytes(content)
    for use in (EpisodeStore.open, EpisodeStore.read):
        with pytest.raises(ConfigError, match='damaged'):
            use(tmp_path)


def test_a_torn_page_is_noticed(tmp_path):
    with EpisodeStore.open(tmp_path) as store:
        for task in range(300):
            store.add(replace(ROW, spec=replace(SPEC, task=task)))
    path = tmp_path / FILE
    content = bytearray(path.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 4096] = b'\xff' * 4096
    path.write_bytes(content)
    with pytest.raises(ConfigError, match='damaged'):
        EpisodeStore.open(tmp_path)


def test_foreign_files_and_folders_are_refused(tmp_path):
    foreign = sqlite3.connect(tmp_path / FILE)
    foreign.execute('CREATE TABLE things (name)')
    foreign.close()
    with pytest.raises(ConfigError, match='another program'):
        EpisodeStore.open(tmp_path)
    with pytest.raises(ConfigError, match=r'holds no episodes\.sqlite; vla-cache eval'):
        EpisodeStore.read(tmp_path / 'nothing')
    with pytest.raises(ConfigError, match='cannot write'):
        EpisodeStore.open(tmp_path / FILE)
    assert not (tmp_path / 'nothing').exists()


def test_a_later_layout_is_refused(tmp_path):
    with EpisodeStore.open(tmp_path) as store:
        store._db.execute('PRAGMA user_version = 99')
    with pytest.raises(ConfigError, match='layout 99'):
        EpisodeStore.read(tmp_path)


def test_anyone_can_read_it_with_sqlite(tmp_path):
    with EpisodeStore.open(tmp_path) as store:
        store.add(ROW)
    database = sqlite3.connect(tmp_path / FILE)
    query = (
        'SELECT arm, avg(step_ms), json_extract(stage_ms, "$.vision"), max(divergence_max) '
        'FROM episodes JOIN policy_steps ON episode = episodes.id GROUP BY arm'
    )
    assert database.execute(query).fetchall() == [('safe', 1.5, 1.0, 0.2)]
    database.close()
