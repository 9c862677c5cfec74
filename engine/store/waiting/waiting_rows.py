"""Commits of one process: small ones to a small store, infrequent and large ones to a large store.

A commit searches the keys of the whole store, so it costs about the same for 512 rows as for 65,536. Rows that are not
worth a commit yet wait in files of the store's folder::

    STORE/leases/waiting/PROCESS-NUMBER~ROWS

After a process is killed, the next run commits these files first, so nothing is labeled again. It also commits the
finished leases of multi-process runs, in ``STORE/leases/done``, unless such a run is active and commits them itself.
Another process may also commit the files of a running process, since every commit is a merge on the keys.
"""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

import pyarrow as pa
import pyarrow.compute as pc

from ....errors import StoreError
from ...model.storage import Folder, open_folder
from ..digests import DigestSet, digest_table, digests_of
from ..label_store import LabelStore
from ..rows import InputRow, LabelRow, input_table, label_table
from ..table import store_errors
from ..waiting_count import CLAIMS, DONE, OPEN, WAITING
from .memory import release_memory
from .presence import is_driven
from .row_files import DamagedFile, are_first, decode_rows, encode_rows, last_of_each_uri

COMMIT_SHARE = 0.01
"""Commits may use this share of the time …"""
FIRST_SECONDS = 0.05
"""(a run's first commit is assumed to take this long, in seconds)"""
CHEAP_SECONDS = 0.1
"""… and one that takes longer than this, in seconds, …"""
ROW_SECONDS = 40e-6
"""… waits until it costs at most this per row, in seconds …"""
MOST_ROWS = 65_536
"""… or has this many rows …"""
LONGEST_SECONDS = 600.0
"""… but no row waits longer than this, in seconds …"""
LARGEST_BYTES = 128 << 20
"""… and the rows of a commit are no larger than this."""

_LEASE = re.compile(r".+~[^~]+~[0-9]+")  # other files belong to other programs


class WaitingRows:
    """Receives the rows of a run in one process and commits them when that is cheap; call :meth:`flush` at the end."""

    def __init__(self, store: LabelStore, observer: Callable[[int, float], None] | None = None) -> None:
        """Create a receiver; ``observer`` is called after each commit with its number of inputs and its seconds."""
        self._store = store
        self._observer = observer
        self._folder = open_folder(store.path)
        self._process = secrets.token_hex(6)
        self._files: list[str] = []
        self._ids = DigestSet(digest_table(b""))  # ids of the images in them
        self._num_files = self._num_rows = self._num_bytes = 0
        self._seconds = FIRST_SECONDS  # duration of the last commit
        self._last = time.monotonic()
        self.is_ending = False
        """Set before the last rows are passed: they are committed together with the waiting ones, and need no file."""

    def has_id(self, id: str) -> bool:
        """Return True if the store holds the labels of an image, or they wait for a commit."""
        return bytes.fromhex(id) in self._ids or self._store.has_id(id)

    def commit(self, labels: Sequence[LabelRow], inputs: Sequence[InputRow]) -> None:
        """Accept rows; when this returns, they are committed or safe in a file. Raises :class:`StoreError`."""
        label_rows, input_rows = label_table(labels), input_table(inputs)
        self._num_rows += len(inputs)
        self._num_bytes += label_rows.nbytes + input_rows.nbytes
        if self._is_due():
            self._commit((label_rows, input_rows))
            return
        name = f"{WAITING}/{self._process}-{self._num_files:08d}~{len(inputs)}"
        with store_errors(f"cannot write to the label store {self._store.path}"):
            self._folder.write(name, encode_rows(label_rows, input_rows), sync=True)
        self._num_files += 1
        self._files.append(name)
        self._ids.add(digests_of(label_rows["id"]))

    def flush(self) -> None:
        """Commit every row that is waiting. Raises :class:`StoreError`; the files stay then."""
        if self._files:
            self._commit()

    def _is_due(self) -> bool:
        waited = time.monotonic() - self._last
        if self.is_ending or waited >= LONGEST_SECONDS or self._num_bytes >= LARGEST_BYTES:
            return True
        enough = min(self._seconds / ROW_SECONDS, MOST_ROWS) if self._seconds > CHEAP_SECONDS else 0
        return waited >= self._seconds / COMMIT_SHARE and self._num_rows >= enough

    def _commit(self, *fresh: tuple[pa.Table, pa.Table]) -> None:
        started = time.monotonic()
        is_damaged = _commit_files(self._store, self._folder, self._files, fresh)
        release_memory(self._num_bytes)
        self._last = time.monotonic()
        self._seconds = self._last - started
        if self._observer is not None:
            self._observer(self._num_rows, self._seconds)
        self._files, self._num_rows, self._num_bytes = [], 0, 0
        self._ids = DigestSet(digest_table(b""))
        if is_damaged:
            raise StoreError(f"files of {self._store.path} in {WAITING} were damaged; run the same command again")


