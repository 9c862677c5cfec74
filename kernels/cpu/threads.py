"""Threads of a kernel called directly; pipelines and data workers already have a thread for each image."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cache

from numba import config


def num_threads(work: int, worth: int) -> int:
    """Threads for ``work``: all (``NUMBA_NUM_THREADS``) where it is ``worth`` them, on the main thread; otherwise 1.

    A child process is a data worker and gets 1 as well.
    """
    direct = threading.current_thread() is threading.main_thread() and multiprocessing.parent_process() is None
    return config.NUMBA_NUM_THREADS if direct and work >= worth else 1


@cache
def _helpers(process: int, count: int) -> ThreadPoolExecutor:
    """Threads that wait for work: starting one takes longer than a small map. A forked child needs its own."""
    return ThreadPoolExecutor(count, thread_name_prefix="maskmill-kernel")


def share(function: Callable[..., object], tasks: Iterable[tuple], threads: int) -> None:
    """Call ``function(*task)`` for every task, in this thread and in ``threads`` - 1 of our own.

    Not Numba's: its ``workqueue`` layer aborts the process when two Python threads enter a parallel function, and the
    compiled loops release the lock anyway.
    """
    if threads == 1:
        for task in tasks:
            function(*task)
        return
    pending = deque(tasks)

    def work() -> None:
        while True:
            try:
                task = pending.popleft()
            except IndexError:
                return
            function(*task)

    helpers = [_helpers(os.getpid(), threads - 1).submit(work) for _ in range(threads - 1)]
    try:
        work()
    finally:
        for helper in helpers:
            helper.result()
