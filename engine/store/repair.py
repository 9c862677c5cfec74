"""Read the intact rows of damaged datasets, and write the datasets again without the others."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import lance
import pyarrow as pa
from lance.file import LanceFileReader

from ...errors import StoreError
from ..model.publishing import published_folder
from ..model.storage import lance_url
from .rows import row_fault
from .schema import KEYS, SCHEMAS, covered_columns
from .table import Table, store_errors

_READ_ROWS = 256  # rows per read; a read that fails is divided
_MERGE_ROWS = 1024
UNREADABLE = -1
"""Row number that represents a whole fragment."""


def fragment_records(fragment: Any) -> Iterator[tuple[int, dict[str, Any] | None, str | None]]:
    """Yield (number, row, None), or (number, None, error) for a row that cannot be read, in order."""
    with store_errors("its fragment cannot be read"):
        num_rows = fragment.count_rows()
    return _records(lambda start, stop: fragment.take(list(range(start, stop))), num_rows)


def replace_fragment(table: Table, dataset: Any, fragment_id: int, damaged: Collection[int]) -> None:
    """Write the rows of a fragment anew without the ``damaged`` numbers.

    A crash in between loses rows of the fragment: inputs without labels, which the next verification finds.
    """
    fragment = dataset.get_fragment(fragment_id)
    remove = lance.LanceOperation.Delete(updated_fragments=[], deleted_fragment_ids=[fragment_id], predicate="damaged")
    table.record(
        lance.LanceDataset.commit(
            lance_url(table.path), remove, read_version=dataset.version, storage_options=table.storage_options
        )
    )
    if fragment is not None and UNREADABLE not in damaged:
        sound = (row for number, row, _ in fragment_records(fragment) if row is not None and number not in damaged)
        while chunk := list(islice(sound, _MERGE_ROWS)):
            table.merge(pa.Table.from_pylist(chunk, schema=SCHEMAS[table.name]))


def rebuild(table: Table) -> None:
    """Make a dataset anew from its data files, for one whose manifest or deletion file is damaged.

    Of several rows with one key, the latest is kept. The damaged dataset is deleted, except for reviews, which cannot
    be recreated: it stays beside the new one as ``reviews.lance.damaged``.
    """
    name, schema = table.name, SCHEMAS[table.name]
    columns = covered_columns(schema)
    latest: dict[tuple[Any, ...], tuple[int, Path, int]] = {}
    files = sorted((table.path / "data").glob("*.lance"))
    for file in files:
        for number, row in _file_records(file):
            if schema.names != list(row) or row_fault(name, columns, row) is not None:
                continue
            key, time = tuple(row[column] for column in KEYS[name]), row.get("time", 0)
            if key not in latest or time >= latest[key][0]:
                latest[key] = time, file, number
    positions = {(file, number) for _, file, number in latest.values()}
    damaged = table.path.with_name(f"{table.path.name}.damaged")
    new_path = table.path.with_name(f"{table.path.name}.new")
    shutil.rmtree(new_path, ignore_errors=True)
    with published_folder(new_path) as folder:
        lance.write_dataset(schema.empty_table(), folder, mode="create", enable_stable_row_ids=True)
    new_table = table.at(new_path)
    rows = (row for file in files for number, row in _file_records(file) if (file, number) in positions)
    while chunk := list(islice(rows, _MERGE_ROWS)):
        new_table.merge(pa.Table.from_pylist(chunk, schema=schema))
    shutil.rmtree(damaged, ignore_errors=True)
    table.path.rename(damaged)
    new_path.rename(table.path)
    if name != "reviews":
        shutil.rmtree(damaged)


def _file_records(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        with store_errors("cannot be read"):
            reader = LanceFileReader(str(file))
            num_rows = reader.num_rows()
    except StoreError:
        return
    records = _records(lambda start, stop: reader.read_range(start, stop - start).to_table(), num_rows)
    yield from ((number, row) for number, row, _ in records if row is not None)


def _records(read: Any, num_rows: int) -> Iterator[tuple[int, dict[str, Any] | None, str | None]]:
    for start in range(0, num_rows, _READ_ROWS):
        yield from _divided(read, start, min(start + _READ_ROWS, num_rows))


def _divided(read_rows: Any, start: int, stop: int) -> Iterator[tuple[int, dict[str, Any] | None, str | None]]:
    try:
        with store_errors("it cannot be read"):
            rows = read_rows(start, stop).to_pylist()
            if len(rows) != stop - start:
                raise StoreError(f"expected {stop - start} rows, got {len(rows)}")
    except StoreError as error:
        if stop - start == 1:
            yield start, None, str(error)
            return
        middle = (start + stop) // 2
        yield from _divided(read_rows, start, middle)
        yield from _divided(read_rows, middle, stop)
        return
    for number, row in enumerate(rows, start):
        yield number, row, None
