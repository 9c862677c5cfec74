"""Files of open leases: their inputs."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from ..inputs.sources import Item
from ..store.waiting.row_files import decode_tables, encode_tables

_OPTIONS = pa.ipc.IpcWriteOptions(compression="zstd")


def encode_items(items: Sequence[Item]) -> bytes:
    """Encode the inputs of a lease."""
    columns = {name: pa.array([getattr(item, name) for item in items]) for name in Item._fields}
    return encode_tables([pa.table(columns)], options=_OPTIONS)


def decode_items(data: bytes) -> list[Item]:
    """Decode the inputs of a lease; raises :class:`DamagedFile`."""
    _, (table,) = decode_tables(data)
    return [Item(**record) for record in table.to_pylist()]
