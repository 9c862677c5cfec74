"""Encode the objects of an image for the column ``instances`` of a label store.

The first byte is the version, 2. The rest is zlib data of a JSON list of ``[target, score, quality, x, y, width,
height, area, counts]``, best object first, with masks as COCO's compressed run lengths.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from math import isfinite
from typing import Any

from ...errors import StoreError, UsageError
from ..formats.base import Instance
from ..formats.rle import runs_of_counts, string_to_counts
from ..model.files import inflate
from .rows import LabelRow

_VERSION = b"\x02"
_MOST_BYTES = 1 << 28


def encode_instances(instances: Sequence[Instance]) -> bytes:
    """Encode objects; scores and qualities are rounded to six digits."""
    rows = [
        [
            instance.target,
            round(instance.score, 6),
            round(instance.quality, 6),
            *instance.box,
            instance.area,
            instance.counts,
        ]  # fmt: skip
        for instance in instances
    ]
    return _VERSION + zlib.compress(json.dumps(rows, separators=(",", ":")).encode(), level=6)


def decode_instances(row: LabelRow, num_targets: int) -> tuple[Instance, ...]:
    """Return the objects of a label row, none if it has none.

    Raises :class:`StoreError` for data of another version, and for damaged ones: a class beyond ``num_targets``, a box
    or a mask that does not lie in the image.
    """
    data, size = row.instances, (row.height, row.width)
    if data is None:
        return ()
    if data[:1] != _VERSION:
        raise StoreError(
            f"the objects of an image are stored in version {data[:1].hex() or 'none'}, this maskmill reads "
            f"{_VERSION.hex()}; label the images again"
        )
    try:
        objects = json.loads(inflate(data[1:], _MOST_BYTES))
        return tuple(_instance(values, size, num_targets) for values in objects)
    except (ValueError, TypeError, OverflowError, RecursionError, UsageError) as error:
        raise StoreError(f"the objects of the image {row.id} are damaged: {error}; label it again") from error


def _instance(values: Any, size: tuple[int, int], num_targets: int) -> Instance:
    target, score, quality, x, y, width, height, area, counts = values
    are_integers = all(type(value) is int for value in (target, x, y, width, height, area))
    if (
        not are_integers
        or not isinstance(counts, str)
        or not all(type(value) in (int, float) for value in (score, quality))
    ):
        raise ValueError("an object has values of other types")
    if not (0 <= target < num_targets and isfinite(score) and isfinite(quality)):
        raise ValueError(f"an object has the class {target}, score {score} and quality {quality}")
    inside = 0 <= x <= x + width <= size[1] and 0 <= y <= y + height <= size[0]
    if width < 0 or height < 0 or not inside or not 0 <= area <= width * height:
        raise ValueError(f"an object has the box {x}, {y}, {width}, {height} of {area} pixels, beyond its image")
    runs_of_counts(string_to_counts(counts), size[0] * size[1])
    return Instance(target=target, score=score, quality=quality, box=(x, y, width, height), area=area, counts=counts)
