"""Reading ahead."""

import threading

import pytest

from gmdf_hf.serving.ahead import read_ahead


def test_one_item_is_read_ahead_and_no_more():
    read, is_read = [], threading.Semaphore(0)

    def work(item):
        read.append(item)
        is_read.release()
        return 10 * item

    results = read_ahead(work, iter(range(4)))
    for item in range(3):
        assert next(results) == 10 * item
        assert is_read.acquire(timeout=20) and is_read.acquire(timeout=20 if item == 0 else 0) is (item == 0)
        assert read == list(range(item + 2))
    assert list(results) == [30]


def test_nothing_gives_nothing_and_none_is_a_result():
    assert list(read_ahead(str, [])) == []
    assert list(read_ahead(lambda item: None, [1, 2])) == [None, None]


def test_an_error_comes_where_the_result_would_have_been():
    results = read_ahead(lambda item: 1 // item, [1, 0, 1])
    assert next(results) == 1
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_the_first_item_is_read_in_the_thread_that_asks():
    """A server's reader holds the frames of a visitor's file for the visitor's thread."""
    threads = list(read_ahead(lambda item: threading.current_thread().name, range(3)))
    assert threads == [threading.current_thread().name, "ahead", "ahead"]
