"""Reading ahead."""

import sys
import threading
import time

import pytest

from gmdf_hf.serving.ahead import read_ahead


def one(result) -> int:
    return 1


class Reader:
    """Notes what was read, and waits until so many items were."""

    def __init__(self):
        self.read, self.changed = [], threading.Condition()

    def __call__(self, item):
        with self.changed:
            self.read.append(item)
            self.changed.notify_all()
        return item

    def wait_for(self, count: int) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.read) >= count, timeout=20), self.read


def test_so_many_results_wait_and_no_more():
    reader = Reader()
    results = read_ahead(reader, iter(range(9)), one, limit=3)
    for item in range(6):
        assert next(results) == item
        reader.wait_for(item + 4)
        time.sleep(0.05)
        assert len(reader.read) == item + 4
    assert list(results) == [6, 7, 8]
    assert reader.read == list(range(9))


def test_a_large_result_waits_alone():
    """Sizes 1, 5, 1, 1 with room for 4: the second one fills it."""
    reader = Reader()
    results = read_ahead(reader, iter([1, 5, 1, 1]), lambda size: size, limit=4)
    assert next(results) == 1
    reader.wait_for(2)
    time.sleep(0.05)
    assert reader.read == [1, 5]
    assert list(results) == [5, 1, 1]


def test_nothing_gives_nothing_and_none_is_a_result():
    assert list(read_ahead(str, [], one, 1)) == []
    assert list(read_ahead(lambda item: None, [1, 2], one, 1)) == [None, None]


def test_an_error_comes_where_the_result_would_have_been():
    results = read_ahead(lambda item: 1 // item, [1, 1, 0, 1], one, limit=3)
    assert next(results) == 1
    assert next(results) == 1
    with pytest.raises(ZeroDivisionError):
        next(results)
    assert list(results) == []


def test_an_error_of_the_items_comes_after_the_results():
    def items():
        yield 1
        yield 2
        raise OSError("the list of files ends here")

    results = read_ahead(str, items(), one, limit=9)
    assert next(results) == "1" and next(results) == "2"
    with pytest.raises(OSError, match="ends here"):
        next(results)


def test_the_thread_ends_when_nobody_takes_results_any_more():
    before = set(threading.enumerate())
    results = read_ahead(str, iter(int, 1), one, limit=2)  # zeros without end
    next(results)
    (thread,) = set(threading.enumerate()) - before
    results.close()
    thread.join(timeout=20)
    assert not thread.is_alive()


def test_the_first_item_is_read_in_the_thread_that_asks():
    """A server's reader holds the frames of a visitor's file for the visitor's thread."""
    threads = list(read_ahead(lambda item: threading.current_thread().name, range(3), one, 2))
    assert threads == [threading.current_thread().name, "ahead", "ahead"]


def test_a_command_shares_the_processor(monkeypatch):
    cv2 = pytest.importorskip("cv2")
    from gmdf_hf.serving.ahead import share_processor

    threads, interval = cv2.getNumThreads(), sys.getswitchinterval()
    try:
        cv2.setNumThreads(8)
        share_processor()
        assert (cv2.getNumThreads(), sys.getswitchinterval()) == (2, 0.0005)
        monkeypatch.setitem(sys.modules, "cv2", None)
        share_processor()  # without OpenCV
    finally:
        cv2.setNumThreads(threads)
        sys.setswitchinterval(interval)


def test_an_error_of_the_size_is_no_end_of_all_waiting():
    results = read_ahead(str, [1, 2], lambda result: 1 // 0, limit=2)
    assert next(results) == "1"
    with pytest.raises(ZeroDivisionError):
        next(results)
