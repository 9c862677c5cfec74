"""Files of leases: tables in the Arrow IPC format behind a hash, so that a half-written or damaged file is refused.

Two kinds: the inputs of a lease, and the rows that a worker made of them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from ...errors import StoreError
from ..inputs.sources import Item

_DIGEST_LENGTH = 32
_HEADER_LENGTH = 64  # Lance reads the tables without a copy, and needs their numbers at multiples of 8 bytes
_META = b"maskmill:lease"
_OPTIONS = pa.ipc.IpcWriteOptions(compression="zstd")


def encode_items(items: Sequence[Item]) -> bytes:
    """Encode the inputs of a lease."""
    columns = {name: pa.array([getattr(item, name) for item in items]) for name in Item._fields}
    return _encode([pa.table(columns)], {}, _OPTIONS)


def decode_items(data: bytes) -> list[Item]:
    """Decode the inputs of a lease; raises :class:`StoreError` for a damaged file."""
    _, (table,) = _decode(data)
    return [Item(**record) for record in table.to_pylist()]


def encode_rows(labels: pa.Table, inputs: pa.Table, meta: Mapping[str, Any]) -> bytes:
    """Encode the rows of a finished lease, and plain data about them."""
    return _encode([labels, inputs], meta, None)


def decode_rows(data: bytes) -> tuple[pa.Table, pa.Table, dict[str, Any]]:
    """Decode (labels, inputs, plain data); raises :class:`StoreError` for a damaged file."""
    meta, (labels, inputs) = _decode(data)
    return labels, inputs, meta


def _encode(tables: Sequence[pa.Table], meta: Mapping[str, Any], options: pa.ipc.IpcWriteOptions | None) -> bytes:
    sink = pa.BufferOutputStream()
    first = tables[0].replace_schema_metadata({_META: json.dumps(meta)})
    for table in (first, *tables[1:]):
        with pa.ipc.new_stream(sink, table.schema, options=options) as writer:
            writer.write_table(table)
    body = sink.getvalue()
    return _digest(body).ljust(_HEADER_LENGTH - 1) + b"\n" + body.to_pybytes()


def _decode(data: bytes) -> tuple[dict[str, Any], list[pa.Table]]:
    body = memoryview(data)[_HEADER_LENGTH:]
    if data[:_DIGEST_LENGTH] != _digest(body):
        raise StoreError("the file of a lease is damaged: its content does not match its hash")
    source = pa.BufferReader(pa.py_buffer(body))
    tables = []
    while source.tell() < len(body):
        tables.append(pa.ipc.open_stream(source).read_all())
    meta = json.loads(tables[0].schema.metadata[_META])
    tables[0] = tables[0].replace_schema_metadata(None)
    return meta, tables


def _digest(body: Any) -> bytes:
    return hashlib.blake2b(body, digest_size=_DIGEST_LENGTH // 2).hexdigest().encode()
