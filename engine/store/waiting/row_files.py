"""Tables in the Arrow IPC format behind a hash, so that a half-written or damaged file is refused."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ....errors import StoreError
from ..digests import digest_table, digests_of

_DIGEST_LENGTH = 32
_HEADER_LENGTH = 64  # Lance reads the tables without a copy, and needs 8-byte alignment
_META = b"maskmill:lease"


class DamagedFile(StoreError):
    """A file is cut short or damaged."""


def encode_rows(labels: pa.Table, inputs: pa.Table, meta: Mapping[str, Any] | None = None) -> bytes:
    """Encode rows of ``labels`` and ``inputs``, and plain data about them."""
    return encode_tables([labels, inputs], meta)


def decode_rows(data: bytes) -> tuple[pa.Table, pa.Table, dict[str, Any]]:
    """Decode (labels, inputs, plain data); raises :class:`DamagedFile`."""
    meta, (labels, inputs) = decode_tables(data)
    return labels, inputs, meta


def encode_tables(
    tables: Sequence[pa.Table], meta: Mapping[str, Any] | None = None, options: pa.ipc.IpcWriteOptions | None = None
) -> bytes:
    """Encode tables, and plain data about them."""
    sink = pa.BufferOutputStream()
    first = tables[0].replace_schema_metadata({_META: json.dumps(meta or {})})
    for table in (first, *tables[1:]):
        with pa.ipc.new_stream(sink, table.schema, options=options) as writer:
            writer.write_table(table)
    body = sink.getvalue()
    return _digest(body).ljust(_HEADER_LENGTH - 1) + b"\n" + body.to_pybytes()


def decode_tables(data: bytes) -> tuple[dict[str, Any], list[pa.Table]]:
    """Decode (plain data, tables); raises :class:`DamagedFile`."""
    body = memoryview(data)[_HEADER_LENGTH:]
    if data[:_DIGEST_LENGTH] != _digest(body):
        raise DamagedFile("the file is damaged: its content does not match its hash")
    source = pa.BufferReader(pa.py_buffer(body))
    tables = []
    while source.tell() < len(body):
        tables.append(pa.ipc.open_stream(source).read_all())
    if not tables:
        raise DamagedFile("the file is damaged: it holds no table")
    meta = json.loads(tables[0].schema.metadata[_META])
    tables[0] = tables[0].replace_schema_metadata(None)
    return meta, tables


def are_first(labels: pa.Table) -> NDArray[np.bool_]:
    """Return for each of n label rows, (n,) bool, if it is the first of its id."""
    first = np.zeros(len(labels), bool)
    first[np.unique(digest_table(digests_of(labels["id"])), axis=0, return_index=True)[1]] = True
    return first


def last_of_each_uri(inputs: pa.Table) -> pa.Table:
    """Return the last row of each input, in order."""
    last = {uri: index for index, uri in enumerate(inputs["uri"].to_pylist())}
    return inputs if len(last) == len(inputs) else inputs.take(sorted(last.values()))


def _digest(body: Any) -> bytes:
    return hashlib.blake2b(body, digest_size=_DIGEST_LENGTH // 2).hexdigest().encode()
