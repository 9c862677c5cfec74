"""Rows of the label store as dataclasses, their hashes, and conversion to Arrow tables; see :mod:`.schema`."""

from __future__ import annotations

import hashlib
import json
import math
import re
import struct
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ...errors import StoreError
from .schema import HASH_BYTES, SCHEMAS, Verdict, covered_columns

MAX_PIXELS = 1 << 34
"""Most pixels of an image in a store."""

_ID = re.compile("[0-9a-f]{32}")
_COVERED = {name: covered_columns(schema) for name, schema in SCHEMAS.items()}
_EXTRAS = covered_columns(SCHEMAS["labels"], "extra_hash")


@dataclass(frozen=True, kw_only=True)
class LabelRow:
    """Labels of one image."""

    id: str
    """Id of the labels, see :func:`maskmill.engine.inputs.identity.labels_id`."""
    width: int
    """Width of the image and its maps, in pixels."""
    height: int
    """Height, in pixels."""
    label: bytes
    """Label map, a PNG of (H, W) uint8 or uint16 target indices or the ignore index."""
    weight: bytes
    """Weight map, a PNG of (H, W) uint8."""
    counts: Sequence[int] | NDArray[np.int64]
    """(K,): number of pixels labeled with each target class."""
    kept: float
    """Share of pixels with a label, in [0, 1]."""
    confidence: float
    """Mean confidence of the pixels with a label, in [0, 1]; 0 if there are none."""
    scores: bytes | None = None
    """Encoded scores for later selections, if the run keeps them."""
    instances: bytes | None = None
    """Encoded objects of the image, if the run stores them."""
    features: Sequence[float] | NDArray[np.float32] | None = None
    """Feature vector of the model, if it has one."""
    drift: float | None = None
    """Distance of the image's statistics from those of the calibration images."""
    statistics: str | None = None
    """JSON object of numbers that describe the image, in which drift is watched."""


@dataclass(frozen=True, kw_only=True)
class InputRow:
    """Outcome of one input."""

    uri: str
    """Name of the input, see :class:`maskmill.engine.inputs.sources.Item`."""
    size: int | None
    """Size in bytes, if the source knew it without reading."""
    stamp: str
    """The source's stamp of the content, such as its modification time."""
    condition: str = ""
    """Text that decides the labels besides the pixels, for instance image-level labels."""
    id: str | None
    """Id of the image's labels; None for a reject."""
    error: str | None
    """Kind of :class:`maskmill.errors.ImageError`; None for a labeled input."""
    message: str | None
    """Cause of the error; None for a labeled input."""
    time: int = field(default=0, compare=False)
    """Time of the row, microseconds since 1970 UTC; set by the commit if 0."""


@dataclass(frozen=True, kw_only=True)
class ReviewRow:
    """Decision of a person on the labels of one image."""

    id: str
    """Id of the reviewed labels."""
    reviewer: str
    """Name of the person."""
    time: int
    """Microseconds since 1970 UTC."""
    verdict: Verdict
    """Decision; the latest row of an image wins, and "withdrawn" restores the labels."""
    label: bytes | None = None
    """Corrected label map, a PNG; None unless corrected."""
    region: bytes | None = None
    """PNG of (H, W) uint8, 255 where the corrected map holds; None: everywhere."""
    instances: bytes | None = None
    """Encoded corrected objects."""
    origin: str | None = None
    """File or program that the review came from."""
    note: str | None = None
    """Remark of the reviewer."""


def fingerprint(uri: str, size: int | None, stamp: str, condition: str = "") -> bytes:
    """Return the 16-byte digest of (uri, size, stamp, condition), used to skip finished inputs."""
    text = f"{uri}\0{size}\0{stamp}\0{condition}"
    return hashlib.blake2b(text.encode(), digest_size=HASH_BYTES).digest()


def row_hash(columns: Sequence[str], row: Mapping[str, Any]) -> bytes:
    """Return the 16-byte digest of the named columns of a row; names, lengths and nulls are part of it."""
    parts: list[bytes] = []
    for name in columns:
        data = _encoded(row[name])
        parts += [f"{name}:-;".encode()] if data is None else [f"{name}:{len(data)};".encode(), data]
    return hashlib.blake2b(b"".join(parts), digest_size=HASH_BYTES).digest()


def extra_hash(row: Mapping[str, Any]) -> bytes | None:
    """Return the digest of a label row's optional columns; None if all of them are null."""
    return None if all(row[name] is None for name in _EXTRAS) else row_hash(_EXTRAS, row)


def _encoded(value: Any) -> bytes | None:
    if value is None or isinstance(value, bytes):
        return value
    if isinstance(value, str):
        return value.encode()
    if isinstance(value, int | np.integer):
        return b"%d" % int(value)
    if isinstance(value, float | np.floating):
        return struct.pack("<d", float(value))
    if isinstance(value, np.ndarray) and value.dtype == np.float32:
        return value.astype("<f4").tobytes()
    return np.asarray(value, "<i8").tobytes()


