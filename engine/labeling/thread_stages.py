"""Pipeline of stages: threads connected by bounded queues.

A stage takes items from one queue, processes them in its threads and puts the results into the next queue. The queues
are short, so a slow stage slows down the stages before it and memory stays flat. The first error stops all stages and
is raised by ``join``.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

_POLL = 0.2  # seconds between checks of the stop flag while a queue is full or empty
_END = object()

Step = Callable[[list[Any]], list[Any]]


@dataclass
class StageTime:
    """Counts and times of one stage."""

    name: str
    threads: int
    items: int = 0
    busy: float = 0.0
    """Wall time inside the stage's function, in seconds, summed over threads."""
    cpu: float = 0.0
    """Processor time of the same threads inside it, in seconds."""


class Pipeline:
    """Chain of stages that process the items of an iterable::

    pipeline = Pipeline(items)
    pipeline.add_stage(("decode", decode), ("predict", predict), threads=2)
    pipeline.add_stage(("write", write), threads=1)
    pipeline.start()
    pipeline.join()
    """

    def __init__(self, items: Iterable[Any], *, depth: int = 2, ahead: int = 2) -> None:
        """Create a pipeline with queues for ``depth`` items per thread, and for ``ahead`` items of the iterable."""
        self._depth = depth
        self._failed = threading.Event()
        self._stopping = threading.Event()
        self._error: BaseException | None = None
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []
        self._queue: queue.Queue[Any] = queue.Queue(ahead)
        self.times: list[StageTime] = []
        self._busy: dict[int, tuple[str, float]] = {}
        self._add("maskmill-feed", self._feed, items, self._queue)

    def add_stage(
        self,
        *steps: tuple[str, Step],
        threads: int,
        batch: int = 1,
        finish: Callable[[], None] | None = None,
        idle: Callable[[], None] | None = None,
    ) -> None:
        """Append a stage of one or more named steps; an item passes all of them on the same thread.

        The first step receives up to ``batch`` items that are available without waiting; each step returns the list
        of items for the next one. ``finish`` runs once, after the last item; ``idle`` runs while the queue is empty.
        """
        timed = [(StageTime(name, threads), function) for name, function in steps]
        self.times.extend(record for record, _ in timed)
        source, sink = self._queue, queue.Queue(self._depth * threads)
        remaining = [threads]
        for index in range(threads):
            name = f"maskmill-{steps[0][0]}-{index}"
            self._add(name, self._work, timed, source, sink, batch, remaining, finish, idle)
        self._queue = sink

    def start(self) -> None:
        """Start all threads; the output of the last stage is dropped."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Stop taking items; items in progress are finished."""
        self._stopping.set()

    @property
    def failed(self) -> bool:
        """True if a stage has raised an error, which :meth:`join` raises."""
        return self._failed.is_set()

    def stalled(self, seconds: float) -> str:
        """Return the name of a step that has worked on its items for longer than ``seconds``; empty if none has."""
        now = time.perf_counter()
        late = [(started, name) for name, started in list(self._busy.values()) if now - started > seconds]
        return min(late)[1] if late else ""

    def abandon(self, last: str) -> None:
        """Drop the items in progress: wait only for the threads of the stage that begins with the step ``last``.

        The other threads end at their next item; threads that hang are abandoned. Raises the first error.
        """
        self._failed.set()
        for thread in self._threads:
            if thread.name.startswith(f"maskmill-{last}-"):
                thread.join()
        if self._error is not None:
            raise self._error

    def wait(self, seconds: float) -> bool:
        """Wait for at most ``seconds``; returns True if every thread has ended."""
        deadline = time.monotonic() + seconds
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    def join(self) -> None:
        """Wait for all threads and raise the first error."""
        while not self.wait(60.0):
            pass
        if self._error is not None:
            raise self._error

    def _add(self, name: str, target: Callable[..., None], *args: Any) -> None:
        self._threads.append(threading.Thread(target=self._guard, args=(target, *args), name=name, daemon=True))

    def _guard(self, target: Callable[..., None], *args: Any) -> None:
        try:
            target(*args)
        except BaseException as error:
            with self._lock:
                if self._error is None:
                    self._error = error
            self._failed.set()

    def _feed(self, items: Iterable[Any], sink: queue.Queue[Any]) -> None:
        for item in items:
            if self._stopping.is_set() or not self._put(sink, item):
                break
        self._put(sink, _END)

    def _put(self, sink: queue.Queue[Any], item: Any) -> bool:
        if sink is self._queue:  # nothing reads the output of the last stage
            return not self._failed.is_set()
        while not self._failed.is_set():
            try:
                sink.put(item, timeout=_POLL)
                return True
            except queue.Full:
                continue
        return False

    def _get(self, source: queue.Queue[Any], idle: Callable[[], None] | None) -> Any:
        while not self._failed.is_set():
            try:
                return source.get(timeout=_POLL)
            except queue.Empty:
                if idle is not None:
                    idle()
        return _END

    def _timed(self, record: StageTime, function: Step, items: list[Any]) -> list[Any]:
        started, cpu = time.perf_counter(), time.thread_time()
        self._busy[threading.get_ident()] = record.name, started
        results = function(items)
        del self._busy[threading.get_ident()]
        seconds, cpu = time.perf_counter() - started, time.thread_time() - cpu
        with self._lock:
            record.items += len(items)
            record.busy += seconds
            record.cpu += cpu
        return results

    def _work(
        self,
        steps: list[tuple[StageTime, Step]],
        source: queue.Queue[Any],
        sink: queue.Queue[Any],
        batch: int,
        remaining: list[int],
        finish: Callable[[], None] | None,
        idle: Callable[[], None] | None,
    ) -> None:
        ended = False
        while not ended:
            items = [self._get(source, idle)]
            while len(items) < batch and items[-1] is not _END:
                try:
                    items.append(source.get_nowait())
                except queue.Empty:
                    break
            if items[-1] is _END:
                items.pop()
                ended = True
            for record, function in steps:
                if items:
                    items = self._timed(record, function, items)
            for item in items:
                if not self._put(sink, item):
                    return
        with self._lock:
            remaining[0] -= 1
            last = remaining[0] == 0
        if not last:
            self._put(source, _END)  # put it back for the other threads of this stage
        elif not self._failed.is_set():
            if finish is not None:
                finish()
            self._put(sink, _END)