def commit_waiting(store: LabelStore) -> None:
    """Commit the rows that killed processes left in files; raises :class:`StoreError`.

    A damaged file is dropped, so that its inputs are labeled again. Finished leases of a multi-process run are left to
    that run while it is active.
    """
    folder = open_folder(store.path)
    with store_errors(f"cannot read the label store {store.path}"):
        sizes = {f"{WAITING}/{name}": size for name, size in folder.names(WAITING).items()}
        if not is_driven(folder):
            sizes |= {f"{DONE}/{name}": size for name, size in folder.names(DONE).items() if _LEASE.fullmatch(name)}
    names: list[str] = []
    num_bytes = 0
    for name, size in sizes.items():
        names.append(name)
        num_bytes += size
        if num_bytes >= LARGEST_BYTES:
            _commit_files(store, folder, names)
            release_memory(num_bytes)
            names, num_bytes = [], 0
    if names:
        _commit_files(store, folder, names)
        release_memory(num_bytes)


def drop_plan(store: LabelStore) -> None:
    """Delete the unfinished leases of an ended multi-process run; does nothing while such a run is active.

    Call it when every input is labeled. Raises :class:`StoreError`.
    """
    folder = open_folder(store.path)
    with store_errors(f"cannot write to the label store {store.path}"):
        names = [f"{place}/{name}" for place in (OPEN, CLAIMS) for name in folder.names(place)]
        if names and not is_driven(folder):
            for name in names:
                folder.remove(name)


def _commit_files(
    store: LabelStore, folder: Folder, names: Sequence[str], fresh: Sequence[tuple[pa.Table, pa.Table]] = ()
) -> bool:
    """Commit the rows of files and ``fresh`` ones together, and delete the files; returns True if one was damaged."""
    parts: list[tuple[pa.Table, pa.Table]] = []
    is_damaged = False
    for name in names:
        try:
            with store_errors(f"cannot read the label store {store.path}"), suppress(FileNotFoundError):
                parts.append(decode_rows(folder.read(name))[:2])
        except DamagedFile:
            is_damaged = True
    parts.extend(fresh)
    if parts:
        labels, inputs = (pa.concat_tables([part[place] for part in parts]) for place in (0, 1))
        first = are_first(labels)
        labels = labels if first.all() else labels.filter(pa.array(first))  # which copies them
        inputs = last_of_each_uri(inputs)
        if is_damaged:  # other inputs may point to rows of the damaged file
            inputs = _with_labels(store, labels, inputs)
        store.commit_tables(labels, inputs)
    for name in names:
        folder.remove(name)
    return is_damaged


def _with_labels(store: LabelStore, labels: pa.Table, inputs: pa.Table) -> pa.Table:
    """Return the inputs that are rejects, or whose labels are in ``labels`` or in the newest version of the store."""
    newest = LabelStore.open(store.path, warn=False)
    ids = inputs["id"]
    is_known = pc.or_(pc.is_null(ids), pc.is_in(ids, value_set=labels["id"].combine_chunks()))
    unknown_rows = inputs.filter(pc.invert(is_known))
    newly_known = unknown_rows.filter(pa.array(newest.are_known(unknown_rows["id"]), pa.bool_()))
    return pa.concat_tables([inputs.filter(is_known), newly_known])