def label_table(rows: Sequence[LabelRow]) -> pa.Table:
    """Convert rows to a table of ``labels.lance``, with their hashes."""
    columns: dict[str, list[Any]] = {name: [] for name in SCHEMAS["labels"].names}
    for row in rows:
        values = {**vars(row), "counts": np.asarray(row.counts, np.int64)}
        if row.features is not None:
            values["features"] = np.asarray(row.features, np.float32)
        values["row_hash"] = row_hash(_COVERED["labels"], values)
        values["extra_hash"] = extra_hash(values)
        for name, column in columns.items():
            column.append(values[name])
    return pa.table(columns, schema=SCHEMAS["labels"])


def input_table(rows: Sequence[InputRow]) -> pa.Table:
    """Convert rows to a table of ``inputs.lance``, with their fingerprints, hashes and, if missing, the time."""
    now = time.time_ns() // 1000
    records = []
    for row in rows:
        values = {**vars(row), "time": row.time or now}
        values["fingerprint"] = fingerprint(row.uri, row.size, row.stamp, row.condition)
        values["row_hash"] = row_hash(_COVERED["inputs"], values)
        records.append(values)
    return pa.Table.from_pylist(records, schema=SCHEMAS["inputs"])


def review_table(rows: Sequence[ReviewRow]) -> pa.Table:
    """Convert rows to a table of ``reviews.lance``, with their hashes."""
    records = [{**vars(row), "row_hash": row_hash(_COVERED["reviews"], vars(row))} for row in rows]
    return pa.Table.from_pylist(records, schema=SCHEMAS["reviews"])


def row_fault(name: str, columns: Sequence[str], row: dict[str, Any]) -> str | None:
    """Return the fault of a row as read from the dataset ``name``; None if its hash matches.

    ``columns`` are those that its hash covers; the extra columns of a label row are checked if they were read.
    """
    if row_hash(columns, row) != row["row_hash"]:
        return "its content does not match its hash"
    if row.get("id") is not None and not _ID.fullmatch(row["id"]):
        return "its id is not a hash of 32 hexadecimal digits"
    if name == "labels" and (fault := _value_fault(row)):
        return fault
    if name == "labels" and "extra_hash" in row:
        features = row["features"]
        values = row if features is None else {**row, "features": np.asarray(features, np.float32)}
        if extra_hash(values) != row["extra_hash"]:
            return "its scores, instances, features or statistics do not match their hash"
        if row["statistics"] is not None:
            try:
                read_statistics(row["statistics"])
            except StoreError:
                return "its statistics are no JSON object of finite numbers"
    if name == "inputs" and row["fingerprint"] != fingerprint(row["uri"], row["size"], row["stamp"], row["condition"]):
        return "its fingerprint does not match its columns"
    return None


def _value_fault(row: Mapping[str, Any]) -> str | None:
    """Return which value of a label row cannot be: a hash shows damage, and not who wrote the row."""
    pixels = row["width"] * row["height"]
    if row["width"] < 1 or row["height"] < 1 or pixels > MAX_PIXELS:
        return f"an image of {row['width']}x{row['height']} pixels cannot be"
    for column in ("kept", "confidence"):
        if not 0 <= row[column] <= 1:
            return f"its {column} is {row[column]}, expected 0 to 1"
    if min(row["counts"], default=0) < 0 or sum(row["counts"]) > pixels:
        return f"its counts are not those of {pixels:,} pixels"
    return None


def count_matrix(counts: pa.ChunkedArray) -> NDArray[np.int64]:
    """Return the column ``counts`` of n rows as (n, K); raises :class:`StoreError` if the rows differ in length."""
    lengths = pc.unique(pc.list_value_length(counts)).to_pylist()
    if len(lengths) > 1:
        raise StoreError("rows of the store count different numbers of classes; run `maskmill verify STORE --repair`")
    flat = counts.combine_chunks().flatten().to_numpy(zero_copy_only=False).astype(np.int64)
    return flat.reshape(len(counts), lengths[0] if lengths else 0)


def read_statistics(text: str) -> dict[str, float]:
    """Return the numbers of the column ``statistics`` by name; raises :class:`StoreError` if they are damaged."""
    try:
        values = json.loads(text)
        if not isinstance(values, dict):
            raise ValueError("no JSON object")
        return {name: _finite(value) for name, value in values.items()}
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        fault = f"the statistics of an image are damaged ({error})"
        raise StoreError(f"{fault}; run `maskmill verify STORE --repair`") from error


def _finite(value: Any) -> float:
    if isinstance(value, str) or not math.isfinite(value):
        raise ValueError(f"{value!r:.40} is no finite number")
    return float(value)


def _names(kind: type) -> frozenset[str]:
    return frozenset(item.name for item in fields(kind))


RowT = TypeVar("RowT")
_FIELDS: dict[type[Any], frozenset[str]] = {kind: _names(kind) for kind in (LabelRow, InputRow, ReviewRow)}


def to_row(kind: type[RowT], record: Mapping[str, Any]) -> RowT:
    """Make a row of the dataclass ``kind`` from a record that may hold further columns."""
    return kind(**{name: value for name, value in record.items() if name in _FIELDS[kind]})
