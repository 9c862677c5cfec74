"""Reuse buffers that a stream may still work on after their owner has dropped them.

CuPy's memory pool hands a dropped buffer out again at once, which is safe only if the next owner works on the stream
that allocated it. Buffers that cross streams go through a :class:`Recycler` instead.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    import cupy

T = TypeVar("T")


class Recycler(Generic[T]):
    """Dropped buffers, each with the events of its last uses. It is thread-safe.

    With ``limit`` or more dropped buffers, :meth:`take` waits for the oldest, so that a producer that is faster than
    the device does not fill its memory.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._dropped: deque[tuple[T, tuple[cupy.cuda.Event, ...]]] = deque()
        self._lock = threading.Lock()

    def put(self, buffer: T, *events: cupy.cuda.Event) -> None:
        """Add a buffer that is free once ``events`` are done. Takes no lock, so that finalizers may call it."""
        self._dropped.append((buffer, events))

    def take(self, wait: Callable[[cupy.cuda.Event], None]) -> T | None:
        """Return the oldest buffer if it is free, else None; ``wait`` is called with each of its events."""
        with self._lock:
            if not self._dropped:
                return None
            buffer, events = self._dropped[0]
            if len(self._dropped) < self._limit and not all(event.done for event in events):
                return None
            self._dropped.popleft()
        for event in events:
            wait(event)
        return buffer
