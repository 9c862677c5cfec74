"""The label store: a folder with three Lance datasets and ``run.json``; :mod:`.schema` describes their columns.

* ``labels.lance``, one row per distinct image: label and weight maps;
* ``inputs.lance``, one row per input: the image it led to, or why it was rejected;
* ``reviews.lance``, decisions of people on labels;
* ``run.json``: everything that decides the labels. It is written last, so a folder with it is a complete store.

::

    store = LabelStore.open("labels")
    label, weight = store.read("photos/0001.jpg")     # (H, W) uint8 each
    for row in store.rejects():
        print(row.uri, row.error, row.message)

Every row exists exactly once, however runs end and however many processes write: every commit is a merge on the key.
Labels are committed before the inputs that point to them: after a crash between the two, the files are read once more.

A store object opens lazily, can be pickled to other processes, and is thread-safe. It reads all datasets at one
:class:`Moment`: that of its first use, or of its own last commit. Versions older than an hour are dropped when other
processes write; to read one moment for longer, :meth:`LabelStore.pin` it. Lance does not survive ``fork``: spawn
workers.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import compress, islice
from pathlib import Path
from typing import Any

import pyarrow as pa

from ...errors import StoreError
from ..inputs.identity import content_id
from ..inputs.sources import Item
from ..model.publishing import is_temporary, remove_leftovers
from ..model.storage import is_remote, location_of, repeated
from .digests import DIGEST_BYTES, DigestIndex, digest_table, digests_of
from .moments import Moment, pin_moment, unpin_moment
from .reader import SEGMENTS, StoreReader
from .rows import InputRow, LabelRow, ReviewRow, fingerprint, input_table, label_table, review_table
from .run_record import RUN_FILE, check_run, publish_run, read_run
from .schema import SCHEMAS
from .table import REPAIR, Table, store_errors
from .waiting_count import LEASES, warn_of_waiting_rows

__all__ = ["COMPACT_EVERY", "SEGMENTS", "InputRow", "LabelRow", "LabelStore", "Moment", "ReviewRow", "content_id"]

COMPACT_EVERY = 64
"""Number of commits between two compactions."""

# items whose digests are searched together: few at first, so that a slow listing yields items soon
_FIRST_CHUNK, _LARGEST_CHUNK = 1024, 4096
# input rows that a commit replaces: the file changed, or it was rejected before and is tried again
_OUTDATED = "source.fingerprint <> target.fingerprint OR target.error IS NOT NULL"


class LabelStore(StoreReader):
    """Labels of a corpus in a folder; the module's docstring describes the layout."""

    def _reset(self) -> None:
        super()._reset()
        self._write_lock = threading.Lock()
        self._commits = -1

    @classmethod
    def create(cls, path: str | os.PathLike[str], run: Mapping[str, Any]) -> LabelStore:
        """Create a store in a new or empty folder; ``run`` is plain data. Raises :class:`StoreError`."""
        folder = location_of(path)
        if (folder / RUN_FILE).exists():
            raise StoreError(f"{folder} already holds a label store; open it, or choose another folder")
        return cls._create(folder, run)

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        moment: Moment | None = None,
        storage_options: Mapping[str, Any] | None = None,
        warn: bool = True,
    ) -> LabelStore:
        """Open a store, at the newest moment or at ``moment``; ``storage_options`` are those of a URL's filesystem.

        Warns once per store, unless ``warn`` is False, if rows that a killed run finished wait for a commit: they are
        not read. Raises :class:`StoreError` if the folder holds no store of this format.
        """
        folder = location_of(path, storage_options)
        run = read_run(folder)
        for name in SCHEMAS:
            if not (folder / f"{name}.lance").is_dir():
                raise StoreError(f"the label store {folder} is damaged: {name}.lance is missing; {REPAIR}")
        if warn and moment is None:
            warn_of_waiting_rows(folder)
        return cls(folder, run, moment)

    @classmethod
    def open_or_create(
        cls, path: str | os.PathLike[str], run: Mapping[str, Any], *, storage_options: Mapping[str, Any] | None = None
    ) -> LabelStore:
        """Open the store that was created with ``run``, or create it.

        Files that killed processes left half written are removed. Processes that start at the same time agree on one
        store. Raises :class:`StoreMismatch` if the store was created with another ``run``; the message names the
        differences.
        """
        folder = location_of(path, storage_options)
        if not (folder / RUN_FILE).exists():
            return cls._create(folder, run)
        if not is_remote(folder):
            check_run(folder, read_run(folder), run)
            remove_leftovers(folder)
            with store_errors(f"cannot write to the label store {folder}"):
                for name in SCHEMAS:
                    Table(folder, name, None).drop_unfinished()
        store = cls.open(folder, warn=False)
        check_run(folder, store.run, run)
        return store

    @classmethod
    def _create(cls, folder: Path, run: Mapping[str, Any]) -> LabelStore:
        with store_errors(f"cannot create a label store in {folder}"):
            if is_remote(folder):
                return repeated(lambda: cls._create_in(folder, run))
            folder.mkdir(parents=True, exist_ok=True)
            remove_leftovers(folder)
            own = {RUN_FILE, LEASES, *(f"{name}.lance" for name in SCHEMAS)}
            if other_files := [
                name for name in sorted(os.listdir(folder)) if name not in own and not is_temporary(name)
            ]:
                raise StoreError(
                    f"{folder} is not empty (it holds {other_files[0]}) and not a label store; choose a new folder"
                )
            return cls._create_in(folder, run)

    @classmethod
    def _create_in(cls, folder: Path, run: Mapping[str, Any]) -> LabelStore:
        """Create missing datasets, then the record of the run."""
        store = cls(folder, run)
        for name, table in store._tables.items():
            table.create(folder, name)
            if table.open().count_rows() and not (folder / RUN_FILE).exists():
                raise StoreError(
                    f"{folder} holds {name} but no {RUN_FILE}, which records how they were made; choose another folder"
                )
        store.run = publish_run(folder, run)
        return store

    def pin(self, tag: str) -> LabelStore:
        """Return a read-only store at a pinned moment, which no cleanup drops.

        That is the moment of an existing pin named ``tag``, or else the current moment, which is pinned under this
        name. :meth:`unpin` releases it. Raises :class:`StoreError`.
        """
        with store_errors(f"cannot pin a version of the label store {self.path}"):
            return LabelStore(self.path, self.run, pin_moment(self._tables, tag))

    def has_pin(self, tag: str) -> bool:
        """Return True if a moment is pinned under the name ``tag``. Raises :class:`StoreError`."""
        with store_errors(f"cannot read the pins of the label store {self.path}"):
            return any(tag in table.open().tags.list() for table in self._tables.values())

    def unpin(self, tag: str) -> None:
        """Release the moment that is pinned as ``tag``; does nothing if there is none. Raises :class:`StoreError`."""
        with store_errors(f"cannot release a version of the label store {self.path}"):
            unpin_moment(self._tables, tag)

    def plan(
        self,
        items: Iterable[Item],
        *,
        retry_rejects: bool = False,
        condition: Callable[[str], str] | None = None,
        leased: bytes = b"",
    ) -> Iterator[Item]:
        """Yield the items to process, in order: unknown ones and those whose size, stamp or condition changed.

        Only ``inputs.lance`` is read, 16 bytes per input. With ``retry_rejects``, rejects are processed again.
        ``condition`` returns the condition of a uri. Inputs with a fingerprint in ``leased``, 16 bytes each, are left
        out as well.
        """
        where = "error IS NULL" if retry_rejects else None
        with store_errors(f"cannot read the label store {self.path}"):
            batches = self._dataset("inputs").to_batches(columns=["fingerprint"], filter=where)
            return _unfinished(items, (batch.column(0) for batch in batches), condition or (lambda _: ""), leased)

    def commit(self, labels: Sequence[LabelRow], inputs: Sequence[InputRow]) -> None:
        """Add labels, then inputs, each all or nothing; safe against other writers of the same rows.

        Existing labels are kept. An input replaces the row of its uri if that is a reject or the file changed. Raises
        :class:`StoreError`; earlier commits are safe then, and the same commit may be repeated.
        """
        new_labels = list({row.id: row for row in labels}.values())
        finished = list({row.uri: row for row in inputs}.values())
        self.commit_tables(label_table(new_labels), input_table(finished))

    def commit_tables(self, labels: pa.Table, inputs: pa.Table) -> None:
        """Commit as :meth:`commit`, from tables with the columns of the datasets; keys are distinct in each table."""
        with self._writing():
            if len(labels):
                self._tables["labels"].merge(labels)
                if self._known is not None:
                    self._known.add(digests_of(labels["id"]))
            if len(inputs):
                self._tables["inputs"].merge(inputs, replace=_OUTDATED)

    def merge_rows(self, dataset: str, rows: pa.Table) -> None:
        """Add rows of another store's ``inputs``, of which later ones replace earlier ones, or ``reviews``."""
        with self._writing():
            self._tables[dataset].merge(rows, replace="source.time > target.time" if dataset == "inputs" else None)

    def stores_with(self, id: str) -> list[LabelStore]:
        """Return the stores that hold the labels of an image: this one, or those of several that are read as one."""
        return [self] if self.has_id(id) else []

    def commit_reviews(self, reviews: Sequence[ReviewRow]) -> None:
        """Add reviews, all or nothing; rows with the key of an existing one are dropped. Raises StoreError."""
        distinct = list({(row.id, row.reviewer, row.time): row for row in reviews}.values())
        if distinct:
            with self._writing():
                self._tables["reviews"].merge(review_table(distinct))

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Serialize commits, update the moment that is read, and compact from time to time."""
        if self._fixed is not None:
            raise StoreError(f"this object reads {self.path} at one moment; open the store again to write")
        with self._write_lock, store_errors(f"cannot write to the label store {self.path}"):
            try:
                yield
            finally:
                self._datasets = self._reviews = None
            if self._commits < 0:
                # short runs leave fragments as well
                self._commits = self._tables["inputs"].num_small_fragments() - 1
            self._commits += 1
            if self._commits >= COMPACT_EVERY:
                self._commits = 0
                for table in self._tables.values():
                    with suppress(OSError):  # another writer compacts, or the disk is full: a later commit will compact
                        table.compact()


def _unfinished(
    items: Iterable[Item],
    fingerprints: Iterable[pa.FixedSizeBinaryArray],
    condition: Callable[[str], str],
    more_fingerprints: bytes = b"",
) -> Iterator[Item]:
    """Return the items whose fingerprints are not among ``fingerprints`` or ``more_fingerprints``, in order.

    The fingerprints are read at once, 16 bytes per input; the items as they are needed.
    """
    digests = [more_fingerprints]
    for column in fingerprints:
        start = column.offset * DIGEST_BYTES
        digests.append(column.buffers()[1][start : start + len(column) * DIGEST_BYTES].to_pybytes())
    finished = DigestIndex(digest_table(b"".join(digests)))
    return _missing(iter(items), finished, condition)


def _missing(items: Iterator[Item], finished: DigestIndex, condition: Callable[[str], str]) -> Iterator[Item]:
    size = _FIRST_CHUNK
    while chunk := list(islice(items, size)):
        digests = [fingerprint(item.uri, item.size, item.stamp, condition(item.uri)) for item in chunk]
        is_missing = finished.find(digest_table(b"".join(digests))) < 0
        yield from compress(chunk, is_missing.tolist())
        size = min(2 * size, _LARGEST_CHUNK)
