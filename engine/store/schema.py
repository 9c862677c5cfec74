"""Schema of a label store, format 2: three Lance datasets and ``run.json``.

Some columns are reserved for later features and empty today, so that no columns need to be added.

``labels.lance``, key ``id``: one row per distinct image, never edited.

==============  =====================================================================================================
``id``          hash of the file's bytes and, if they decide the labels, of the image's condition
``width``       width of image and maps, in pixels
``height``      height, in pixels
``label``       label map, a PNG of (H, W) uint8 or uint16: target class, or the ignore index. A run that stores
                instances instead of class maps writes a map of ignored pixels; a run without classes writes segment
                numbers, and its run record says so.
``weight``      weight map, a PNG of (H, W) uint8
``counts``      (K,): number of pixels labeled with each target class
``kept``        share of pixels with a label, in [0, 1]
``confidence``  mean confidence of the pixels with a label, in [0, 1]; 0 if there are none
``row_hash``    16-byte hash of the columns above
``scores``      null, or the classes that a later selection may choose, with their nonconformity scores; encoded,
                beginning with a version byte. The run record holds what is common to all rows (alpha, steps).
``instances``   null, or the image's objects (class, score, box, mask), encoded, beginning with a version byte
``features``    null, or the model's feature vector (float32), for drift, diversity and near-duplicates
``drift``       null, or the distance of the image's statistics from those of the calibration images
``statistics``  null, or a JSON object of numbers that describe the image, in which drift is watched. The state of the
                watch follows from them, the run record and the order of the plan; it needs no place of its own.
``extra_hash``  null if the five columns above are null, else their 16-byte hash. It is separate, so that reading a
                label map checks the row without reading stored scores.
==============  =====================================================================================================

``inputs.lance``, key ``uri``: one row per input.

===============  ====================================================================================================
``uri``          name of the input
``size``         bytes, if the source knows them without reading
``stamp``        the source's mark of the content's age
``condition``    text that decides the labels besides the pixels (image-level labels, prompts of this image), or ""
``id``           the image's labels; null for a reject
``error``        kind of :class:`maskmill.errors.ImageError`; null for a labeled input
``message``      cause of the error; null for a labeled input
``time``         time of the row, microseconds since 1970 UTC: of two stores merged, the later row wins
``fingerprint``  16-byte hash of (uri, size, stamp, condition), compared to skip finished inputs
``row_hash``     16-byte hash of the columns above
===============  ====================================================================================================

``reviews.lance``, key (``id``, ``reviewer``, ``time``): decisions of people. The latest row of an image wins.

===============  ====================================================================================================
``id``           the reviewed labels
``reviewer``     name of the person
``time``         microseconds since 1970 UTC
``verdict``      "corrected", "accepted", "rejected" (do not use this image) or "withdrawn" (as if never reviewed)
``label``        corrected label map, a PNG as in labels; null unless corrected
``region``       PNG of (H, W) uint8, 255 where the corrected map holds; null: everywhere
``instances``    corrected objects, encoded as in labels, or null
``origin``       file or program that the review came from, or null
``note``         remark of the reviewer, or null
``row_hash``     16-byte hash of the columns above
===============  ====================================================================================================

Several writers may commit at once: every commit is a merge on the key, nothing is appended. Row numbers change when
fragments are compacted; only keys identify rows.
"""

from __future__ import annotations

import json
from typing import Literal

import pyarrow as pa

Verdict = Literal["corrected", "accepted", "rejected", "withdrawn"]
"""Decision of a review."""

HASH_BYTES = 16

COVERS = b"maskmill:covers"
"""Metadata of a hash column: a JSON list of the columns that the hash covers, in order."""


def _key(name: str, kind: pa.DataType, position: int = 1) -> pa.Field:
    # Lance compares the keys of rows written at the same time only if the field is marked
    metadata = {
        "lance-schema:unenforced-primary-key": "true",
        "lance-schema:unenforced-primary-key:position": str(position),
    }
    return pa.field(name, kind, nullable=False, metadata=metadata)


def _hash(name: str, columns: list[pa.Field], *, nullable: bool = False) -> pa.Field:
    covered = json.dumps([column.name for column in columns])
    return pa.field(name, pa.binary(HASH_BYTES), nullable=nullable, metadata={COVERS: covered})


def _field(name: str, kind: pa.DataType) -> pa.Field:
    return pa.field(name, kind, nullable=False)


_LABEL_COLUMNS = [
    _key("id", pa.string()),
    _field("width", pa.int32()),
    _field("height", pa.int32()),
    _field("label", pa.binary()),
    _field("weight", pa.binary()),
    _field("counts", pa.list_(pa.int64())),
    _field("kept", pa.float64()),
    _field("confidence", pa.float64()),
]
_EXTRA_COLUMNS = [
    pa.field("scores", pa.binary()),
    pa.field("instances", pa.binary()),
    pa.field("features", pa.list_(pa.float32())),
    pa.field("drift", pa.float64()),
    pa.field("statistics", pa.string()),
]
_INPUT_COLUMNS = [
    _key("uri", pa.string()),
    pa.field("size", pa.int64()),
    _field("stamp", pa.string()),
    _field("condition", pa.string()),
    pa.field("id", pa.string()),
    pa.field("error", pa.string()),
    pa.field("message", pa.string()),
    _field("time", pa.int64()),
    _field("fingerprint", pa.binary(HASH_BYTES)),
]
_REVIEW_COLUMNS = [
    _key("id", pa.string(), 1),
    _key("reviewer", pa.string(), 2),
    _key("time", pa.int64(), 3),
    _field("verdict", pa.string()),
    pa.field("label", pa.binary()),
    pa.field("region", pa.binary()),
    pa.field("instances", pa.binary()),
    pa.field("origin", pa.string()),
    pa.field("note", pa.string()),
]

SCHEMAS: dict[str, pa.Schema] = {
    "labels": pa.schema(
        [
            *_LABEL_COLUMNS,
            _hash("row_hash", _LABEL_COLUMNS),
            *_EXTRA_COLUMNS,
            _hash("extra_hash", _EXTRA_COLUMNS, nullable=True),
        ]
    ),
    "inputs": pa.schema([*_INPUT_COLUMNS, _hash("row_hash", _INPUT_COLUMNS)]),
    "reviews": pa.schema([*_REVIEW_COLUMNS, _hash("row_hash", _REVIEW_COLUMNS)]),
}
"""Schema of each dataset, by name."""

KEYS: dict[str, list[str]] = {"labels": ["id"], "inputs": ["uri"], "reviews": ["id", "reviewer", "time"]}
"""Key columns of each dataset, by name."""


def covered_columns(schema: pa.Schema, hash_column: str = "row_hash") -> list[str]:
    """Return the columns that a hash column covers, as the dataset's own schema names them."""
    metadata = schema.field(hash_column).metadata or {}
    return json.loads(metadata[COVERS])
