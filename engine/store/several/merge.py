"""Merge label stores that were made with the same options, such as those of machines without common storage.

::

    counts = merge_stores(["labels-a", "labels-b"], "labels")

An image that several stores hold is stored once; of several rows of one input, the latest wins; reviews are joined. The
rows are copied with their hashes: a damaged one stays damaged, and `maskmill verify` finds it. Rows that a killed run
left uncommitted in a store are committed there first. The same command again continues where it stopped.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from ....errors import StoreError, StoreMismatch, UsageError
from ...model.storage import is_remote, location_of
from ..label_store import SEGMENTS, LabelStore
from ..run_record import RUN_FILE, run_differences
from ..schema import SCHEMAS
from ..waiting.waiting_rows import commit_waiting
from ..waiting_count import waiting_text, warn_of_waiting_rows

KEPT_SCORES = "kept_scores"
"""Entry of a run record about scores that are kept beside the labels."""
MERGE_ROWS = 65_536
"""Rows per commit."""
_MERGE_BYTES = 256 << 20


@dataclass(frozen=True, kw_only=True)
class MergeCounts:
    """Rows that the merged store holds."""

    images: int
    """Number of distinct images."""
    inputs: int
    """Number of inputs."""
    reviews: int
    """Number of reviews."""
    duplicates: int
    """Number of images of the merged stores that the result held already: from another one of them, or an earlier
    merge."""
    added: int
    """Number of rows that this merge added to the result."""

    def to_json(self) -> dict[str, int]:
        """Return the counts as plain data."""
        return asdict(self)


def merge_stores(
    stores: Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    *,
    progress: Callable[[int, int], None] | None = None,
) -> MergeCounts:
    """Merge stores into ``output``, a new folder or a store made with the same options; returns the result's rows.

    ``progress`` is called with (rows read, rows in total). Raises :class:`StoreMismatch` if the stores were made with
    different options, :class:`StoreError`, and :class:`UsageError` if there is nothing to merge.
    """
    if not stores:
        raise UsageError("expected one or more label stores to merge")
    if _place(output) in map(_place, stores):
        raise UsageError(f"{output} is one of the stores to merge; give a new folder, or leave it out of the list")
    sources = [LabelStore.open(path, warn=False) for path in stores]
    existing_output = [LabelStore.open(output, warn=False)] if (location_of(output) / RUN_FILE).exists() else []
    for other_store in (*sources[1:], *existing_output):
        check_alike(sources[0], other_store)
    for store in (*sources, *existing_output):
        _commit_waiting(store)
    target = LabelStore.open_or_create(output, sources[0].run)
    before = sum(len(target.table([], name)) for name in SCHEMAS)
    num_rows = [sum(len(source.table([], name)) for source in sources) for name in SCHEMAS]
    num_done, duplicates = 0, 0
    for name in ("labels", "inputs", "reviews"):  # labels before the inputs that point to them
        for source in sources:
            for table in _pieces(source.batches(name)):
                if name == "labels":
                    fresh = ~target.are_known(table["id"])
                    duplicates += len(table) - int(np.count_nonzero(fresh))
                    target.commit_tables(table.filter(pa.array(fresh)), SCHEMAS["inputs"].empty_table())
                else:
                    target.merge_rows(name, table)
                num_done += len(table)
                if progress is not None:
                    progress(num_done, sum(num_rows))
    counts = {name: len(target.table([], name)) for name in SCHEMAS}
    return MergeCounts(
        images=counts["labels"],
        inputs=counts["inputs"],
        reviews=counts["reviews"],
        duplicates=duplicates,
        added=sum(counts.values()) - before,
    )


def _place(path: str | os.PathLike[str]) -> str:
    """Return the canonical name of a folder or URL."""
    location = location_of(path)
    return str(location if is_remote(location) else location.resolve())


def _commit_waiting(store: LabelStore) -> None:
    """Commit the rows that killed runs left; warn if a running multi-process run will commit its own.

    Raises :class:`StoreError` if the rows cannot be committed, since the result would silently lack them.
    """
    if waiting_text(store.path):
        try:
            commit_waiting(store)
        except StoreError as error:
            raise StoreError(f"{waiting_text(store.path)} ({error})") from error
    warn_of_waiting_rows(store.path)


def check_alike(store: LabelStore, other: LabelStore, *, for_reading: bool = False) -> None:
    """Raise :class:`StoreMismatch` unless the labels of two stores were made with the same options.

    With ``for_reading``, kept scores may differ or be missing, since they are not labels.
    """
    kinds = ["segments without classes" if each.run.get("maps") == SEGMENTS else "labels" for each in (store, other)]
    if kinds[0] != kinds[1]:
        raise StoreMismatch(
            f"{store.path} holds {kinds[0]} and {other.path} holds {kinds[1]}; merge stores of one kind"
        )
    runs = [{key: value for key, value in each.run.items() if key != KEPT_SCORES} for each in (store, other)]
    names = _short_names(store.path, other.path)
    mapping, options = run_differences(runs[0], runs[1], names)
    keeps_scores = [KEPT_SCORES in each.run for each in (store, other)]
    if not for_reading and mapping is None and not options and keeps_scores[0] != keeps_scores[1]:
        raise StoreMismatch(
            f"{names[keeps_scores.index(True)]} keeps scores, {names[keeps_scores.index(False)]} does not, so they "
            "cannot be merged; report and export them together instead, or label one again"
        )
    if not for_reading:
        mapping, options = run_differences(store.run, other.run, names)
    if mapping is not None or options:
        difference = "; ".join(text for text in (mapping, options) if text)
        raise StoreMismatch(
            f"{store.path} and {other.path} were made with different options, so their labels cannot be combined "
            f"({difference}); label one of them again with the options of the other, or use them separately"
        )


def _short_names(first: Path, second: Path) -> tuple[str, str]:
    """Return the names of two folders, or their paths if the names are equal."""
    return (first.name, second.name) if first.name != second.name else (str(first), str(second))


def _pieces(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.Table]:
    """Join batches to tables of a commit's size."""
    waiting: list[pa.RecordBatch] = []
    for batch in batches:
        waiting.append(batch)
        size = sum(part.nbytes for part in waiting)
        if sum(len(part) for part in waiting) >= MERGE_ROWS or size >= _MERGE_BYTES:
            yield pa.Table.from_batches(waiting)
            waiting = []
    if waiting:
        yield pa.Table.from_batches(waiting)
