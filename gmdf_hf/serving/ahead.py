"""Reading ahead: the next inputs are prepared while the consumer works on the last ones."""

from __future__ import annotations

import itertools
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import suppress
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def share_processor() -> None:
    """Set up a process in which one thread finds faces and another scores them on the same processor.

    Python's lock changes hands after 0.5 instead of 5 milliseconds, and OpenCV gets a quarter of the threads: on two
    cores a batch would wait for the detector's second thread in every layer.
    """
    sys.setswitchinterval(0.0005)
    with suppress(ImportError):  # faces that are cropped need no detector
        import cv2

        cv2.setNumThreads(max(1, cv2.getNumThreads() // 4))


def read_ahead(
    work: Callable[[Item], Result], items: Iterable[Item], size: Callable[[Result], int], limit: int
) -> Iterator[Result]:
    """Yield `work(item)` for all items in their order, computed ahead in a thread from the second one on.

    The thread waits while the results that nobody has taken have `limit` or more in all, so the memory does not grow
    with the number of items. Decoders and detectors release Python's global lock; a decoder in a child process
    (`IsolatedReader`) stays there. The thread does not keep the program from ending: a decoder that hangs is left
    behind.

    Args:
        work: Makes a result of an item.
        items: The items.
        size: Size of a result, in the unit of `limit`.
        limit: Size of the waiting results from which on no further item is read.

    Raises:
        Exception: What `work` or the iteration raises, where the result would have been.
    """
    rest = iter(items)
    waiting: deque[tuple[Future[list[Result]], int]] = deque()
    changed, is_closed = threading.Condition(), threading.Event()

    def fill() -> None:
        while True:
            with changed:
                changed.wait_for(lambda: is_closed.is_set() or sum(taken for _, taken in waiting) < limit)
            if is_closed.is_set():
                return
            answer: Future[list[Result]] = Future()
            taken = None  # nothing was left, or an error
            try:
                read = [work(item) for item in itertools.islice(rest, 1)]
                taken = size(read[0]) if read else None
                answer.set_result(read)
            except BaseException as error:
                answer.set_exception(error)
            with changed:
                waiting.append((answer, taken or 0))
                changed.notify()
            if taken is None:
                return

    # The first one in this thread, for which `IsolatedReader.ahead` may hold its frames.
    results = [work(item) for item in itertools.islice(rest, 1)]
    threading.Thread(target=fill, name="ahead", daemon=True).start()
    try:
        while results:
            yield from results
            with changed:
                changed.wait_for(lambda: waiting)
                answer, _ = waiting.popleft()
                changed.notify()
            results = answer.result()
    finally:
        is_closed.set()
        with changed:
            changed.notify()
