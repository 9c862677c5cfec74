"""Parquet files whose repeated values stay repeated in memory: a value that is stored once may stand in every row."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow.parquet as pq

MAX_TEXT = 1 << 16
"""Longest text of a list, a manifest or a table's names, in bytes."""
_MOST_BYTES = 1 << 30


def open_parquet(file: Any, columns: Iterable[str] = ()) -> pq.ParquetFile:
    """Open a Parquet file; the values of ``columns``, paths into structs too, are read once each.

    Raises the errors of Arrow.
    """
    import pyarrow.parquet as pq

    table = pq.ParquetFile(file)
    names = list(columns)
    if not names or _is_large(table.metadata):
        return table
    return pq.ParquetFile(file, metadata=table.metadata, read_dictionary=names)


def texts_of(values: Any) -> list[str | None]:
    """Return the texts of an Arrow array; raises :class:`ValueError` if one is longer than :data:`MAX_TEXT`."""
    import pyarrow as pa
    import pyarrow.compute as pc

    texts = values.dictionary if pa.types.is_dictionary(values.type) else values
    longest = pc.max(pc.binary_length(texts)).as_py() if len(texts) else 0
    if longest and longest > MAX_TEXT:
        raise ValueError(f"a text has {longest:,} bytes; at most {MAX_TEXT:,} are read")
    return values.to_pylist()


def _is_large(metadata: Any) -> bool:
    """Return True if a row group is too large for a table of its values."""
    # not the sizes of its columns: Arrow ends the process where their statistics are damaged
    return any(metadata.row_group(group).total_byte_size >= _MOST_BYTES for group in range(metadata.num_row_groups))
