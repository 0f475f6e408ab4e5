"""The worker does the newest item, and no item twice."""

import threading

import pytest

from vla_cache_ros.nodes.latest_worker import LatestWorker

pytestmark = pytest.mark.ros


def test_newest_item_replaces_the_one_that_waits():
    begun, go, done, second = (threading.Event() for _ in range(4))
    worked = []

    def work(item):
        begun.set()
        go.wait(5)
        worked.append(item)
        (second if item == 'third' else done).set()

    worker = LatestWorker(work, 'test')
    worker.submit('first')
    assert begun.wait(5)
    assert worker.submit('second') is None
    assert worker.submit('third') == 'second'
    go.set()
    assert second.wait(5)
    worker.close()
    assert worked == ['first', 'third']


def test_cleared_item_is_not_worked_on():
    begun, go = threading.Event(), threading.Event()
    worked = []

    def work(item):
        begun.set()
        go.wait(5)
        worked.append(item)

    worker = LatestWorker(work, 'test')
    worker.submit('first')
    assert begun.wait(5)
    worker.submit('second')
    worker.clear()
    go.set()
    worker.close()
    assert worked == ['first']


def test_close_waits_for_the_item_in_work():
    begun = threading.Event()
    worked = []

    def work(item):
        begun.set()
        threading.Event().wait(0.05)
        worked.append(item)

    worker = LatestWorker(work, 'test')
    worker.submit('item')
    assert begun.wait(5)
    worker.close()
    assert worked == ['item']
