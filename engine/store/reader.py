"""Reading a label store: rows by id or name, maps under reviews, whole columns; all at one moment."""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import lance
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ...errors import StoreError, UsageError
from ..inputs.archives import split_member
from ..inputs.names import image_id
from ..model.schema import read_value
from ..model.storage import folder_bytes
from ..reading.geotiff import Windows, split_window
from .digests import DigestIndex, DigestSet, digest_table, digests_of
from .moments import Moment, moment_of, open_moment
from .reviews import current, reviewed_maps
from .rows import InputRow, LabelRow, ReviewRow, row_fault, to_row
from .schema import KEYS, SCHEMAS, covered_columns
from .table import REPAIR, Table, store_errors

SEGMENTS = "segments"
"""Value of ``maps`` in the run record of a store whose maps hold segment numbers; other stores hold classes."""

# rows of tables, and members of archives
_LABELED_MEMBERS = "id IS NOT NULL AND uri LIKE '%::%'"

# Lance caches metadata of dropped versions; with its default limits a long run grows by hundreds of megabytes
_CACHE_BYTES = 16 << 20


class StoreReader:
    """The read methods of :class:`maskmill.engine.store.label_store.LabelStore`."""

    def __init__(self, path: Path, run: Mapping[str, Any], moment: Moment | None = None) -> None:
        self.path = path
        """Folder of the store."""
        self.run: dict[str, Any] = dict(run)
        """Everything that decides the labels, as given when the store was created."""
        self._fixed = moment
        self._reset()

    def _reset(self) -> None:
        self._lock = threading.RLock()
        session = lance.Session(index_cache_size_bytes=_CACHE_BYTES, metadata_cache_size_bytes=_CACHE_BYTES)
        self._tables = {name: Table(self.path, name, session) for name in SCHEMAS}
        self._datasets: dict[str, Any] | None = None
        self._reviews: dict[str, ReviewRow] | None = None
        self._known: DigestSet | None = None
        self._rows: tuple[int, DigestIndex] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "run": self.run, "_fixed": self._fixed}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._reset()

    def __repr__(self) -> str:
        return f"LabelStore({str(self.path)!r})"

    @property
    def folders(self) -> list[Path]:
        """Folders that are read: one, or several if several stores are read as one."""
        return [self.path]

    @property
    def classes(self) -> dict[str, Any]:
        """Classes of the label maps, as :meth:`Taxonomy.to_json` writes them.

        Raises :class:`StoreError` if the maps hold segment numbers, which have no classes.
        """
        if self.run.get("maps") == SEGMENTS:
            raise StoreError(
                f"{self.path} holds segments without classes (made by `maskmill segment`), and this needs classes: use "
                "`maskmill label` or `label-prompted`; `maskmill show STORE IMAGE` draws the segments of an image"
            ).of_the_call()
        return self.run["classes"]

    @property
    def windows(self) -> Windows | None:
        """Windows by which larger files were read, each an image in the store; None if files were read whole."""
        windows = self.run.get("windows")
        return None if windows is None else read_value(Windows, windows, "windows")

    @property
    def moment(self) -> Moment:
        """Versions that this object reads."""
        return moment_of(self._open_all())

    def has_id(self, id: str) -> bool:
        """Return True if the store holds these labels, at the moment that this object reads."""
        return bytes.fromhex(id) in self._known_ids()

    def are_known(self, ids: pa.ChunkedArray) -> NDArray[np.bool_]:
        """Return for each of n ids, (n,) bool, if the store holds these labels, as :meth:`has_id` does."""
        return self._known_ids().contains(digest_table(digests_of(ids)))

    def _known_ids(self) -> DigestSet:
        known = self._known
        if known is None:
            with self._lock:
                known = self._known = self._known or DigestSet(self._id_table())
        return known

    def find(self, name: str) -> InputRow:
        """Find a labeled input by its uri, by the end of its path, or by its file name with or without extension.

        Raises :class:`UsageError` if no input or more than one matches, or the input was rejected.
        """
        quoted = name.replace("'", "''")
        rows = list(self._inputs(f"uri = '{quoted}'"))
        return _only_match(self.path, name, rows or self._inputs("id IS NOT NULL"))

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

        Pixels that a person corrected win, with full weight; ``reviewed=False`` returns the model's labels. Raises
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
                raise StoreError(f"{self.path} holds {row.id} in place of {id}; {REPAIR}")
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

    def batches(self, dataset: str) -> Iterator[pa.RecordBatch]:
        """Yield all columns of a dataset, a few thousand rows at a time; rows are not checked against their hashes."""
        with store_errors(f"cannot read the label store {self.path}"):
            opened = self._dataset(dataset)
            yield from opened.to_batches(columns=opened.schema.names, batch_size=4096)

    def inputs(self) -> Iterator[InputRow]:
        """Yield every input, labeled or rejected."""
        return self._inputs(None)

    def current_inputs(self) -> Iterator[InputRow]:
        """Yield every input, without labeled rows of a table that have moved to another place in a later version of it.

        Rows of a table are identified by place and name; if a later version of the table has a name at another place,
        the earlier row is outdated. Images without a name cannot be tracked.
        """
        outdated = self._moved_rows()
        return (row for row in self.inputs() if row.uri not in outdated)

    def _moved_rows(self) -> set[str]:
        with store_errors(f"cannot read the label store {self.path}"):
            batches = self._dataset("inputs").to_batches(columns=["uri", "stamp", "time"], filter=_LABELED_MEMBERS)
            places: dict[tuple[str, str], list[tuple[int, str, str]]] = {}
            for batch in batches:
                for row in batch.to_pylist():
                    if member := split_member(row["uri"]):
                        places.setdefault(member, []).append((row["time"], row["stamp"], row["uri"]))
        outdated = set()
        for rows in places.values():
            stamp = max(rows)[1]
            outdated.update(uri for _, other, uri in rows if other != stamp)
        return outdated

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
        """Return the current review of each reviewed id: the latest, unless it withdraws the earlier ones."""
        return current(self.reviews())

    @property
    def num_inputs(self) -> int:
        """Number of inputs, labeled or rejected."""
        with store_errors(f"cannot read the label store {self.path}"):
            return self._dataset("inputs").count_rows()

    def counts(self) -> dict[str, int]:
        """Count ``images``, ``inputs`` and ``rejects`` without reading rows."""
        with store_errors(f"cannot read the label store {self.path}"):
            inputs = self._dataset("inputs")
            rejects = inputs.count_rows(filter="error IS NOT NULL")
            return {"images": len(self), "inputs": inputs.count_rows(), "rejects": rejects}

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
                "bytes": sum(folder_bytes(folder) for folder in self.folders),
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
            return digest_table(b"".join([digests_of(batch["id"]) for batch in batches]))


