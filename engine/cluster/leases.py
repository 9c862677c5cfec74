"""Leases: parts of a run's plan, which processes claim, label and return as files in the store's folder.

::

    STORE/leases/driver.json            the process that plans and commits
                 workers/WORKER.json    signs of life of each worker, with its counts
                 open/LEASE             inputs to label
                 claims/LEASE           the worker that labels them
                 done/LEASE~WORKER~ROWS what it made of them

A claim is a file that one of several writers can create, in a folder as in a bucket. Files of finished leases stay
until their rows are committed, so finished work survives the death of any process; leases of dead workers are labeled
again. The commit merges rows on their keys: a lease that is labeled or committed twice costs time and changes nothing.
"""

from __future__ import annotations

import json
import os
import random
import re
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from ...errors import StoreError
from ..inputs.sources import Item
from ..model.storage import open_folder
from ..reading.bucket.client import MissingBucketError
from ..store.label_store import LEASES
from ..store.table import store_errors
from ..store.waiting.row_files import DamagedFile, decode_rows, encode_rows
from ..store.waiting_count import DRIVER
from .lease_file import decode_items, encode_items
from .records import driver_record, worker_record

ALONE = "-alone"
"""Suffix of the name of a lease whose worker died: the next worker labels nothing else meanwhile, to find the cause."""

_FINISHED = re.compile(r"(.+)~([^~]+)~([0-9]+)")
_LOST_BEATS = 3  # number of its worker's records without a lease after which its rows count as lost
_CHOICES = 8  # a claim is tried on one of the first few leases, so that many workers do not all try the same


@dataclass(frozen=True, kw_only=True)
class Finished:
    """File of a finished lease."""

    lease: str
    """Name of the lease."""
    worker: str
    """Token of its worker."""
    num_rows: int
    """Number of inputs with a result."""
    num_bytes: int
    """Size of the file."""

    @property
    def name(self) -> str:
        """Name of the file."""
        return f"{self.lease}~{self.worker}~{self.num_rows}"


class Leases:
    """Leases of the run that writes into one store; every method may be called from any process and thread.

    A full disk or another error of the storage is raised as :class:`StoreError`.
    """

    def __init__(
        self,
        store: str | os.PathLike[str],
        options: Mapping[str, Any] | None = None,
        *,
        title: str = "label store",
    ) -> None:
        """Open the leases in a folder; ``title`` names the folder in messages."""
        self._folder = _StoreFolder(store, options, title)

    def publish(self, lease: str, items: Sequence[Item]) -> None:
        """Offer inputs to the workers."""
        self._folder.write(f"{LEASES}/open/{lease}", encode_items(items))

    def open_names(self) -> list[str]:
        """Return the names of the leases that are not committed, in order."""
        return list(self._folder.names(f"{LEASES}/open"))

    def items(self, lease: str) -> list[Item] | None:
        """Return the inputs of a lease; None if it was committed meanwhile or its file is damaged."""
        try:
            return decode_items(self._folder.read(f"{LEASES}/open/{lease}"))
        except (FileNotFoundError, DamagedFile):
            return None

    def claim(self, worker: str) -> tuple[str, list[Item]] | None:
        """Claim the first unclaimed lease; returns its name and inputs, None if there is none."""
        claimed_names = self._folder.names(f"{LEASES}/claims")
        free = [name for name in self.open_names() if name not in claimed_names][:_CHOICES]
        random.shuffle(free)
        for lease in free:
            if self.take(lease, worker):
                items = self.items(lease)
                if items is not None:
                    return lease, items
                self.withdraw(lease)
        return None

    def take(self, lease: str, worker: str) -> bool:
        """Claim a lease by its name; returns False if another worker has claimed it."""
        return self._folder.write_once(f"{LEASES}/claims/{lease}", worker.encode())

    def claims(self, known: Mapping[str, str] | None = None) -> dict[str, str]:
        """Return the worker of each claimed lease; claims in ``known`` are not read again."""
        workers: dict[str, str] = {}
        for lease in self._folder.names(f"{LEASES}/claims"):
            if known and lease in known:
                workers[lease] = known[lease]
                continue
            try:
                workers[lease] = self._folder.read(f"{LEASES}/claims/{lease}").decode(errors="replace")
            except FileNotFoundError:
                continue  # committed meanwhile
        return workers

    def release(self, lease: str) -> None:
        """Release a claim, so that another worker can claim the lease."""
        self._folder.remove(f"{LEASES}/claims/{lease}")

    def withdraw(self, lease: str) -> None:
        """Withdraw a lease; a worker that is labeling it may finish, and its rows are committed."""
        self._folder.remove(f"{LEASES}/open/{lease}")
        self._folder.remove(f"{LEASES}/claims/{lease}")

    def finish(self, lease: str, worker: str, labels: pa.Table, inputs: pa.Table, meta: Mapping[str, Any]) -> None:
        """Return the rows of a finished lease, and plain data about them, as a file."""
        self.hand_back(lease, worker, len(inputs), encode_rows(labels, inputs, meta))

    def hand_back(self, lease: str, worker: str, num_rows: int, data: bytes) -> None:
        """Write the file of a finished lease with results of ``num_rows`` inputs."""
        done = Finished(lease=lease, worker=worker, num_rows=num_rows, num_bytes=len(data))
        self._folder.write(f"{LEASES}/done/{done.name}", data, sync=True)

    def finished(self) -> list[Finished]:
        """Return the finished, uncommitted leases in order; files with other names are ignored."""
        names = [(_FINISHED.fullmatch(name), size) for name, size in self._folder.names(f"{LEASES}/done").items()]
        return [
            Finished(lease=match[1], worker=match[2], num_rows=int(match[3]), num_bytes=size)
            for match, size in names
            if match is not None
        ]

    def rows(self, done: Finished) -> tuple[pa.Table, pa.Table, dict[str, Any]] | None:
        """Read (labels, inputs, plain data) of a finished lease; None if the file no longer exists.

        A damaged file raises :class:`DamagedFile`.
        """
        try:
            return decode_rows(self.data(done))
        except FileNotFoundError:
            return None

    def data(self, done: Finished) -> bytes:
        """Read the file of a finished lease; raises :class:`FileNotFoundError`."""
        return self._folder.read(f"{LEASES}/done/{done.name}")

    def forget(self, done: Finished) -> None:
        """Delete the file of a finished lease."""
        self._folder.remove(f"{LEASES}/done/{done.name}")

    def beat(self, worker: str, record: Mapping[str, Any]) -> None:
        """Write the heartbeat of a worker."""
        self._folder.write(f"{LEASES}/workers/{worker}.json", json.dumps(record).encode())

    def workers(self) -> dict[str, dict[str, Any]]:
        """Return the latest record of each worker; files that hold anything else are ignored."""
        records: dict[str, dict[str, Any]] = {}
        for name in self._folder.names(f"{LEASES}/workers"):
            with suppress(FileNotFoundError):
                record = worker_record(self._folder.read(f"{LEASES}/workers/{name}"))
                if record is not None:
                    records[name.removesuffix(".json")] = record
        return records

    def leave(self, worker: str) -> None:
        """Delete the record of a worker that has ended."""
        self._folder.remove(f"{LEASES}/workers/{worker}.json")

    def driver(self) -> dict[str, Any] | None:
        """Return the record of the driver; None if there is none, or the file holds anything else."""
        try:
            return driver_record(self._folder.read(DRIVER))
        except FileNotFoundError:
            return None

    def lead(self, record: Mapping[str, Any], *, instead_of: str | None = None) -> bool:
        """Become the driver; returns False if there is another one. ``instead_of`` is the token of a dead driver.

        A record that a power loss cut short does not count.
        """
        data = json.dumps(record).encode()
        is_there, current = "driver.json" in self._folder.names(LEASES), self.driver()
        if instead_of is not None and current is not None and current.get("token") != instead_of:
            return False
        if instead_of is not None or (is_there and current is None):
            self._folder.remove(DRIVER)
        return self._folder.write_once(DRIVER, data)

    def report(self, record: Mapping[str, Any]) -> None:
        """Write the driver's heartbeat."""
        self._folder.write(DRIVER, json.dumps(record).encode())

    def resign(self) -> None:
        """Delete the record of the driver."""
        self._folder.remove(DRIVER)


