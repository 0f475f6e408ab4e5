"""One thread that always works on the newest item."""

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

ItemT = TypeVar('ItemT')


class LatestWorker(Generic[ItemT]):
    """A thread with a mailbox of one: a newer item replaces the one that waits.

    It keeps inference out of the executor's thread, which goes on to serve timers, services and
    subscriptions meanwhile; and it never queues: a policy that is slower than its cameras works
    on the newest images, not on a growing backlog.
    """

    def __init__(self, work: Callable[[ItemT], None], name: str) -> None:
        """Start the thread.

        Args:
            work: Called with each item, in the worker's thread. It must not raise.
            name: Name of the thread.
        """
        self._work = work
        self._condition = threading.Condition()
        self._item: ItemT | None = None
        self._open = True
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def submit(self, item: ItemT) -> ItemT | None:
        """Hand over an item; return the one that it replaced before work on it began."""
        with self._condition:
            replaced, self._item = self._item, item
            self._condition.notify()
        return replaced

    @property
    def is_idle(self) -> bool:
        """Whether no item waits."""
        with self._condition:
            return self._item is None

    def clear(self) -> ItemT | None:
        """Forget the item that waits; return it."""
        with self._condition:
            forgotten, self._item = self._item, None
        return forgotten

    def close(self) -> None:
        """Stop the thread; returns once the item in work is done."""
        with self._condition:
            self._open = False
            self._condition.notify()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._condition:
                self._condition.wait_for(lambda: self._item is not None or not self._open)
                if not self._open:
                    return
                item, self._item = self._item, None
            if item is not None:
                self._work(item)
