"""Stages of threads joined by bounded queues.

A stage takes items from one queue, works on them with a number of threads and puts what comes out into the next. The
queues are short, so a slow stage holds up the ones before it and memory stays flat. The first error stops everything
and is raised where the flow is joined.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

_POLL = 0.2  # seconds between looks at the stop flag while a queue is full or empty
_END = object()

Step = Callable[[list[Any]], list[Any]]


@dataclass
class StageTime:
    """What one stage has done so far."""

    name: str
    threads: int
    items: int = 0
    busy: float = 0.0
    """Seconds of wall time inside the stage's function, summed over threads."""
    cpu: float = 0.0
    """Seconds of processor time of the same threads while inside it."""


class Flow:
    """A chain of stages, fed from an iterable::

    flow = Flow(items)
    flow.stage(("decode", decode), ("predict", predict), threads=2)
    flow.stage(("write", write), threads=1)
    flow.start()
    flow.join()
    """

    def __init__(self, items: Iterable[Any], *, depth: int = 2) -> None:
        self._depth = depth
        self._failed = threading.Event()
        self._stopping = threading.Event()
        self._error: BaseException | None = None
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []
        self._queue: queue.Queue[Any] = queue.Queue(depth)
        self.times: list[StageTime] = []
        self._add("maskmill-feed", self._feed, items, self._queue)

    def stage(
        self,
        *steps: tuple[str, Step],
        threads: int,
        batch: int = 1,
        finish: Callable[[], None] | None = None,
        idle: Callable[[], None] | None = None,
    ) -> None:
        """Append a stage of one or more named steps, which an item passes on the same thread.

        The first step takes up to ``batch`` items that are there without waiting; a step gives a list of what goes on
        to the next. ``finish`` runs once, after the last item; ``idle`` runs while there is nothing to do.
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
        """Start every thread; the last stage's output is dropped."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Take no further items; what is under way is finished."""
        self._stopping.set()

    def wait(self, seconds: float) -> bool:
        """Wait for the end; True when every thread has ended."""
        deadline = time.monotonic() + seconds
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    def join(self) -> None:
        """Wait for the end and raise the first error."""
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
        if sink is self._queue:  # nobody reads what the last stage gives
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
        results = function(items)
        busy, cpu = time.perf_counter() - started, time.thread_time() - cpu
        with self._lock:
            record.items += len(items)
            record.busy += busy
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
            self._put(source, _END)  # for the stage's other threads
        elif not self._failed.is_set():
            if finish is not None:
                finish()
            self._put(sink, _END)