class ClaimWatcher:
    """Finds leases whose claim is held by a live worker that no longer works on them.

    Their rows were returned, and the file no longer exists: another process has committed it, or it was deleted.
    """

    def __init__(self) -> None:
        self._since: dict[str, int] = {}

    def lost(
        self, claims: Mapping[str, str], handed_back: Set[str], workers: Mapping[str, Mapping[str, Any]]
    ) -> list[str]:
        """Return the leases that are lost, given claims (lease to worker) and the latest record of each worker."""
        idle: dict[str, int] = {}
        for lease, worker in claims.items():
            if lease not in handed_back and worker in workers and lease not in workers[worker]["leases"]:
                idle[lease] = workers[worker]["beat"]
        self._since = {lease: self._since.get(lease, beat) for lease, beat in idle.items()}
        # a record may be older than the claim
        return [lease for lease, beat in idle.items() if beat - self._since[lease] >= _LOST_BEATS]


class _StoreFolder:
    """Folder of a store whose errors, apart from missing files, are :class:`StoreError`."""

    def __init__(self, store: str | os.PathLike[str], options: Mapping[str, Any] | None, title: str) -> None:
        self._name = f"{title} {store}"
        self._folder = open_folder(store, options)

    def read(self, name: str) -> bytes:
        with self._errors("read"):
            return self._folder.read(name)

    def write(self, name: str, data: bytes, *, sync: bool = False) -> None:
        with self._errors("write to"):
            self._folder.write(name, data, sync=sync)

    def write_once(self, name: str, data: bytes) -> bool:
        with self._errors("write to"):
            return self._folder.write_once(name, data)

    def names(self, folder: str) -> dict[str, int]:
        with self._errors("read"):
            return self._folder.names(folder)

    def remove(self, name: str) -> None:
        with self._errors("write to"):
            self._folder.remove(name)

    @contextmanager
    def _errors(self, action: str) -> Iterator[None]:
        try:
            with store_errors(f"cannot {action} the {self._name}"):
                yield
        except StoreError as error:
            cause = error.__cause__
            if action == "read" and isinstance(cause, FileNotFoundError) and not isinstance(cause, MissingBucketError):
                raise cause from None
            raise
