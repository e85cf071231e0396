"""Reading ahead: the next input is prepared while the consumer works on the last one."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def read_ahead(work: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """Yield `work(item)` for all items in their order, computed one item ahead in a thread from the second one on.

    At most one result waits, so the memory does not grow with the number of items. Decoders and detectors release
    Python's global lock; a decoder in a child process (`IsolatedReader`) stays there. The threads do not keep the
    program from ending: a decoder that hangs is left behind.

    Raises:
        Exception: What `work` or the iteration raises, where the result would have been.
    """
    rest = iter(items)

    def step(answer: Future[list[Result]]) -> None:
        try:
            answer.set_result([work(item) for item in itertools.islice(rest, 1)])
        except BaseException as error:
            answer.set_exception(error)

    def start() -> Future[list[Result]]:
        answer: Future[list[Result]] = Future()
        threading.Thread(target=step, args=[answer], name="ahead", daemon=True).start()
        return answer

    # The first one in this thread, for which `IsolatedReader.ahead` may hold its frames.
    results = [work(item) for item in itertools.islice(rest, 1)]
    while results:
        waiting = start()
        yield from results
        results = waiting.result()
