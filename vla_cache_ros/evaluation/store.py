"""Every finished episode, durable, never twice: one SQLite file, `episodes.sqlite`.

Anyone may read it, while a run writes to it too:

    import pandas, sqlite3
    db = sqlite3.connect('DIR/episodes.sqlite')
    pandas.read_sql('SELECT arm, avg(outcome = "success") FROM episodes GROUP BY arm', db)

settings      name, value (JSON): what every episode was run with; weights.<preset> is the hash
              of weights and reuse settings, packages.<name> a simulator's version.
episodes      id; suite, task, init_state, arm, seed, condition (unique together); outcome
              ('success' or 'failure'); steps; wall_s; overhead_ms (per control step);
              fingerprint; note; finished_utc. EpisodeRow explains them.
policy_steps  episode (episodes.id), number (from 0 in the episode); control_step; mode; step_ms;
              stage_ms (JSON object); recompute_ratio; vision_recompute_ratio; flush_reason;
              keyframe_reason; divergence_mean, divergence_max, gripper_flips (NULL: not
              computed). PolicyStep and Divergence explain them.
attempts      suite .. condition as above; fingerprint; note; failed_utc: the simulator failed.
              Says nothing about the policy; the episode is run again.
"""

import contextlib
import fcntl
import json
import os
import sqlite3
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from types import TracebackType
from typing import Any

from vla_cache_ros.core.errors import ConfigError, EvaluationError
from vla_cache_ros.core.json_text import parse_json, parse_object
from vla_cache_ros.evaluation.episode import Divergence, EpisodeRow, EpisodeSpec, PolicyStep

FILE, LOCK = 'episodes.sqlite', 'episodes.lock'

_APPLICATION_ID = 0x564C4165
"""Marks the file as this module's, as SQLite's header has it ('VLAe')."""

_VERSION = 1
_BUSY_TIMEOUT_S = 60.0
_SPEC = ', '.join(field.name for field in fields(EpisodeSpec))
_OUTCOME = 'outcome, steps, wall_s, overhead_ms, fingerprint, note'
_SPEC_COLUMNS = """
    suite TEXT NOT NULL, task INTEGER NOT NULL, init_state INTEGER NOT NULL, arm TEXT NOT NULL,
    seed INTEGER NOT NULL, condition TEXT NOT NULL"""
_NOW = "TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now'))"
_SCHEMA = f"""
BEGIN;
CREATE TABLE settings (name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
CREATE TABLE episodes (
    id INTEGER PRIMARY KEY, {_SPEC_COLUMNS},
    outcome TEXT NOT NULL CHECK (outcome IN ('success', 'failure')),
    steps INTEGER NOT NULL, wall_s REAL NOT NULL, overhead_ms REAL NOT NULL,
    fingerprint TEXT NOT NULL, note TEXT NOT NULL, finished_utc {_NOW},
    UNIQUE ({_SPEC})
) STRICT;
CREATE TABLE policy_steps (
    episode INTEGER NOT NULL REFERENCES episodes (id), number INTEGER NOT NULL,
    control_step INTEGER, mode TEXT NOT NULL, step_ms REAL NOT NULL, stage_ms TEXT NOT NULL,
    recompute_ratio REAL NOT NULL, vision_recompute_ratio REAL NOT NULL,
    flush_reason TEXT NOT NULL, keyframe_reason TEXT NOT NULL,
    divergence_mean REAL, divergence_max REAL, gripper_flips INTEGER,
    PRIMARY KEY (episode, number)
) STRICT, WITHOUT ROWID;
CREATE TABLE attempts (
    id INTEGER PRIMARY KEY, {_SPEC_COLUMNS},
    fingerprint TEXT NOT NULL, note TEXT NOT NULL, failed_utc {_NOW}
) STRICT;
PRAGMA application_id = {_APPLICATION_ID};
PRAGMA user_version = {_VERSION};
COMMIT;
"""


@dataclass(frozen=True)
class Attempt:
    """An episode whose simulator failed.

    Attributes:
        spec: Which episode it was to be.
        note: What went wrong.
        failed_utc: When, ISO 8601.
    """

    spec: EpisodeSpec
    note: str
    failed_utc: str


