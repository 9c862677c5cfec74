"""The label store: a folder with three Lance datasets and ``run.json``; :mod:`.schema` describes their columns.

* ``labels.lance``, one row per distinct image: label and weight maps;
* ``inputs.lance``, one row per input: the image it led to, or why it was rejected;
* ``reviews.lance``, decisions of people on labels;
* ``run.json``: everything that decides the labels. It is written last, so a folder with it is a complete store.

::

    store = LabelStore.open("labels")
    label, weight = store.read("/photos/1.jpg")     # (H, W) uint8 each
    for row in store.rejects():
        print(row.uri, row.error, row.message)

Every row exists exactly once, however runs end and however many processes write: every commit is a merge on the key.
Labels are committed before the inputs that point to them: a crash between the two costs one more reading of the files.

A store object opens lazily, may be pickled to other processes and used by any thread. It reads all datasets at one
:class:`Moment`: that of its first use, or of its own last commit. Versions older than an hour are dropped when others
write; to read one moment for longer, :meth:`LabelStore.pin` it. Lance does not survive ``fork``: spawn workers.
"""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import lance
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ...errors import StoreError
from ..inputs.identity import content_id
from ..inputs.sources import Item
from ..model.publishing import is_temporary, remove_leftovers
from .digests import DigestIndex, DigestSet, digest_table
from .lookup import only_match, unfinished
from .moments import Moment, moment_of, open_moment, pin_moment, unpin_moment
from .reviews import current, reviewed_maps
from .rows import InputRow, LabelRow, ReviewRow, input_table, label_table, review_table, row_fault, to_row
from .run_record import RUN_FILE, check_run, publish_run, read_run
from .schema import KEYS, SCHEMAS, covered_columns
from .table import REPAIR, Table, store_errors

__all__ = ["COMPACT_EVERY", "SEGMENTS", "InputRow", "LabelRow", "LabelStore", "Moment", "ReviewRow", "content_id"]

SEGMENTS = "segments"
"""Value of ``maps`` in the run record of a store whose maps hold segment numbers; other stores hold classes."""

COMPACT_EVERY = 64
"""Number of commits between two compactions."""

# Lance keeps metadata of versions that are gone; its own limits let a long run grow by hundreds of megabytes
_CACHE_BYTES = 16 << 20
# input rows that a commit replaces: the file changed, or it was rejected before and is tried again
_OUTDATED = "source.fingerprint <> target.fingerprint OR target.error IS NOT NULL"


