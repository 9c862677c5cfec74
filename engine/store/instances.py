"""Encode the objects of an image for the column ``instances`` of a label store.

The first byte is the version, 2. The rest is zlib data of a JSON list of ``[target, score, quality, x, y, width,
height, area, counts]``, best object first, with masks as COCO's compressed run lengths.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence

from ...errors import StoreError
from ..formats.base import Instance

_VERSION = b"\x02"


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


def decode_instances(data: bytes) -> tuple[Instance, ...]:
    """Invert :func:`encode_instances`; raises :class:`StoreError` for data of another version."""
    if data[:1] != _VERSION:
        raise StoreError(
            f"the objects of an image are stored in version {data[:1].hex() or 'none'}, this maskmill reads "
            f"{_VERSION.hex()}; label the images again"
        )
    return tuple(
        Instance(target=target, score=score, quality=quality, box=(x, y, width, height), area=area, counts=counts)
        for target, score, quality, x, y, width, height, area, counts in json.loads(zlib.decompress(data[1:]))
    )