class EpisodeStore:
    """The episodes of one folder; a context manager."""

    def __init__(self, database: sqlite3.Connection, path: Path, lock: int | None) -> None:
        """Use `open` or `read`."""
        self._db = database
        self._lock = lock
        self.path = path

    @classmethod
    def open(cls, folder: Path, settings: Mapping[str, Any] | None = None) -> 'EpisodeStore':
        """Open a folder for writing, alone; it is made when missing.

        Args:
            folder: Holds the file.
            settings: What the episodes are run with, JSON values by name. A name that the folder
                already holds must have the same value; a new one is added, so that a folder can be
                extended by an arm or a suite.

        Raises:
            ConfigError: The folder cannot be written, another process writes to it, its file is
                damaged or of something else, or it holds episodes of other settings.
        """
        path = folder / FILE
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = _take_lock(folder)
        except OSError as error:
            raise ConfigError(
                f'cannot write to {folder}: {error.strerror}; name another folder.'
            ) from error
        try:
            store = cls(_connect(path, create=True), path, lock)
        except BaseException:
            os.close(lock)
            raise
        try:
            store._settle(dict(settings or {}))
        except BaseException:
            store.close()
            raise
        return store

    @classmethod
    def read(cls, folder: Path) -> 'EpisodeStore':
        """Open a folder for reading, beside a process that writes to it.

        Raises:
            ConfigError: There is no such file, or it is damaged or of something else.
        """
        path = folder / FILE
        if not path.is_file():
            raise ConfigError(f'{folder} holds no {FILE}; vla-cache eval --out {folder} makes it.')
        return cls(_connect(path, create=False), path, None)

    def __enter__(self) -> 'EpisodeStore':
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file and let others write."""
        self._db.close()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    @property
    def settings(self) -> dict[str, Any]:
        """What the episodes were run with.

        Raises:
            ConfigError: The file is damaged; so say the other readers.
        """
        with self._reading():
            return {
                name: parse_json(value)
                for name, value in self._db.execute(
                    'SELECT name, value FROM settings ORDER BY name'
                )
            }

    def add(self, row: EpisodeRow) -> None:
        """Store an episode with its steps, durably; a simulator's error becomes an attempt.

        Raises:
            EvaluationError: The disk is full or fails, or the episode is there already.
        """
        try:
            with self._db:  # one transaction: all of it or nothing
                if row.judged:
                    self._add_episode(row)
                else:
                    self._add_attempt(row)
        except sqlite3.IntegrityError as error:
            raise EvaluationError(f'{self.path}: cannot store {row.spec}: {error}.') from error
        except sqlite3.Error as error:
            raise EvaluationError(
                f'{self.path}: cannot store {row.spec}: {error}. All episodes finished before it '
                'are safe. Make room on the disk and run the same command again: it goes on where '
                'it stopped.'
            ) from error

    def finished(self) -> set[EpisodeSpec]:
        """The episodes that need not be run again."""
        with self._reading():
            return {EpisodeSpec(*row) for row in self._db.execute(f'SELECT {_SPEC} FROM episodes')}

    def rows(self, specs: Iterable[EpisodeSpec] | None = None) -> list[EpisodeRow]:
        """Finished episodes with their traces.

        Args:
            specs: Which, in this order; those that are not finished are left out. None: all, as
                they were finished.
        """
        wanted = None if specs is None else list(specs)
        found: dict[EpisodeSpec, EpisodeRow] = {}
        with self._reading():
            traces = self._traces()
            for number, *values, name, note in self._db.execute(
                f'SELECT id, {_SPEC}, {_OUTCOME} FROM episodes ORDER BY id'
            ):
                spec, result = EpisodeSpec(*values[:6]), values[6:]
                found[spec] = EpisodeRow(
                    spec, *result, trace=tuple(traces.get(number, ())), fingerprint=name, note=note
                )
        if wanted is None:
            return list(found.values())
        return [found[spec] for spec in wanted if spec in found]

    def attempts(self) -> list[Attempt]:
        """Episodes whose simulator failed, in the order of time."""
        with self._reading():
            return [
                Attempt(EpisodeSpec(*values), note, failed_utc)
                for *values, note, failed_utc in self._db.execute(
                    f'SELECT {_SPEC}, note, failed_utc FROM attempts ORDER BY id'
                )
            ]

    def check(self, settings: Mapping[str, Any]) -> None:
        """See to it that the folder's episodes were run with these settings.

        Raises:
            ConfigError: They were not; the message shows the difference.
        """
        there = self.settings
        here = json.loads(json.dumps(settings))
        different = [name for name in here if name in there and here[name] != there[name]]
        if different:
            lines = (
                f'\n  {name}: {there[name]!r} there, {here[name]!r} now' for name in different
            )
            raise ConfigError(
                f'{self.path.parent} holds episodes of other settings:{"".join(lines)}\n'
                'Name another folder, or ask for the same settings.'
            )

    @contextlib.contextmanager
    def _reading(self) -> Generator[None, None, None]:
        """Name the file where what it holds cannot be read; a sound look does not see it all."""
        try:
            yield
        except (sqlite3.Error, ValueError, TypeError, AttributeError) as error:
            raise ConfigError(
                f'{self.path} is damaged ({error}); move the file away and run its episodes again.'
            ) from error

    def _settle(self, settings: Mapping[str, Any]) -> None:
        self.check(settings)
        try:
            with self._db:
                self._db.executemany(
                    'INSERT OR IGNORE INTO settings VALUES (?, ?)',
                    [(name, json.dumps(value)) for name, value in settings.items()],
                )
        except sqlite3.Error as error:
            raise ConfigError(f'cannot write to {self.path}: {error}.') from error

    def _add_episode(self, row: EpisodeRow) -> None:
        values = (row.outcome, int(row.steps), float(row.wall_s), float(row.overhead_ms))
        number = self._db.execute(
            f'INSERT INTO episodes ({_SPEC}, {_OUTCOME}) VALUES ({_marks(6 + 6)})',
            (*astuple(row.spec), *values, row.fingerprint, _text(row.note)),
        ).lastrowid
        self._db.executemany(
            f'INSERT INTO policy_steps VALUES ({_marks(13)})',
            [(number, i, *_step_values(step)) for i, step in enumerate(row.trace)],
        )

    def _add_attempt(self, row: EpisodeRow) -> None:
        self._db.execute(
            f'INSERT INTO attempts ({_SPEC}, fingerprint, note) VALUES ({_marks(6 + 2)})',
            (*astuple(row.spec), row.fingerprint, _text(row.note)),
        )

    def _traces(self) -> dict[int, list[PolicyStep]]:
        traces: dict[int, list[PolicyStep]] = {}
        for episode, _, *values in self._db.execute(
            'SELECT * FROM policy_steps ORDER BY episode, number'
        ):
            traces.setdefault(episode, []).append(_step(values))
        return traces


def _step_values(step: PolicyStep) -> tuple[Any, ...]:
    """A step as the columns from control_step on."""
    divergence = step.divergence
    return (
        None if step.control_step is None else int(step.control_step),
        step.mode,
        float(step.step_ms),
        json.dumps({stage: float(ms) for stage, ms in step.stage_ms.items()}),
        float(step.recompute_ratio),
        float(step.vision_recompute_ratio),
        step.flush_reason,
        step.keyframe_reason,
        *((None,) * 3 if divergence is None else astuple(divergence)),
    )


def _step(values: Sequence[Any]) -> PolicyStep:
    control_step, mode, step_ms, stage_ms, *rest = values
    ratio, vision_ratio, flush_reason, keyframe_reason, mean, greatest, flips = rest
    divergence = None if mean is None else Divergence(mean, greatest, flips)
    return PolicyStep(
        control_step,
        mode,
        step_ms,
        parse_object(stage_ms),
        ratio,
        vision_ratio,
        flush_reason,
        keyframe_reason,
        divergence,
    )


def _marks(count: int) -> str:
    return ', '.join('?' * count)


def _text(text: str) -> str:
    """What UTF-8 can hold of a message."""
    return text.encode(errors='replace').decode()


def _take_lock(folder: Path) -> int:
    """Lock the folder until the descriptor is closed; a process that dies lets go of it."""
    lock = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.read(lock, 32).decode(errors='replace').strip()
        os.close(lock)
        raise ConfigError(
            f'another process ({holder or "unknown"}) is writing to {folder}; wait for it, or '
            'name another folder.'
        ) from None
    os.ftruncate(lock, 0)
    os.pwrite(lock, f'pid {os.getpid()}'.encode(), 0)
    return lock


def _connect(path: Path, create: bool) -> sqlite3.Connection:
    """Open the file and see that it is sound and this module's.

    Raises:
        ConfigError: It is not.
    """
    mode = 'rwc' if create else 'rw'  # a reader may have to roll back what a killed writer left
    database = None
    try:
        database = sqlite3.connect(
            f'{path.absolute().as_uri()}?mode={mode}', uri=True, timeout=_BUSY_TIMEOUT_S
        )
        database.execute('PRAGMA synchronous = FULL')
        if create and _is_empty(database):
            database.executescript(_SCHEMA)
        _verify(database, path)
    except (sqlite3.Error, UnicodeDecodeError) as error:
        with contextlib.suppress(AttributeError):
            database.close()  # type: ignore[union-attr]  # None where connecting failed
        raise ConfigError(
            f'{path} cannot be used ({error}): it is damaged, or no file of vla-cache eval. Name '
            'another folder, or move the file away and run its episodes again.'
        ) from error
    except BaseException:
        if database is not None:
            database.close()
        raise
    return database


def _is_empty(database: sqlite3.Connection) -> bool:
    return database.execute('SELECT count(*) FROM sqlite_master').fetchone() == (0,)


def _verify(database: sqlite3.Connection, path: Path) -> None:
    if database.execute('PRAGMA application_id').fetchone() != (_APPLICATION_ID,):
        raise ConfigError(f'{path} is a database of another program; name another folder.')
    (version,) = database.execute('PRAGMA user_version').fetchone()
    if version != _VERSION:
        raise ConfigError(
            f'{path} has layout {version}, this version of vla-cache reads {_VERSION}; name '
            'another folder.'
        )
    (state,) = database.execute('PRAGMA quick_check(1)').fetchone()
    if state != 'ok':
        raise sqlite3.DatabaseError(state)
