"""Retries of reads, and calls that may never return."""

from __future__ import annotations

import concurrent.futures
import os
import queue
import random
import threading
from collections.abc import Callable
from typing import TypeVar

from ...errors import ImageError

Result = TypeVar("Result")

_BACKOFF = 0.5
"""Seconds before the first retry; each further pause is twice as long."""


_INTERRUPTED = threading.Event()


def note_interrupt() -> None:
    """End all retries of this process, which was interrupted and only finishes its work in progress."""
    _INTERRUPTED.set()


def is_interrupted() -> bool:
    """Return True if :func:`note_interrupt` was called."""
    return _INTERRUPTED.is_set()


def wait_for_interrupt(seconds: float) -> bool:
    """Wait, at most until :func:`note_interrupt` is called; returns True if it was."""
    return _INTERRUPTED.wait(seconds)


def pause_before(attempt: int) -> float:
    """Return the seconds to wait before an attempt; attempt 1 is the first retry."""
    return _BACKOFF * 2 ** (attempt - 1) * random.uniform(0.5, 1.0)


def may_pass(error: Exception) -> bool:
    """Return True if a failure is temporary, so that another attempt may succeed."""
    if isinstance(error, ImageError):
        return error.kind == "timeout"
    status = getattr(error, "status", None)
    if isinstance(status, int):
        return status >= 500 or status in (408, 429)
    if isinstance(error, TimeoutError | ConnectionError):
        return True
    # aiohttp is optional; its errors of connections and cut answers have these bases
    names = {base.__name__ for base in type(error).__mro__}
    return bool(names & {"ClientConnectionError", "ClientPayloadError"})


def in_thread(function: Callable[[], Result]) -> concurrent.futures.Future[Result]:
    """Run a function that may never return on another thread, which does not prevent Python from exiting.

    Threads are reused, since starting one takes as long as half a request.
    """
    future: concurrent.futures.Future[Result] = concurrent.futures.Future()
    future.set_running_or_notify_cancel()  # the call cannot be cancelled any more

    def work() -> None:
        try:
            result = function()
        except BaseException as error:
            future.set_exception(error)
        else:
            future.set_result(result)

    try:
        _IDLE.pop().put(work)
    except IndexError:
        tasks: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        tasks.put(work)
        threading.Thread(target=_serve, args=(tasks,), name="maskmill-remote", daemon=True).start()
    return future


def _serve(tasks: queue.SimpleQueue[Callable[[], None]]) -> None:
    while True:
        tasks.get()()
        _IDLE.append(tasks)


_IDLE: list[queue.SimpleQueue[Callable[[], None]]] = []
"""Task queues of idle threads; appending and popping are atomic."""
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_IDLE.clear)