def _only_match(store: Path, name: str, rows: Iterable[InputRow]) -> InputRow:
    """Return the labeled input whose uri, end of the path, or file name with or without extension is ``name``.

    Raises :class:`UsageError` if no input or more than one matches, or the input was rejected.
    """
    matches, windows = [], []
    for row in rows:
        if row.uri == name or row.uri.endswith("/" + name) or image_id(row.uri) == name:
            matches.append(row)
        elif (part := split_window(row.uri)) is not None and (part[0] == name or part[0].endswith("/" + name)):
            windows.append(os.path.basename(row.uri))
    if not matches:
        if windows:
            text = f"{store} holds {name} as {len(windows)} windows, each an image of its own"
            raise UsageError(f"{text}; name one, such as {', '.join(sorted(windows)[:3])}")
        raise UsageError(
            f"{store} holds no image {name}, and {name} is no label store; give an image by its uri, the end of its "
            "path or its file name, or a folder that holds a label store"
        )
    if len(matches) > 1:
        raise UsageError(
            f"{name} matches {len(matches)} images of {store} ({matches[0].uri}, {matches[1].uri}, …); give the uri"
        )
    if matches[0].id is None:
        raise UsageError(f"{matches[0].uri} was rejected ({matches[0].error}: {matches[0].message}); it has no labels")
    return matches[0]
