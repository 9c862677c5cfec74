"""Run a function over many items on a few threads, in order and with bounded memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def ordered_map(function: Callable[[T], R], items: Iterable[T], workers: int) -> Iterator[R]:
    """Yield results in the order of ``items``, computed by ``workers`` threads, at most ``2 * workers`` ahead.

    An error is raised in place of its item's result; items that were not started by then are dropped. After an
    interrupt, items in progress are not waited for.
    """
    pending: deque[Future[R]] = deque()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="maskmill")
    wait = True
    try:
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) >= 2 * workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    except KeyboardInterrupt:
        # a model call or a server may never return
        wait = False
        raise
    finally:
        pool.shutdown(wait=wait, cancel_futures=True)
