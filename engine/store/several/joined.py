"""Several label stores that were made with the same options, read as one, without copying anything.

::

    store = open_stores(["labels-a", "labels-b"])
    label, weight = store.read("photos/0001.jpg")

The rule for rows that several stores hold is that of :func:`maskmill.engine.store.several.merge.merge_stores`: an image
is read from the first store that holds it, of several results of one input the latest wins, and reviews are joined. A
new review goes into every store that holds the image.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ....errors import StoreError, UsageError
from ...reading.remote_path import RemotePath
from ..label_store import LabelStore
from ..moments import Moment
from ..rows import ReviewRow
from ..schema import KEYS, SCHEMAS
from ..table import store_errors
from .merge import KEPT_SCORES, check_alike


def open_stores(
    stores: Sequence[str | os.PathLike[str]], *, storage_options: Mapping[str, Any] | None = None
) -> LabelStore:
    """Open one store, or several that are read as one.

    ``stores`` are folders or URLs, ``storage_options`` the options of the URLs' filesystem. Raises
    :class:`StoreMismatch` if the stores were made with different options, :class:`StoreError`, and :class:`UsageError`
    if a store is named twice.
    """
    opened_stores = [LabelStore.open(store, storage_options=storage_options) for store in stores]
    if not opened_stores:
        raise UsageError("expected one or more label stores")
    if len({str(store.path.absolute()) for store in opened_stores}) < len(opened_stores):
        raise UsageError(
            f"expected different label stores, got {', '.join(str(store.path) for store in opened_stores)}"
        )
    return opened_stores[0] if len(opened_stores) == 1 else JoinedStores(opened_stores)


class JoinedStores(LabelStore):
    """Label stores that are read as one; only reviews can be written to them."""

    def __init__(self, stores: Sequence[LabelStore]) -> None:
        """Join stores; raises :class:`StoreMismatch` if they were made with different options."""
        for store in stores[1:]:
            check_alike(stores[0], store, for_reading=True)
        run = dict(stores[0].run)
        if any(store.run.get(KEPT_SCORES) != run.get(KEPT_SCORES) for store in stores):
            run.pop(KEPT_SCORES, None)
        self._stores = list(stores)
        names = ", ".join(str(store.path) for store in stores)
        # a Path would drop a slash of s3://
        path: Any = RemotePath(names) if "://" in names else Path(names)
        super().__init__(path, run)
        self._fixed = Moment(labels=0, inputs=0, reviews=0)  # it is read-only

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_stores": self._stores}

    @property
    def folders(self) -> list[Path]:
        """Folders of the stores."""
        return [store.path for store in self._stores]

    @property
    def moment(self) -> Moment:
        """Sums of the versions that are read; they change when any of the stores is written to."""
        moments = [store.moment for store in self._stores]
        return Moment(**{name: sum(getattr(moment, name) for moment in moments) for name in SCHEMAS})

    def stores_with(self, id: str) -> list[LabelStore]:
        """Return the stores that hold the labels of an image."""
        return [store for store in self._stores if store.has_id(id)]

    def commit_reviews(self, reviews: Sequence[ReviewRow]) -> None:
        """Add each review to every store that holds its image, all or nothing in each; raises :class:`StoreError`."""
        try:
            for store in self._stores:
                store.commit_reviews([row for row in reviews if store.has_id(row.id)])
        finally:
            self._datasets = self._reviews = None

    def pin(self, tag: str) -> LabelStore:
        """Raise :class:`StoreError`: several stores have no common moment."""
        raise StoreError(f"{self.path} are several stores; pin each of them")

    def _open_all(self) -> dict[str, Any]:
        datasets = self._datasets
        if datasets is None:
            with self._lock, store_errors(f"cannot open the label stores {self.path}"):
                if self._datasets is None:
                    opened_parts = [store._open_all() for store in self._stores]
                    self._datasets = {name: _Joined(name, [parts[name] for parts in opened_parts]) for name in SCHEMAS}
                datasets = self._datasets
        return datasets


class _Joined:
    """Datasets of one name, read as one dataset without the rows that another of them replaces."""

    def __init__(self, name: str, parts: Sequence[Any]) -> None:
        self._name, self._parts = name, parts
        self._replaced = _replaced_keys(name, parts)
        self._rows: list[NDArray[np.int64]] | None = None
        self.schema: pa.Schema = parts[0].schema
        self.version: int = sum(part.version for part in parts)

    def count_rows(self, filter: str | None = None) -> int:
        """Count the rows that satisfy a condition."""
        if not any(len(keys) for keys in self._replaced):
            return sum(part.count_rows(filter=filter) for part in self._parts)
        return sum(len(batch) for batch in self.to_batches(columns=KEYS[self._name], filter=filter))

    def to_batches(
        self, columns: Sequence[str] | None = None, filter: str | None = None, batch_size: int | None = None
    ) -> Iterator[pa.RecordBatch]:
        """Yield batches of rows, one dataset after the other."""
        names = list(self.schema.names if columns is None else columns)
        for part, replaced in zip(self._parts, self._replaced, strict=True):
            read_columns = names if not len(replaced) else list(dict.fromkeys([*names, *KEYS[self._name]]))
            for batch in part.to_batches(columns=read_columns, filter=filter, batch_size=batch_size):
                if not len(replaced):
                    yield batch
                    continue
                remainder = batch.filter(pc.invert(pc.is_in(_keys(self._name, batch), value_set=replaced)))
                yield remainder.select(names)

    def to_table(self, columns: Sequence[str] | None = None, filter: str | None = None) -> pa.Table:
        """Return rows as a table."""
        names = list(self.schema.names if columns is None else columns)
        schema = pa.schema([self.schema.field(name) for name in names])
        return pa.Table.from_batches(list(self.to_batches(names, filter)), schema)

    def take(self, indices: Sequence[int], columns: Sequence[str]) -> pa.Table:
        """Return the rows at positions among all rows, in the order of ``indices``."""
        rows = self._row_numbers()
        numbers = np.asarray(indices, np.int64)
        starts = np.cumsum([0, *(len(part) for part in rows)])
        owner = np.searchsorted(starts, numbers, side="right") - 1
        tables, order = [], []
        for index, part in enumerate(self._parts):
            places = np.flatnonzero(owner == index)
            if len(places):
                tables.append(part.take(rows[index][numbers[places] - starts[index]].tolist(), columns=list(columns)))
                order.append(places)
        if not tables:
            return pa.schema([self.schema.field(name) for name in columns]).empty_table()
        return pa.concat_tables(tables).take(np.argsort(np.concatenate(order)))

    def _row_numbers(self) -> list[NDArray[np.int64]]:
        """Return for each dataset the numbers of the rows that are read."""
        if self._rows is None:
            rows: list[NDArray[np.int64]] = []
            for part, replaced in zip(self._parts, self._replaced, strict=True):
                if not len(replaced):
                    rows.append(np.arange(part.count_rows()))
                    continue
                keys = _keys(self._name, part.to_table(columns=KEYS[self._name]))
                is_replaced = pc.is_in(keys, value_set=replaced)
                rows.append(np.flatnonzero(~np.asarray(is_replaced)))
            self._rows = rows  # assigned in one step, since several threads read it
        return self._rows


def _keys(name: str, rows: pa.Table | pa.RecordBatch) -> pa.Array | pa.ChunkedArray:
    """Return the keys of rows as strings."""
    columns = [rows[column].cast(pa.string()) for column in KEYS[name]]
    return columns[0] if len(columns) == 1 else pc.binary_join_element_wise(*columns, "\n")


def _replaced_keys(name: str, parts: Sequence[Any]) -> list[pa.Array]:
    """Return for each dataset the keys whose rows another dataset replaces."""
    keys = [_flat(_keys(name, part.to_table(columns=KEYS[name]))) for part in parts]
    counts = pc.value_counts(pa.concat_arrays(keys))
    repeated = counts.field("values").filter(pc.greater(counts.field("counts"), 1))
    if not len(repeated):
        return [repeated for _ in parts]
    times: list[dict[str, int]] = []
    for part, names in zip(parts, keys, strict=True):
        is_repeated = pc.is_in(names, value_set=repeated)
        if name == "inputs":
            values = _flat(part.to_table(columns=["time"])["time"]).filter(is_repeated).to_pylist()
        else:
            values = [0] * int(pc.sum(is_repeated).as_py() or 0)
        times.append(dict(zip(names.filter(is_repeated).to_pylist(), values, strict=True)))
    winner: dict[str, tuple[int, int]] = {}
    for index, entries in enumerate(times):
        for key, time in entries.items():
            if key not in winner or time > winner[key][1]:
                winner[key] = index, time
    return [
        pa.array([key for key in entries if winner[key][0] != index], pa.string())
        for index, entries in enumerate(times)
    ]


def _flat(column: Any) -> pa.Array:
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
