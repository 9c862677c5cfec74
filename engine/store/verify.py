"""Verify a label store: read every row of every dataset, name what is damaged, and remove it on request.

::

    result = verify("labels", repair=True)
    for damage in result.damages:
        print(damage)

Lance keeps no checksums, so a damaged disk can change rows without an error. Every row is compared with its hash, maps
are decoded, the files that say which rows there are with their recorded hashes, and inputs with the labels that they
point to. A repair removes damaged rows, and inputs without labels, so that the next run labels those images again; no
other process may use the store meanwhile. Damaged reviews cannot be recreated, so they are listed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lance

from ...errors import StoreError
from ..model.png import decode_png
from ..model.storage import is_remote, location_of
from .repair import UNREADABLE, fragment_records, rebuild, replace_fragment
from .reviews import current
from .rows import ReviewRow, row_fault, to_row
from .run_record import read_run
from .schema import KEYS, SCHEMAS, covered_columns
from .table import Table, store_errors
from .waiting_count import warn_of_waiting_rows

if TYPE_CHECKING:
    import lance


@dataclass(frozen=True, kw_only=True)
class Damage:
    """One damaged row or file."""

    dataset: str
    """labels, inputs or reviews."""
    name: str
    """Key of the row, or a file or place in the dataset if the key cannot be read."""
    reason: str
    """Description of the damage."""

    def __str__(self) -> str:
        return f"{self.dataset}: {self.name}: {self.reason}"


@dataclass(kw_only=True)
class Verification:
    """Result of :func:`verify`."""

    path: Path
    """Folder of the store."""
    repaired: bool
    """True if the damage was removed."""
    rows: dict[str, int] = field(default_factory=dict)
    """Number of intact rows of each dataset."""
    num_reviews_in_force: int = 0
    """Number of reviewed images whose latest review is not a withdrawal."""
    damages: list[Damage] = field(default_factory=list)
    """Damaged rows and files."""
    pins: dict[str, int] = field(default_factory=dict)
    """Pinned versions of labels, by the name of the pin; no cleanup drops them."""

    @property
    def sound(self) -> bool:
        """True if nothing is damaged, or everything was removed."""
        return self.repaired or not self.damages

    def to_json(self) -> dict[str, Any]:
        """Return the result as plain data."""
        raw = asdict(self) | {"path": str(self.path), "sound": self.sound}
        return raw | {"num_damages": len(self.damages)}


def verify(
    path: str | os.PathLike[str],
    *,
    repair: bool = False,
    progress: Callable[[int, int], None] | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> Verification:
    """Check every row of a store; with ``repair``, remove what is damaged.

    ``progress`` is called with (rows read, rows in total); ``storage_options`` are those of a URL's filesystem. Raises
    :class:`StoreError` if the folder holds no store of this format or cannot be read or written at all.
    """
    folder = location_of(path, storage_options)
    read_run(folder)
    warn_of_waiting_rows(folder)
    with store_errors(f"cannot verify the label store {folder}"):
        return _Verifier(folder, repair, progress).run()


class _Verifier:
    """Functions of a verification and their shared state."""

    def __init__(self, folder: Path, repair: bool, progress: Callable[[int, int], None] | None) -> None:
        session = lance.Session(index_cache_size_bytes=0, metadata_cache_size_bytes=16 << 20)
        self._tables = {name: Table(folder, name, session) for name in SCHEMAS}
        self._repair = repair
        self._progress = progress
        self._result = Verification(path=folder, repaired=repair)
        self._ids: set[str] | None = None
        self._num_read = self._num_rows = 0

    def run(self) -> Verification:
        """Check all datasets, and repair inputs before the labels that they point to."""
        # inputs are opened before labels, as a writer may commit meanwhile, and checked after them
        opened_tables = {name: self._open(self._tables[name]) for name in ("inputs", "labels", "reviews")}
        datasets = {name: opened_tables[name] for name in ("labels", "inputs", "reviews")}
        self._num_rows = sum(dataset.count_rows() for dataset in datasets.values() if dataset is not None)
        damaged = {name: self._check(name, dataset) for name, dataset in datasets.items() if dataset is not None}
        if self._repair:
            for name in ("inputs", "labels", "reviews"):
                for fragment_id, numbers in damaged.get(name, {}).items():
                    replace_fragment(self._tables[name], self._tables[name].open(), fragment_id, numbers)
        if datasets["labels"] is not None:
            tags = datasets["labels"].tags.list()
            self._result.pins = {tag: int(entry["version"]) for tag, entry in tags.items()}
        return self._result

    def _open(self, table: Table) -> lance.LanceDataset | None:
        """Open the newest version; one that cannot be opened counts as damage, and a repair rebuilds it."""
        is_missing = not table.path.is_dir()
        try:
            with store_errors("its files cannot be read"):
                dataset = table.open()
                dataset.count_rows()
                dataset.get_fragments()
                return dataset
        except StoreError as error:
            reason = "the dataset is missing" if is_missing else str(error)
            self._result.damages.append(Damage(dataset=table.name, name=table.path.name, reason=reason))
        if not self._repair:
            return None
        if is_remote(table.path):
            raise StoreError(f"{table.path} is in a bucket, where only rows can be repaired; copy the store to a disk")
        if is_missing:
            table.create(table.path.parent, table.name)
        else:
            rebuild(table)
        # a new session: version numbers restart, and the old session caches manifests by number
        self._tables[table.name] = Table(table.path.parent, table.name, lance.Session())
        return self._tables[table.name].open()

    def _check(self, name: str, dataset: Any) -> dict[int, set[int]]:
        """Check every row; returns the numbers of damaged rows by fragment."""
        columns, keys, damaged, num_sound = covered_columns(dataset.schema), set(), {}, 0
        reviews: list[ReviewRow] = []
        for fragment in dataset.get_fragments():
            for number, row, error in self._records(fragment):
                key = None if row is None else tuple(row[column] for column in KEYS[name])
                reason = error if row is None else self._fault(name, columns, row)
                if reason is None and key in keys:
                    reason = "another row has the same key"
                if reason is None:
                    num_sound += 1
                    keys.add(key)
                    if row is not None and name == "reviews":
                        # the maps are not needed after their check
                        reviews.append(to_row(ReviewRow, row | {"label": None, "region": None}))
                    continue
                damaged.setdefault(fragment.fragment_id, set()).add(number)
                place = f"row {number} of fragment {fragment.fragment_id}"
                row_name = place if key is None else ", ".join(map(str, key))
                self._result.damages.append(Damage(dataset=name, name=row_name, reason=reason or ""))
        if name == "labels":
            self._ids = {key[0] for key in keys if key is not None}
        elif name == "reviews":
            self._result.num_reviews_in_force = len(current(reviews))
        self._result.rows[name] = num_sound
        return damaged

    def _records(self, fragment: Any) -> Iterator[tuple[int, dict[str, Any] | None, str | None]]:
        try:
            for record in fragment_records(fragment):
                yield record
                self._num_read += 1
                if self._progress is not None:
                    self._progress(self._num_read, self._num_rows)
        except StoreError as error:
            yield UNREADABLE, None, str(error)

    def _fault(self, name: str, columns: list[str], row: dict[str, Any]) -> str | None:
        if fault := row_fault(name, columns, row):
            return fault
        if name == "inputs":
            absent = self._ids is not None and row["id"] is not None and row["id"] not in self._ids
            return "its labels are damaged or missing" if absent else None
        for column in ("label", "weight") if name == "labels" else ("label", "region"):
            if row[column] is None:
                continue
            try:
                shape = decode_png(row[column]).shape
            except ValueError as error:
                return f"its {column} map cannot be decoded: {error}"
            if name == "labels" and shape != (row["height"], row["width"]):
                return f"its {column} map is {shape[1]}x{shape[0]} px, expected {row['width']}x{row['height']} px"
        return None
