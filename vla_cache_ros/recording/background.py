"""The recorder's own thread: takes messages from whoever receives them, who never waits.

Between the two stands a queue of bounded bytes. What does not fit is dropped, counted by topic,
and never blocks: the executor that delivers messages also delivers commands. For every topic

    received = written + dropped + waiting

holds at all times.
"""

import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from vla_cache_ros.core.errors import RecordingError
from vla_cache_ros.recording.container import MAX_CHUNK_MESSAGES, RawMessage, Topic
from vla_cache_ros.recording.writer import RecordingWriter

MAX_CHUNK_BYTES = 8 * 2**20


@dataclass(frozen=True)
class RecordingStatus:
    """How a recording stands.

    Attributes:
        path: The file that is being written, or was last.
        size_bytes: Bytes of all files.
        received: Topic -> messages handed over.
        written: Topic -> messages in the files.
        dropped: Topic -> messages that found the queue full, or the recording stopped.
        waiting: Messages in the queue.
        waiting_bytes: Their bytes.
        failure: Why the recording stopped by itself; empty while it goes on.
    """

    path: Path
    size_bytes: int
    received: dict[str, int]
    written: dict[str, int]
    dropped: dict[str, int]
    waiting: int
    waiting_bytes: int
    failure: str


class BackgroundWriter:
    """Owns a RecordingWriter and the thread that feeds it."""

    def __init__(
        self,
        writer: RecordingWriter,
        queue_bytes: int,
        flush_period_s: float = 0.0,
        sync_period_s: float = 1.0,
        on_failure: Callable[[str], None] | None = None,
    ) -> None:
        """Start the thread.

        Args:
            writer: Where messages go; closed by `close`, or when it fails.
            queue_bytes: Bytes of messages that may wait.
            flush_period_s: Longest time that a message waits for others to share its chunk; 0: it
                is written as soon as the thread is free. It bounds what SIGKILL costs.
            sync_period_s: Time between two syncs of the disk, which bounds what a power cut
                costs, and between two looks at its free space; 0: none but at the end.
            on_failure: Called once, from the thread, with the reason when the recording stops.
        """
        self._writer = writer
        self._queue_bytes = queue_bytes
        self._flush_period_s, self._sync_period_s = flush_period_s, sync_period_s
        self._on_failure = on_failure
        self._condition = threading.Condition()  # guards the fields below
        self._queue: deque[RawMessage | Topic] = deque()
        self._in_work = 0
        self._waiting_bytes = 0
        self._received: Counter[str] = Counter()
        self._written: Counter[str] = Counter()
        self._dropped: Counter[str] = Counter()
        self._failure = ''
        self._size_bytes, self._path = writer.size_bytes, writer.path
        self._open = True
        self._thread = threading.Thread(target=self._run, name='recording', daemon=True)
        self._thread.start()

    def add_topic(self, topic: Topic) -> None:
        """Make a topic known; needed once, before its first message."""
        with self._condition:
            self._queue.append(topic)
            self._condition.notify()

    def submit(self, message: RawMessage) -> bool:
        """Hand over a message; False says that it was dropped."""
        size = len(message.data)
        with self._condition:
            self._received[message.topic] += 1
            is_full = self._waiting_bytes + size > self._queue_bytes and self._waiting_bytes > 0
            if is_full or self._failure or not self._open:
                self._dropped[message.topic] += 1
                return False
            self._queue.append(message)
            self._waiting_bytes += size
            self._condition.notify()
        return True

    def status(self) -> RecordingStatus:
        """How the recording stands now."""
        with self._condition:
            waiting = self._in_work + sum(isinstance(item, RawMessage) for item in self._queue)
            return RecordingStatus(
                self._path,
                self._size_bytes,
                dict(self._received),
                dict(self._written),
                dict(self._dropped),
                waiting,
                self._waiting_bytes,
                self._failure,
            )

    def close(self) -> RecordingStatus:
        """Write what waits, close the file and end the thread. Idempotent."""
        with self._condition:
            self._open = False
            self._condition.notify()
        self._thread.join()
        return self.status()

    # The thread

    def _run(self) -> None:
        try:
            self._work()
            self._writer.close()
        except RecordingError as error:
            self._fail(str(error))
        except Exception as error:  # whatever it was, the robot goes on and the reason is told
            self._fail(f'{type(error).__name__}: {error}')
        with self._condition:
            self._size_bytes, self._path = self._writer.size_bytes, self._writer.path

    def _work(self) -> None:
        synced_s = time.monotonic()
        while True:
            batch = self._take(synced_s + self._sync_period_s if self._sync_period_s else None)
            if batch is None:
                return
            topics = [item for item in batch if isinstance(item, Topic)]
            messages = [item for item in batch if isinstance(item, RawMessage)]
            for topic in topics:
                self._writer.add_topic(topic)
            if messages:
                self._writer.write(messages)
                self._count(messages)
            if self._sync_period_s and time.monotonic() - synced_s >= self._sync_period_s:
                self._writer.sync()
                synced_s = time.monotonic()

    def _take(self, until_s: float | None) -> list[RawMessage | Topic] | None:
        """Wait for messages and take as many as one chunk holds.

        Returns:
            Topics and messages; empty when `until_s` came first; None at the end.
        """
        with self._condition:
            wait_s = None if until_s is None else max(0.0, until_s - time.monotonic())
            self._condition.wait_for(lambda: self._queue or not self._open, wait_s)
            if self._flush_period_s and self._queue:
                self._condition.wait_for(
                    lambda: self._fills_a_chunk() or not self._open, self._flush_period_s
                )
            if not self._queue:
                return [] if self._open else None
            batch: list[RawMessage | Topic] = []
            size = 0
            while self._queue and len(batch) < MAX_CHUNK_MESSAGES and size < MAX_CHUNK_BYTES:
                batch.append(item := self._queue.popleft())
                if isinstance(item, RawMessage):
                    size += len(item.data)
                    self._in_work += 1
            return batch

    def _fills_a_chunk(self) -> bool:
        return self._waiting_bytes >= MAX_CHUNK_BYTES or len(self._queue) >= MAX_CHUNK_MESSAGES

    def _count(self, messages: list[RawMessage]) -> None:
        with self._condition:
            self._written.update(message.topic for message in messages)
            self._waiting_bytes -= sum(len(message.data) for message in messages)
            self._in_work -= len(messages)
            self._size_bytes, self._path = self._writer.size_bytes, self._writer.path

    def _fail(self, reason: str) -> None:
        """Stop recording: close what can be closed, count what waits as dropped, tell."""
        try:
            self._writer.close()
        except (RecordingError, OSError) as error:
            reason = f'{reason} {error}'
        with self._condition:
            self._failure = reason
            waiting = [item for item in self._queue if isinstance(item, RawMessage)]
            self._dropped.update(message.topic for message in waiting)
            self._queue.clear()
            for topic, count in self._received.items():
                # The chunk in work was not written either.
                self._dropped[topic] = count - self._written[topic]
            self._in_work = self._waiting_bytes = 0
        if self._on_failure is not None:
            self._on_failure(reason)
