"""Files with a worker's observations of the images of a lease."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ...backends.host import HOST
from ...calibration.scores.observe import Observation
from ...calibration.scores.pixel_samples import Draw
from ...calibration.scores.score_counts import NUM_BINS, ScoreCounts
from ...calibration.scores.score_spill import NO_CLASS
from ...store.waiting.row_files import decode_tables, encode_tables

_ARRAYS: dict[str, Any] = {
    "scores": np.float32,
    "classes": np.uint16,
    "statistics": np.float64,
    "target": np.int64,
    "true": np.uint32,
    "hits": np.uint32,
    "wrong": np.uint32,
    "cells": np.int64,
    "drawn": np.int64,
    "weights": np.float64,
    "values": np.float32,
}


def encode_observations(observations: Sequence[Observation], *, has_grid: bool, meta: Mapping[str, Any]) -> bytes:
    """Encode observations of images in order, and plain data about them; without a grid only pixels with a class."""
    rows = [_record(observation, has_grid) for observation in observations]
    texts = ("id", "scene", "activation")
    fields = [*((name, pa.string()) for name in texts), *((name, pa.large_binary()) for name in _ARRAYS)]
    return encode_tables([pa.Table.from_pylist(rows, schema=pa.schema(fields))], meta)


def decode_observations(data: bytes) -> tuple[list[Observation], dict[str, Any]]:
    """Decode (observations, plain data); raises :class:`StoreError` for a damaged file."""
    meta, (table,) = decode_tables(data)
    return [_observation(row) for row in table.to_pylist()], meta


def _record(observation: Observation, has_grid: bool) -> dict[str, Any]:
    scores, classes = (
        values.ravel() for values in observation.backend.download(observation.scores, observation.classes)
    )
    if not has_grid:
        scores, classes = scores[classes != NO_CLASS], classes[classes != NO_CLASS]
    counts, draw = observation.counts, observation.draw
    arrays = {
        "scores": scores,
        "classes": classes,
        "statistics": counts.statistics,
        "target": counts.target,
        "true": counts.true,
        "hits": counts.hits,
        "wrong": counts.wrong,
        "cells": draw.cells,
        "drawn": draw.classes,
        "weights": draw.weights,
        "values": observation.values,
    }
    packed = {name: np.ascontiguousarray(values, _ARRAYS[name]).tobytes() for name, values in arrays.items()}
    return {"id": counts.ids[0], "scene": "".join(counts.scenes), "activation": observation.activation, **packed}


def _observation(row: dict[str, Any]) -> Observation:
    arrays: dict[str, NDArray[Any]] = {name: np.frombuffer(row[name], kind) for name, kind in _ARRAYS.items()}
    target = arrays["target"]
    tables = (arrays[name].reshape(-1, NUM_BINS) for name in ("true", "hits", "wrong"))
    statistics = arrays["statistics"][None]
    scenes = (row["scene"],) if row["scene"] else ()
    counts = ScoreCounts((row["id"],), statistics, np.zeros(len(target), np.int64), target, *tables, scenes=scenes)
    draw = Draw(arrays["cells"], arrays["drawn"], arrays["weights"])
    values = arrays["values"].reshape(len(draw.cells), -1) if len(draw.cells) else np.empty((0, 0), np.float32)
    return Observation(arrays["scores"], arrays["classes"], HOST, counts, draw, values, row["activation"])
