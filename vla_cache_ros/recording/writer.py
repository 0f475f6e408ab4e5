"""A recording as a series of MCAP files: split by size and time, stopped on a full disk."""

import os
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from vla_cache_ros.core.errors import RecordingError
from vla_cache_ros.recording.container import Container, RawMessage, Topic
from vla_cache_ros.recording.limits import MIB, WriterLimits

MAX_FILES = 100_000


class RecordingWriter:
    """Writes one recording, from one thread.

    A file can be read without its predecessors: it holds the definitions of all topics, and begins
    with the last message of each latched one.
    """

    def __init__(
        self,
        folder: Path,
        stem: str,
        clock_s: Callable[[], float],
        limits: WriterLimits | None = None,
        free_bytes: Callable[[Path], int] | None = None,
    ) -> None:
        """Create the first file, STEM_000.mcap; whatever exists is never overwritten.

        Args:
            folder: Where the files go; made where it is missing.
            stem: Beginning of the files' names.
            clock_s: A clock that never jumps, seconds.
            limits: When a file is full and when the disk is.
            free_bytes: Free bytes of a folder's disk; default: asks the system.

        Raises:
            RecordingError: The folder or file cannot be created, the file exists, or the disk
                is too full.
            UnknownNameError: There is no such compression.
        """
        self._folder, self._stem, self._clock_s = folder, stem, clock_s
        self._limits = limits or WriterLimits()
        self._free_bytes = free_bytes or disk_free_bytes
        self._topics: dict[str, Topic] = {}
        self._latched: dict[str, RawMessage] = {}
        self._closed_bytes = 0
        self.paths: list[Path] = []
        self.counts: Counter[str] = Counter()
        """Topic -> messages written; those repeated at the head of a file are not counted."""
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RecordingError(f'{folder} cannot be made: {error.strerror}.') from error
        self.check_free()
        self._file = self._next_file()

    @property
    def path(self) -> Path:
        """The file that is being written."""
        return self.paths[-1]

    @property
    def size_bytes(self) -> int:
        """Bytes of all files so far."""
        return self._closed_bytes + self._file.size_bytes

    def add_topic(self, topic: Topic) -> None:
        """Make a topic known; needed once, before its first message.

        Raises:
            RecordingError: The disk refuses.
        """
        self._file.add_topic(topic)
        self._topics[topic.name] = topic

    def write(self, messages: Sequence[RawMessage]) -> None:
        """Write messages as one chunk: all of them or none.

        Args:
            messages: At least one, at most `container.MAX_CHUNK_MESSAGES`.

        Raises:
            RecordingError: The disk refuses, or has too little free space for the next file.
        """
        if self._is_full():
            self._split()
        self._file.append(messages)
        for message in messages:
            self.counts[message.topic] += 1
            if self._topics[message.topic].latched:
                self._latched[message.topic] = message

    def sync(self) -> None:
        """Have the disk hold what was written, and look how much of it is free.

        Raises:
            RecordingError: The disk reports an error, or is too full to go on.
        """
        self._file.sync()
        self.check_free()

    def check_free(self) -> None:
        """Look how much of the disk is free.

        Raises:
            RecordingError: Too little to go on.
        """
        free, least = self._free_bytes(self._folder), self._limits.min_free_bytes
        if free < least:
            raise RecordingError(
                f'the disk of {self._folder} has {free / MIB:.0f} MiB free; a recording stops '
                f'below {least / MIB:.0f} MiB (min_free_mib). Free some space, or record to '
                'another folder.'
            )

    def close(self) -> None:
        """Close the last file. Idempotent.

        Raises:
            RecordingError: The disk refuses the summary; every message is in the file all the
                same.
        """
        self._file.close()

    def _is_full(self) -> bool:
        limits = self._limits
        if not self._file.count:
            return False
        age_s = self._clock_s() - self._opened_s
        return (0 < limits.file_bytes <= self._file.size_bytes) or (0 < limits.file_s <= age_s)

    def _split(self) -> None:
        self.check_free()
        self._file.close()
        self._closed_bytes += self._file.size_bytes
        self._file = self._next_file()

    def _next_file(self) -> Container:
        path = self._folder / f'{self._stem}_{len(self.paths):03d}.mcap'
        file = Container(path, self._limits.compression)
        self.paths.append(path)
        self._opened_s = self._clock_s()
        for topic in self._topics.values():
            file.add_topic(topic)
        if self._latched:
            file.append(list(self._latched.values()))
        return file


def disk_free_bytes(folder: Path) -> int:
    """Bytes that a user without privileges may still write to a folder's disk."""
    status = os.statvfs(folder)
    return status.f_bavail * status.f_frsize


def unused_stem(folder: Path, stem: str) -> str:
    """A stem of which no file exists yet: STEM, else STEM-2, STEM-3, ..

    Raises:
        RecordingError: All are taken.
    """
    for number in range(1, MAX_FILES):
        candidate = stem if number == 1 else f'{stem}-{number}'
        if not any(folder.glob(f'{candidate}_*.mcap')):
            return candidate
    raise RecordingError(f'{folder} is full of recordings named {stem}; choose another prefix.')
