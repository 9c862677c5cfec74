"""Threads of a kernel called directly; pipelines and data workers already have a thread per image.

There are two kinds. Numba's threads (OpenMP or TBB) start within microseconds, since they poll for work before they
sleep; they are used for maps that take less than a millisecond. Python's threads, which take a tenth of a millisecond
to wake, are used for larger pieces, and for everything if Numba has neither library. Numba's third layer,
``workqueue``, is not used: it aborts the process if two Python threads enter a parallel function.
"""

from __future__ import annotations

import ctypes
import importlib
import multiprocessing
import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

from numba import config

from ..processors import usable_processors

_PROCESS = os.getpid()


def num_threads(work: int, worth: int) -> int:
    """Return the number of threads for ``work``: all if it is at least ``worth``, on the main thread; otherwise 1.

    A child process is a data worker and gets 1 as well.
    """
    direct = threading.current_thread() is threading.main_thread() and multiprocessing.parent_process() is None
    return _most_threads() if direct and work >= worth else 1


@cache
def _most_threads() -> int:
    """Return the number of threads that Numba starts, within the CPU quota unless the user set the number."""
    number = config.NUMBA_NUM_THREADS
    return number if "NUMBA_NUM_THREADS" in os.environ else min(number, usable_processors())


def numba_threads_are_safe() -> bool:
    """Return True if :func:`in_numba_threads` may be used: OpenMP accepts several calling threads, but kills forks."""
    known = config.THREADING_LAYER in ("default", "threadsafe", "omp")
    return known and os.getpid() == _PROCESS and bool(_openmp())


def in_numba_threads(function: Callable[..., object], *arguments: object) -> None:
    """Call a compiled function with parallel loops.

    Numba sets OpenMP's number of threads for the calling thread, and torch uses that number: it is restored here.
    """
    libraries = _openmp()
    numbers = [library.omp_get_max_threads() for library in libraries]
    try:
        function(*arguments)
    finally:
        for library, number in zip(libraries, numbers, strict=True):
            library.omp_set_num_threads(number)


@cache
def _openmp() -> list[Any]:
    """Return the OpenMP libraries that Numba may use: the one it links to, and one loaded globally, as by torch."""
    if sys.platform != "linux":
        return []
    try:
        layer = importlib.import_module("numba.np.ufunc.omppool")
    except ImportError:
        return []
    libraries = [ctypes.CDLL(layer.__file__), ctypes.CDLL(None)]
    return [library for library in libraries if hasattr(library, "omp_set_num_threads")]


@cache
def _helpers(process: int, count: int) -> ThreadPoolExecutor:
    """Return a pool of idle threads: starting one takes longer than a small map. A forked child needs its own pool."""
    return ThreadPoolExecutor(count, thread_name_prefix="maskmill-kernel")


def share(function: Callable[..., object], tasks: Iterable[tuple[Any, ...]], threads: int) -> None:
    """Call ``function(*task)`` for every task, in this thread and in ``threads`` - 1 helpers."""
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
