"""Race detector of the stand-ins for a GPU: vector clocks per stream and host thread, and memory with its accesses.

Streams of the stand-in do their work at once, so a missing wait changes no value. Here every operation has a vector
clock: what it is ordered after by its stream, by events that the stream waited for, and by what the queueing thread
had waited for. Memory keeps its last write and the reads since; an access that is not ordered after a conflicting one
is a race, whose result on a device is random. Memory is handed out as CuPy's pools do: a freed chunk returns at once to
the arena of the stream that allocated it, and the next allocation there gets it, so it may have queued work. Pinned
memory has one arena, whose next owner is a host thread.

A race raises :class:`Race` at the access and is also kept in :data:`races`: finalizers and worker threads lose errors.
"""

from __future__ import annotations

import bisect
import concurrent.futures
import itertools
import queue
import threading
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

Clock = dict[str, int]
"""Number of the last operation of each stream or thread that is known to be over."""


class Race(AssertionError):
    """Two accesses to the same memory, at least one a write, that nothing orders."""


@dataclass
class Timeline:
    """A stream or a host thread: its name and its vector clock."""

    name: str
    clock: Clock = field(default_factory=dict)

    def tick(self) -> None:
        self.clock[self.name] = self.clock.get(self.name, 0) + 1

    def join(self, clock: Clock) -> None:
        for name, number in clock.items():
            if number > self.clock.get(name, 0):
                self.clock[name] = number


@dataclass
class Access:
    """One access to the bytes from ``low`` up to ``high``."""

    low: int
    high: int
    timeline: str
    number: int
    write: bool
    what: str

    def before(self, clock: Clock) -> bool:
        return clock.get(self.timeline, 0) >= self.number

    def __str__(self) -> str:
        return f"{'write' if self.write else 'read'} by {self.what!r} on {self.timeline}"


@dataclass
class Chunk:
    """A piece of memory of an arena, aligned as CuPy's pool aligns it."""

    arena: str
    memory: np.ndarray
    accesses: list[Access] = field(default_factory=list)
    free: bool = False

    @property
    def low(self) -> int:
        return self.memory.ctypes.data

    @property
    def high(self) -> int:
        return self.low + self.memory.size


races: list[str] = []
"""Every race so far."""
PINNED = "pinned memory"
"""The arena of pinned host memory."""
_ALIGNMENT = 512
_THREAD = "host thread "
_lock = threading.RLock()
_chunks: list[Chunk] = []
_starts: list[int] = []
_streams: weakref.WeakValueDictionary[str, Timeline] = weakref.WeakValueDictionary()
_local = threading.local()
_numbers = itertools.count(1)


def reset() -> None:
    """Forget every race, access and free chunk of earlier tests; chunks in use stay."""
    with _lock:
        races.clear()
        for chunk in _chunks:
            chunk.accesses.clear()
        _chunks[:] = [chunk for chunk in _chunks if not chunk.free]
        _starts[:] = [chunk.low for chunk in _chunks]


def thread() -> Timeline:
    """Return the timeline of the calling thread."""
    if not hasattr(_local, "timeline"):
        _local.timeline = Timeline(f"{_THREAD}{next(_numbers)}")
    return _local.timeline


def stream(name: str) -> Timeline:
    """Return a new timeline for a stream."""
    timeline = Timeline(name)
    _streams[name] = timeline
    return timeline


def begin(timeline: Timeline) -> None:
    """Start an operation on a stream: it comes after everything its stream and its calling thread know to be over."""
    with _lock:
        timeline.join(thread().clock)
        timeline.tick()


def touch(timeline: Timeline, low: int, high: int, *, write: bool, what: str) -> None:
    """Note an access of the current operation of ``timeline``; raise :class:`Race` if it is not ordered."""
    if high <= low:
        return
    with _lock:
        chunk = chunk_at(low)
        assert chunk is not None, f"{what!r} uses memory that the stand-in does not track"
        assert high <= chunk.high, f"{what!r} reaches beyond its memory"
        access = Access(low, high, timeline.name, timeline.clock.get(timeline.name, 0), write, what)
        if chunk.free:
            _report(f"{access} uses memory after it was freed")
        for earlier in chunk.accesses:
            overlap = earlier.low < high and low < earlier.high
            if overlap and (write or earlier.write) and not earlier.before(timeline.clock):
                _report(f"{access} is not ordered after the {earlier}")
        chunk.accesses = [
            earlier
            for earlier in chunk.accesses
            if not (low <= earlier.low and earlier.high <= high)
            or (not write and (earlier.write or earlier.timeline != timeline.name))
        ]
        chunk.accesses.append(access)


def touch_on_host(array: np.ndarray, *, write: bool, what: str) -> None:
    """Note that the calling thread reads or writes pinned memory."""
    low, high = np.lib.array_utils.byte_bounds(array)
    if array.size and chunk_at(low) is not None:
        thread().tick()
        touch(thread(), low, high, write=write, what=what)


def chunk_at(address: int) -> Chunk | None:
    """Return the chunk that holds an address."""
    with _lock:
        index = bisect.bisect_right(_starts, address) - 1
        return _chunks[index] if index >= 0 and address < _chunks[index].high else None