class LabelStore:
    """Labels of a corpus in a folder; the module's docstring describes the layout."""

    def __init__(self, path: Path, run: Mapping[str, Any], moment: Moment | None = None) -> None:
        self.path = path
        """Folder of the store."""
        self.run: dict[str, Any] = dict(run)
        """Everything that decides the labels, as given when the store was created."""
        self._fixed = moment
        self._reset()

    def _reset(self) -> None:
        self._lock = threading.RLock()
        self._write_lock = threading.Lock()
        session = lance.Session(index_cache_size_bytes=_CACHE_BYTES, metadata_cache_size_bytes=_CACHE_BYTES)
        self._tables = {name: Table(self.path, name, session) for name in SCHEMAS}
        self._datasets: dict[str, Any] | None = None
        self._reviews: dict[str, ReviewRow] | None = None
        self._known: DigestSet | None = None
        self._rows: tuple[int, DigestIndex] | None = None
        self._commits = -1

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "run": self.run, "_fixed": self._fixed}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._reset()

    def __repr__(self) -> str:
        return f"LabelStore({str(self.path)!r})"

    @classmethod
    def create(cls, path: str | os.PathLike[str], run: Mapping[str, Any]) -> LabelStore:
        """Create a store in a new or empty folder; ``run`` is plain data. Raises :class:`StoreError`."""
        folder = Path(path)
        if (folder / RUN_FILE).exists():
            raise StoreError(f"{folder} already holds a label store; open it, or choose another folder")
        return cls._create(folder, run)

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, moment: Moment | None = None) -> LabelStore:
        """Open a store, at the newest moment or at ``moment``.

        Raises :class:`StoreError` if the folder holds no store of this format.
        """
        folder = Path(path)
        run = read_run(folder)
        for name in SCHEMAS:
            if not (folder / f"{name}.lance").is_dir():
                raise StoreError(f"the label store {folder} is damaged: {name}.lance is missing; {REPAIR}")
        return cls(folder, run, moment)

    @classmethod
    def open_or_create(cls, path: str | os.PathLike[str], run: Mapping[str, Any]) -> LabelStore:
        """Open the store that was created with ``run``, or create it.

        Files that killed processes left half written are removed. Processes that start at the same time agree on one
        store. Raises :class:`StoreMismatch` if the store was created with another ``run``; the message names the
        differences.
        """
        folder = Path(path)
        if not (folder / RUN_FILE).exists():
            return cls._create(folder, run)
        store = cls.open(folder)
        check_run(folder, store.run, run)
        remove_leftovers(folder)
        return store

    @classmethod
    def _create(cls, folder: Path, run: Mapping[str, Any]) -> LabelStore:
        with store_errors(f"cannot create a label store in {folder}"):
            folder.mkdir(parents=True, exist_ok=True)
            remove_leftovers(folder)
            own = {RUN_FILE, *(f"{name}.lance" for name in SCHEMAS)}
            if others := [name for name in sorted(os.listdir(folder)) if name not in own and not is_temporary(name)]:
                raise StoreError(
                    f"{folder} is not empty (it holds {others[0]}) and not a label store; choose a new folder"
                )
            store = cls(folder, run)
            for name, table in store._tables.items():
                table.create(folder, name)
                if table.open().count_rows() and not (folder / RUN_FILE).exists():
                    raise StoreError(
                        f"{folder} holds {name} but no {RUN_FILE}, which says how they were made; choose another folder"
                    )
            store.run = publish_run(folder, run)
            return store

    @property
    def classes(self) -> dict[str, Any]:
        """Classes of the label maps, as :meth:`Taxonomy.to_json` writes them.

        Raises :class:`StoreError` if the maps hold segment numbers, which have no classes.
        """
        if self.run.get("maps") == SEGMENTS:
            raise StoreError(f"{self.path} holds segments without classes (made by `maskmill segment`)")
        return self.run["classes"]

    @property
    def moment(self) -> Moment:
        """Versions that this object reads."""
        return moment_of(self._open_all())

    def pin(self, tag: str) -> LabelStore:
        """Return a read-only store at a tagged moment, which no cleanup drops: now, or that of an earlier pin ``tag``.

        :meth:`unpin` releases it. Raises :class:`StoreError`.
        """
        with store_errors(f"cannot pin a version of the label store {self.path}"):
            return LabelStore(self.path, self.run, pin_moment(self._tables, tag))

    def has_pin(self, tag: str) -> bool:
        """Return True if a moment is pinned under this name. Raises :class:`StoreError`."""
        with store_errors(f"cannot read the pins of the label store {self.path}"):
            return any(tag in table.open().tags.list() for table in self._tables.values())

    def unpin(self, tag: str) -> None:
        """Release a pinned moment; nothing happens if there is none of this name. Raises :class:`StoreError`."""
        with store_errors(f"cannot release a version of the label store {self.path}"):
            unpin_moment(self._tables, tag)

    def plan(
        self,
        items: Iterable[Item],
        *,
        retry_rejects: bool = False,
        condition: Callable[[str], str] | None = None,
    ) -> Iterator[Item]:
        """Yield the items to process, in order: unknown ones and those whose size, stamp or condition changed.

        Only ``inputs.lance`` is read, 16 bytes per input. With ``retry_rejects``, rejects are processed again.
        ``condition`` returns the condition of a uri.
        """
        where = "error IS NULL" if retry_rejects else None
        with store_errors(f"cannot read the label store {self.path}"):
            batches = self._dataset("inputs").to_batches(columns=["fingerprint"], filter=where)
            return unfinished(items, (batch.column(0) for batch in batches), condition or (lambda _: ""))

    def has_id(self, id: str) -> bool:
        """Return True if the store holds these labels, as far as this object has seen."""
        known = self._known
        if known is None:
            with self._lock:
                known = self._known = self._known or DigestSet(self._id_table())
        return bytes.fromhex(id) in known

    def commit(self, labels: Sequence[LabelRow], inputs: Sequence[InputRow]) -> None:
        """Add labels, then inputs, each all or nothing; safe against other writers of the same rows.

        Existing labels are kept. An input replaces the row of its uri if that is a reject or the file changed. Raises
        :class:`StoreError`; earlier commits are safe then, and the same commit may be repeated.
        """
        new_labels = list({row.id: row for row in labels}.values())
        latest = list({row.uri: row for row in inputs}.values())
        with self._writing():
            if new_labels:
                self._tables["labels"].merge(label_table(new_labels))
                if self._known is not None:
                    for row in new_labels:
                        self._known.add(bytes.fromhex(row.id))
            if latest:
                self._tables["inputs"].merge(input_table(latest), replace=_OUTDATED)

    def commit_reviews(self, reviews: Sequence[ReviewRow]) -> None:
        """Add reviews, all or nothing; rows with the key of an existing one are dropped. Raises StoreError."""
        distinct = list({(row.id, row.reviewer, row.time): row for row in reviews}.values())
        if distinct:
            with self._writing():
                self._tables["reviews"].merge(review_table(distinct))

    def find(self, name: str) -> InputRow:
        """Find a labeled input by its uri, by the end of its path, or by its file name with or without extension.

        Raises :class:`UsageError` if no input or more than one matches, or the input was rejected.
        """
        quoted = name.replace("'", "''")
        rows = list(self._inputs(f"uri = '{quoted}'"))
        return only_match(self.path, name, rows or self._inputs("id IS NOT NULL"))

    def read(self, name: str) -> tuple[NDArray[Any], NDArray[np.uint8]]:
        """Read the label map and the weight map, (H, W) each, of one input, found as by :meth:`find`."""
        id = self.find(name).id
        assert id is not None, "found inputs have labels"
        return self.read_id(id)

    def read_id(self, id: str) -> tuple[NDArray[Any], NDArray[np.uint8]]:
        """Read label and weight map as :meth:`maps` does. Raises :class:`StoreError` if there are none."""
        (row,) = self.take([id])
        return self.maps(row)

    def maps(self, row: LabelRow, *, reviewed: bool = True) -> tuple[NDArray[Any], NDArray[np.uint8]]:
        """Decode label and weight map, (H, W) each, of a row of :meth:`take`.

        Pixels that a person corrected win, with full weight; ``reviewed=False`` returns what the model made. Raises
        :class:`StoreError` if the row is damaged.
        """
        reviews = self._reviews
        if reviews is None:
            with self._lock:
                reviews = self._reviews = self.current_reviews()
        try:
            return reviewed_maps(row, reviews.get(row.id) if reviewed else None, self.run.get("classes"))
        except ValueError as error:
            raise StoreError(f"the maps of {row.id} in {self.path} cannot be read: {error}; {REPAIR}") from error

    def __len__(self) -> int:
        """Return the number of labeled images."""
        with store_errors(f"cannot read the label store {self.path}"):
            return self._dataset("labels").count_rows()

    def ids(self) -> list[str]:
        """Return the ids of the labeled images."""
        return self.table(["id"])["id"].to_pylist()

    def take(self, ids: Sequence[str], *, extras: bool = False) -> list[LabelRow]:
        """Read label rows by id, in the order of ``ids``; with ``extras``, scores, features and other optional columns.

        Raises :class:`StoreError` if there are no labels with an id, or a row does not match its hash.
        """
        with store_errors(f"cannot read the label store {self.path}"), self._lock:
            dataset = self._dataset("labels")
            if self._rows is None or self._rows[0] != dataset.version:
                self._rows = dataset.version, DigestIndex(self._id_table())
            index = self._rows[1]
        numbers = index.find(digest_table(bytes.fromhex("".join(ids))))
        if (numbers < 0).any():
            raise StoreError(f"{self.path} holds no labels of {ids[int(np.argmin(numbers))]}; label the image again")
        with store_errors(f"cannot read the label store {self.path}"):
            records = dataset.take(numbers.tolist(), columns=self._columns(dataset, extras)).to_pylist()
        rows = list(self._checked(LabelRow, "labels", dataset, records))
        for id, row in zip(ids, rows, strict=True):
            if row.id != id:
                raise StoreError(f"{self.path} holds {row.id} at the place of {id}; {REPAIR}")
        return rows

    def iter_rows(self, *, extras: bool = False, batch_size: int = 256) -> Iterator[LabelRow]:
        """Read all label rows, checking their hashes; ``extras`` as in :meth:`take`. Raises :class:`StoreError`."""
        with store_errors(f"cannot read the label store {self.path}"):
            dataset = self._dataset("labels")
            columns = self._columns(dataset, extras)
            for batch in dataset.to_batches(columns=columns, batch_size=batch_size):
                yield from self._checked(LabelRow, "labels", dataset, batch.to_pylist())

    def table(self, columns: Sequence[str], dataset: str = "labels") -> pa.Table:
        """Read columns of a dataset for statistics; rows are not checked against their hashes."""
        with store_errors(f"cannot read the label store {self.path}"):
            return self._dataset(dataset).to_table(columns=list(columns))

    def inputs(self) -> Iterator[InputRow]:
        """Yield every input, labeled or rejected."""
        return self._inputs(None)

    def rejects(self) -> Iterator[InputRow]:
        """Yield the rejected inputs."""
        return self._inputs("error IS NOT NULL")

    def reviews(self) -> Iterator[ReviewRow]:
        """Yield every review, withdrawn ones included."""
        with store_errors(f"cannot read the label store {self.path}"):
            dataset = self._dataset("reviews")
            for batch in dataset.to_batches():
                yield from self._checked(ReviewRow, "reviews", dataset, batch.to_pylist())

    def current_reviews(self) -> dict[str, ReviewRow]:
        """Return the review that holds for each reviewed id: the latest, unless it withdraws the earlier ones."""
        return current(self.reviews())

    def summary(self) -> dict[str, Any]:
        """Count ``inputs``, ``images``, ``rejects`` by kind, ``reviewed`` images and ``bytes`` on disk."""
        with store_errors(f"cannot read the label store {self.path}"):
            inputs = self._dataset("inputs")
            errors = inputs.to_table(columns=["error"], filter="error IS NOT NULL")["error"].to_pylist()
            return {
                "inputs": inputs.count_rows(),
                "images": len(self),
                "rejects": dict(sorted(Counter(errors).items())),
                "reviewed": len(self.current_reviews()),
                "bytes": sum(file.stat().st_size for file in self.path.rglob("*") if file.is_file()),
            }

    def _inputs(self, condition: str | None) -> Iterator[InputRow]:
        with store_errors(f"cannot read the label store {self.path}"):
            dataset = self._dataset("inputs")
            for batch in dataset.to_batches(filter=condition):
                yield from self._checked(InputRow, "inputs", dataset, batch.to_pylist())

    def _checked(self, kind: Any, name: str, dataset: Any, records: Iterable[dict[str, Any]]) -> Iterator[Any]:
        """Turn records into rows, each checked against its hash."""
        covered = covered_columns(dataset.schema)
        for record in records:
            if fault := row_fault(name, covered, record):
                key = record[KEYS[name][0]]
                raise StoreError(f"the row {key} of {self.path / name}.lance is damaged: {fault}; {REPAIR}")
            yield to_row(kind, record)

    @staticmethod
    def _columns(dataset: Any, extras: bool) -> list[str]:
        columns = [*covered_columns(dataset.schema), "row_hash"]
        return columns + [*covered_columns(dataset.schema, "extra_hash"), "extra_hash"] if extras else columns

    def _dataset(self, name: str) -> Any:
        """Return the handle for readers; all handles are opened together."""
        return self._open_all()[name]

    def _open_all(self) -> dict[str, Any]:
        datasets = self._datasets
        if datasets is None:
            with self._lock, store_errors(f"cannot open the label store {self.path}"):
                datasets = self._datasets = self._datasets or open_moment(self._tables, self._fixed)
        return datasets

    def _id_table(self) -> NDArray[np.uint64]:
        with store_errors(f"cannot read the label store {self.path}"):
            batches = self._dataset("labels").to_batches(columns=["id"])
            return digest_table(b"".join([bytes.fromhex("".join(batch["id"].to_pylist())) for batch in batches]))

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Commit one after the other, let readers see the result, and compact from time to time."""
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
                    with suppress(OSError):  # another writer compacts, or the disk is full: the next turn does it
                        table.compact()
