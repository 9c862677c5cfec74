"""Plan of a run: a thread lists the source and publishes leases of the inputs that the store lacks, on demand."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import islice

from ...errors import StoreError
from ..inputs.identity import shard
from ..inputs.sources import Item
from ..inputs.tables.listing import piece_of
from ..labeling.drift import RunWatch
from ..store.label_store import LEASES, LabelStore
from ..store.rows import fingerprint
from .job import Job
from .leases import Leases

SMALLEST_LEASE, LARGEST_LEASE = 16, 2048
"""Bounds of the number of inputs of a lease."""
MAX_PASSES = 10
"""Number of times that inputs of lost leases are planned again."""


class Planner:
    """Publishes leases in a thread, only a few more than there are workers."""

    def __init__(
        self,
        job: Job,
        leases: Leases,
        store: LabelStore,
        *,
        name: str,
        size: Callable[[], int],
        watch: RunWatch | None = None,
        shard_of: tuple[int, int] | None = None,
        limit: int | None = None,
        retry_rejects: bool = False,
    ) -> None:
        """Create a planner; leases are called ``name`` and a number, and hold ``size()`` inputs."""
        self.planned = 0
        """Number of inputs in leases so far, those of an earlier driver included."""
        self.earlier_rejects: Counter[str] = Counter()
        """Inputs per kind of error that an earlier run rejected and this one skips, counted at the end."""
        self.limited = False
        """True if the limit left inputs out."""
        self.error: BaseException | None = None
        """Error that stopped the planning."""
        self._job, self._leases, self._store = job, leases, store
        self._name, self._size, self._watch = name, size, watch
        self._shard_of, self._limit, self._retry_rejects = shard_of, limit, retry_rejects
        self._sizes: dict[str, int] = {}
        self._num_lost = self._num_passes = 0
        self._stop = threading.Event()
        self._room = threading.Condition()
        self._num_allowed = 0
        self._ahead: list[Item] = []  # numbers of planned inputs, and of the next lease
        self._thread = threading.Thread(target=self._run, name="maskmill-plan", daemon=True)

    def start(self) -> None:
        """Start to plan."""
        self._thread.start()

    @property
    def is_busy(self) -> bool:
        """True while there may be further leases."""
        return self._thread.is_alive()

    def make_room(self, num_leases: int) -> None:
        """Let up to ``num_leases`` further leases be published."""
        with self._room:
            self._num_allowed = num_leases
            self._room.notify_all()

    def end(self) -> None:
        """Publish no further leases."""
        self._stop.set()
        with self._room:
            self._room.notify_all()
        self._thread.join()

    def publish(self, lease: str, items: Sequence[Item]) -> None:
        """Publish a lease and remember its size."""
        self._leases.publish(lease, items)
        self._sizes[lease] = len(items)

    def size_of(self, lease: str) -> int:
        """Return the number of inputs of a lease, and forget it."""
        size = self._sizes.pop(lease, None)
        return len(self._leases.items(lease) or ()) if size is None else size

    def published(self) -> set[str]:
        """Return the names of the leases that :meth:`size_of` has not forgotten."""
        return set(self._sizes)

    def lose(self, num_inputs: int) -> None:
        """Note that the file of a lease was damaged or deleted before its inputs were labeled."""
        self.planned -= num_inputs
        self._num_lost += num_inputs

    def plan_lost(self) -> bool:
        """Plan inputs of lost leases again, once everything else is committed; returns False if there are none.

        Raises :class:`StoreError` if leases are lost again and again.
        """
        if not self._num_lost:
            return False
        self._num_passes += 1
        if self._num_passes > MAX_PASSES:
            raise StoreError(
                f"files in {self._job.store}/{LEASES}/open are damaged or deleted again and again; check the disk, and "
                "run the same command again"
            )
        self._limit, self._num_lost, self._watch, self._retry_rejects = self._num_lost, 0, None, False
        self._thread = threading.Thread(target=self._run, name="maskmill-plan", daemon=True)
        self._thread.start()
        return True

    def _run(self) -> None:
        try:
            number, name = 0, f"{self._name}-{self._num_passes}" if self._num_passes else self._name
            plan = self._unfinished()
            while not self._stop.is_set():
                with self._room:
                    self._room.wait_for(lambda: self._num_allowed > 0 or self._stop.is_set())
                    self._num_allowed -= 1
                items = [] if self._stop.is_set() else self._next_items(plan)
                if not items:
                    return
                self.planned += len(items)
                self.publish(f"{name}-{number:08d}", items)
                number += 1
        except BaseException as error:
            self.error = error

    def _next_items(self, plan: Iterator[Item]) -> list[Item]:
        """Return the inputs of the next lease; images that are read together stay together, up to the largest lease."""
        items = [*self._ahead, *islice(plan, self._size() - len(self._ahead))]
        self._ahead = []
        piece = piece_of(items[-1].uri) if items else None
        while piece is not None and len(items) < LARGEST_LEASE:
            following = next(plan, None)
            if following is None:
                break
            if piece_of(following.uri) != piece:
                self._ahead = [following]
                break
            items.append(following)
        return items

    def _unfinished(self) -> Iterator[Item]:
        condition = self._job.conditions()
        leased_digests = b""
        for lease in self._leases.open_names():
            items = self._leases.items(lease) or []
            if lease not in self._sizes:
                self._sizes[lease] = len(items)
                self.planned += len(items)
            leased_digests += b"".join(
                fingerprint(item.uri, item.size, item.stamp, condition(item.uri)) for item in items
            )
        rejects = {} if self._retry_rejects else {row.uri: row.error or "" for row in self._store.rejects()}
        earlier: Counter[str] = Counter()
        watch = self._watch
        source = self._job.source if watch is None else watch.observe(self._job.source)
        source = source if self._shard_of is None else shard(source, *self._shard_of)

        def watched() -> Iterator[Item]:
            for item in source:
                if self._stop.is_set():
                    return
                if item.uri in rejects:
                    earlier[rejects[item.uri]] += 1
                yield item

        plan = self._store.plan(
            watched(), retry_rejects=self._retry_rejects, condition=condition, leased=leased_digests
        )
        unfinished = [] if watch is None else list(plan)
        ordered_items = islice(plan, self._limit) if watch is None else watch.order(unfinished, self._limit, own=False)
        for item in ordered_items:
            if item.uri in rejects:  # a file that changed is processed again
                earlier[rejects[item.uri]] -= 1
            yield item
        if not self._num_passes:
            if self._limit is not None:
                self.limited = next(plan, None) is not None if watch is None else len(unfinished) > self._limit
            self.earlier_rejects = +earlier
