"""Manifests: the items of a source in a Parquet file, so that later runs need no listing and no file sizes.

::

    with published_file(Path("photos.parquet")) as path:
        num_items = write_manifest(open_source("photos"), path)
    source = open_source("photos.parquet")   # the same items, in the same order

Files that change after the manifest was written are not noticed; write it again.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any

from ...errors import SourceError
from .parquet import open_parquet, texts_of

_MARK = b"maskmill:manifest"
_VERSION = b"1"
_ROWS = 65_536  # rows per row group
COLUMNS = ("uri", "size", "stamp", "path", "offset", "problem")
"""Columns of a manifest: the fields of an item, in their order."""


def write_manifest(
    items: Iterable[tuple[Any, ...]],
    output: str | os.PathLike[str],
    *,
    progress: Callable[[int, int], None] | None = None,
) -> int:
    """Write items, such as an iterated source, to a new Parquet file; returns their number.

    ``progress`` is called with the number of items so far and an unknown total of 0. Raises :class:`SourceError` if
    there are no items or the file cannot be written.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    kinds = {"size": pa.int64(), "offset": pa.int64()}
    schema = pa.schema([(name, kinds.get(name, pa.string())) for name in COLUMNS], {_MARK: _VERSION})
    num_items, items = 0, iter(items)
    try:
        with pq.ParquetWriter(output, schema, compression="zstd", write_statistics=False) as writer:
            while chunk := list(islice(items, _ROWS)):
                columns = zip(*chunk, strict=True)
                writer.write_table(
                    pa.table(
                        [pa.array(column, field.type) for column, field in zip(columns, schema, strict=True)], schema
                    )
                )
                num_items += len(chunk)
                if progress is not None:
                    progress(num_items, 0)
    except OSError as error:
        raise SourceError(f"cannot write the manifest {output}: {error}") from error
    return num_items


def manifest_items(file: Any, name: str) -> Iterator[tuple[Any, ...]] | None:
    """Return the items of a manifest as tuples in the order of :data:`COLUMNS`; None for another Parquet file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.ParquetFile(file)
    except pa.ArrowException:
        return None  # the reader of lists reports the fault
    if (table.schema_arrow.metadata or {}).get(_MARK) != _VERSION:
        return None
    missing_columns = [column for column in COLUMNS if column not in table.schema_arrow.names]
    if missing_columns:
        raise SourceError(
            f"the manifest {name} has no column {missing_columns[0]}; write it again with `maskmill manifest`"
        )
    texts = [field.name for field in table.schema_arrow if pa.types.is_string(field.type)]
    return _rows(open_parquet(file, [column for column in COLUMNS if column in texts]), name)


def _rows(table: Any, name: str) -> Iterator[tuple[Any, ...]]:
    import pyarrow as pa

    try:
        for batch in table.iter_batches(batch_size=8192, columns=list(COLUMNS)):
            yield from zip(*(_values(batch.column(column)) for column in COLUMNS), strict=True)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise SourceError(f"the manifest {name} is damaged: {error}; write it again") from error


def _values(column: Any) -> list[Any]:
    import pyarrow as pa

    is_text = pa.types.is_dictionary(column.type) or pa.types.is_string(column.type)
    return texts_of(column) if is_text else column.to_pylist()