class _Lease:
    """A chunk in use: NumPy arrays over it keep it alive, and it is freed with the last of them."""

    def __init__(self, chunk: Chunk, num_bytes: int) -> None:
        self.__array_interface__ = {"data": (chunk.low, False), "shape": (num_bytes,), "typestr": "|u1", "version": 3}


def allocate(arena: Timeline | None, num_bytes: int) -> np.ndarray:
    """Return ``num_bytes`` of an arena, pinned memory if None: the smallest freed chunk that is large enough."""
    with _lock:
        name = PINNED if arena is None else arena.name
        free = [chunk for chunk in _chunks if chunk.free and chunk.arena == name and chunk.memory.size >= num_bytes]
        chunk = min(free, key=lambda chunk: chunk.memory.size, default=None) or _new_chunk(name, num_bytes)
        chunk.free = False
        chunk.accesses.clear()
        if arena is not None:
            # even a chunk that is new here may be one on a device whose last work is still queued on the arena's stream
            number = arena.clock.get(arena.name, 0)
            chunk.accesses.append(Access(chunk.low, chunk.high, arena.name, number, True, "earlier use of the chunk"))
        lease = _Lease(chunk, num_bytes)
        weakref.finalize(lease, _free, chunk, arena).atexit = False
        return np.asarray(lease)


def _new_chunk(arena: str, num_bytes: int) -> Chunk:
    size = -(-max(num_bytes, 1) // _ALIGNMENT) * _ALIGNMENT
    memory = np.empty(size + _ALIGNMENT, np.uint8)
    memory = memory[-memory.ctypes.data % _ALIGNMENT :][:size]
    chunk = Chunk(arena, memory)
    index = bisect.bisect(_starts, chunk.low)
    _starts.insert(index, chunk.low)
    _chunks.insert(index, chunk)
    return chunk


def _free(chunk: Chunk, arena: Timeline | None) -> None:
    """Give a chunk back: its work must be over, or ordered before the next work of the arena's stream."""
    with _lock:
        chunk.free = True
        for access in chunk.accesses:
            if access.timeline.startswith(_THREAD):
                continue  # the last reference is given up after whatever the host did
            ordered = access.before(thread().clock) or (arena is not None and access.before(arena.clock))
            if not ordered:
                _report(f"freed to {chunk.arena} before the {access} is over", at_once=False)


def _report(text: str, *, at_once: bool = True) -> None:
    races.append(text)
    if at_once:
        raise Race(text)


def patch_hand_offs(patch: pytest.MonkeyPatch) -> None:
    """Make a thread that takes something over from another one know what that one knew: queues, pools, start, join."""
    put, get = queue.Queue.put, queue.Queue.get
    start, join = threading.Thread.start, threading.Thread.join
    submit, result = concurrent.futures.ThreadPoolExecutor.submit, concurrent.futures.Future.result

    def noted_put(self: Any, *args: Any, **options: Any) -> None:
        with _lock:
            _clock_of(self).join(thread().clock)
        put(self, *args, **options)

    def noted_get(self: Any, *args: Any, **options: Any) -> Any:
        item = get(self, *args, **options)
        with _lock:
            thread().join(_clock_of(self).clock)
        return item

    def noted_start(self: threading.Thread) -> None:
        self.run = _inheriting(self.run, self)  # type: ignore[method-assign]
        start(self)

    def noted_join(self: threading.Thread, timeout: float | None = None) -> None:
        join(self, timeout)
        if not self.is_alive():
            with _lock:
                thread().join(_clock_of(self).clock)

    def noted_submit(self: Any, function: Callable[..., Any], *args: Any, **options: Any) -> Any:
        box = Timeline("task")
        future = submit(self, _inheriting(function, box), *args, **options)
        future.box = box
        return future

    def noted_result(self: Any, timeout: float | None = None) -> Any:
        value = result(self, timeout)
        with _lock:
            thread().join(getattr(self, "box", Timeline("task")).clock)
        return value

    patch.setattr(queue.Queue, "put", noted_put)
    patch.setattr(queue.Queue, "get", noted_get)
    patch.setattr(threading.Thread, "start", noted_start)
    patch.setattr(threading.Thread, "join", noted_join)
    patch.setattr(concurrent.futures.ThreadPoolExecutor, "submit", noted_submit)
    patch.setattr(concurrent.futures.Future, "result", noted_result)


def _clock_of(owner: Any) -> Timeline:
    if not hasattr(owner, "handed_over"):
        owner.handed_over = Timeline("hand-off")
    return owner.handed_over


def _inheriting(function: Callable[..., Any], owner: Any) -> Callable[..., Any]:
    """``function`` for another thread, which learns what this one knows and leaves what it knows with ``owner``."""
    known = dict(thread().clock)
    box = owner if isinstance(owner, Timeline) else _clock_of(owner)

    def call(*args: Any, **options: Any) -> Any:
        with _lock:
            thread().join(known)
        try:
            return function(*args, **options)
        finally:
            with _lock:
                box.join(thread().clock)

    return call


def wait(clocks: Iterable[Clock]) -> None:
    """The calling thread waited for operations with these clocks."""
    with _lock:
        for clock in clocks:
            thread().join(clock)


def streams() -> list[Timeline]:
    """Return the timelines of all streams."""
    return list(_streams.values())
