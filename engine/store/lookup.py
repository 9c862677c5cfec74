"""Finding rows of a label store: inputs that are not finished, and one input by a part of its name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa

from ...errors import UsageError
from ..inputs.names import image_id
from ..inputs.sources import Item
from .digests import DIGEST_BYTES, DigestIndex, digest_table
from .rows import InputRow, fingerprint

_CHUNK = 1024


def unfinished(
    items: Iterable[Item],
    fingerprints: Iterable[pa.FixedSizeBinaryArray],
    condition: Callable[[str], str],
    others: bytes = b"",
) -> Iterator[Item]:
    """Return the items whose fingerprints are not among ``fingerprints`` or ``others``, in order.

    The fingerprints are read at once, 16 bytes per input; the items as they are needed.
    """
    digests = [others]
    for column in fingerprints:
        start = column.offset * DIGEST_BYTES
        digests.append(column.buffers()[1][start : start + len(column) * DIGEST_BYTES].to_pybytes())
    finished = DigestIndex(digest_table(b"".join(digests)))
    return _missing(iter(items), finished, condition)


def _missing(items: Iterator[Item], finished: DigestIndex, condition: Callable[[str], str]) -> Iterator[Item]:
    while chunk := list(islice(items, _CHUNK)):
        digests = [fingerprint(item.uri, item.size, item.stamp, condition(item.uri)) for item in chunk]
        for index in np.flatnonzero(finished.find(digest_table(b"".join(digests))) < 0):
            yield chunk[index]


def only_match(store: Path, name: str, rows: Iterable[InputRow]) -> InputRow:
    """Return the labeled input whose uri, end of the path, or file name with or without extension is ``name``.

    Raises :class:`UsageError` if no input or more than one matches, or the input was rejected.
    """
    matches = [row for row in rows if row.uri == name or row.uri.endswith("/" + name) or image_id(row.uri) == name]
    if not matches:
        raise UsageError(f"{store} holds no image {name}")
    if len(matches) > 1:
        raise UsageError(
            f"{name} matches {len(matches)} images of {store} ({matches[0].uri}, {matches[1].uri}, …); give the uri"
        )
    if matches[0].id is None:
        raise UsageError(f"{matches[0].uri} was rejected ({matches[0].error}: {matches[0].message}); it has no labels")
    return matches[0]
