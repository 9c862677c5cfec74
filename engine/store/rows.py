"""Rows of the label store: what they hold, and the Arrow schemas they are kept in."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from .digests import DIGEST_BYTES

# Lance compares keys of rows that are written at the same time only where the field says so
_KEY = {"lance-schema:unenforced-primary-key": "true"}
SCHEMAS = {
    "labels": pa.schema(
        [
            pa.field("id", pa.string(), nullable=False, metadata=_KEY),
            pa.field("width", pa.int32(), nullable=False),
            pa.field("height", pa.int32(), nullable=False),
            pa.field("label", pa.binary(), nullable=False),
            pa.field("weight", pa.binary(), nullable=False),
            pa.field("counts", pa.list_(pa.int64()), nullable=False),
            pa.field("kept", pa.float64(), nullable=False),
            pa.field("confidence", pa.float64(), nullable=False),
        ]
    ),
    "inputs": pa.schema(
        [
            pa.field("uri", pa.string(), nullable=False, metadata=_KEY),
            pa.field("size", pa.int64()),
            pa.field("stamp", pa.string(), nullable=False),
            pa.field("id", pa.string()),
            pa.field("error", pa.string()),
            pa.field("message", pa.string()),
            pa.field("fingerprint", pa.binary(DIGEST_BYTES), nullable=False),
        ]
    ),
}
INPUT_COLUMNS = ["uri", "size", "stamp", "id", "error", "message"]


@dataclass(frozen=True, kw_only=True)
class LabelRow:
    """The labels of one image."""

    id: str
    """Hash of the image file's bytes, see :func:`content_id`."""
    width: int
    """Columns of the image and its maps, in pixels."""
    height: int
    """Rows, in pixels."""
    label: bytes
    """Label map, a PNG of (H, W) uint8 or uint16 target indices or the ignore index."""
    weight: bytes
    """Weight map, a PNG of (H, W) uint8."""
    counts: Sequence[int] | NDArray[np.int64]
    """(K,): pixels that carry a label of each target."""
    kept: float
    """Share of pixels that carry a label, in [0, 1]."""
    confidence: float
    """Mean confidence over the pixels that carry a label, in [0, 1]; 0 where there are none."""


@dataclass(frozen=True, kw_only=True)
class InputRow:
    """What became of one input."""

    uri: str
    """The input's name, see :class:`maskmill.engine.inputs.sources.Item`."""
    size: int | None
    """Bytes, where the source knew them without reading."""
    stamp: str
    """The source's mark of the content's age."""
    id: str | None
    """The image's labels; None for a reject."""
    error: str | None
    """Kind of :class:`maskmill.errors.ImageError`; None for a labeled input."""
    message: str | None
    """What was wrong; None for a labeled input."""


def fingerprint(uri: str, size: int | None, stamp: str) -> bytes:
    """What a resume compares."""
    return hashlib.blake2b(f"{uri}\0{size}\0{stamp}".encode(), digest_size=DIGEST_BYTES).digest()


def label_table(rows: Sequence[LabelRow]) -> pa.Table:
    """Rows as ``labels.lance`` keeps them."""
    columns = {name: [getattr(row, name) for row in rows] for name in SCHEMAS["labels"].names}
    columns["counts"] = [np.asarray(counts, dtype=np.int64) for counts in columns["counts"]]
    return pa.table(columns, schema=SCHEMAS["labels"])


def input_table(rows: Sequence[InputRow]) -> pa.Table:
    """Rows as ``inputs.lance`` keeps them, with what a resume compares."""
    columns = {name: [getattr(row, name) for row in rows] for name in INPUT_COLUMNS}
    columns["fingerprint"] = [fingerprint(row.uri, row.size, row.stamp) for row in rows]
    return pa.table(columns, schema=SCHEMAS["inputs"])
