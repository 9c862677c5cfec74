"""Encode the kept scores of one image for the column ``scores`` of a label store.

Maps of codes are nearly linear between the model's own pixels, so they are stored as the differences of differences
along rows and columns, which are mostly near 0: low and high bytes apart, compressed with Zstandard. The format,
version 2, little endian::

    uint8    2
    uint8    flags: 1, classes are 16 bits wide; 2, there is a map of shares
    uint32   number m of further classes
    bytes    one Zstandard frame of: top classes, codes of the top class (low bytes, high bytes), [shares (low, high)],
             dispersion ratios, numbers of further classes, classes (m), codes (low bytes, high bytes) (m)
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from .levels import EDGES, NO_DATA

VERSION = 2
RATIO_LEVELS = 127
"""Largest dispersion ratio, which stands for 1."""

_HEADER = struct.Struct("<BBI")
_WIDE, _SHARES = 1, 2
_CENTER = np.uint16(128)


@dataclass(frozen=True, kw_only=True, eq=False)
class KeptScores:
    """Quantized scores of one image, maps of (H, W)."""

    top: NDArray[Any]
    """uint8, or uint16 for more than 256 scored classes: scored class of the highest score."""
    code: NDArray[np.uint16]
    """Code of its nonconformity score, see :class:`maskmill.engine.labeling.kept.levels.ScoreLevels`."""
    share: NDArray[np.uint16] | None
    """Cell of 1 minus its share of all scores; None if that is its nonconformity score (softmax)."""
    ratio: NDArray[np.uint8]
    """Dispersion of the other classes over its largest possible value, times ``RATIO_LEVELS``."""
    num_more: NDArray[Any]
    """Type of ``top``: number of further classes that a prediction set may hold."""
    more_class: NDArray[Any]
    """(m,) type of ``top``: these classes, pixel by pixel, best first."""
    more_code: NDArray[np.uint16]
    """(m,): codes of their nonconformity scores."""


def encode_scores(kept: KeptScores) -> bytes:
    """Encode the kept scores of one image."""
    flags = (_WIDE if kept.top.dtype == np.uint16 else 0) | (_SHARES if kept.share is not None else 0)
    ratio = kept.ratio.copy()
    ratio[:, 1:] -= kept.ratio[:, :-1]
    ratio[1:] -= ratio[:-1].copy()
    more_codes = kept.more_code.copy()
    more_codes[1:] -= kept.more_code[:-1]
    parts = [kept.top.tobytes(), *_bytes_of_map(kept.code)]
    if kept.share is not None:
        parts += _bytes_of_map(kept.share)
    parts += [ratio.tobytes(), kept.num_more.tobytes(), kept.more_class.tobytes(), *_halves(more_codes)]
    header = _HEADER.pack(VERSION, flags, len(kept.more_code))
    return header + pa.compress(b"".join(parts), codec="zstd", asbytes=True)


def decode_scores(data: bytes, size: tuple[int, int], num_classes: int) -> KeptScores:
    """Decode the kept scores of an image of ``size`` (H, W) with a number of scored classes.

    Raises ValueError if they are damaged; all returned classes and codes are in range.
    """
    if len(data) < _HEADER.size or data[0] != VERSION:
        raise ValueError(f"kept scores of version {data[0] if data else 'none'}, expected version {VERSION}")
    _, flags, num_more = _HEADER.unpack_from(data)
    kind = np.dtype(np.uint16 if flags & _WIDE else np.uint8)
    pixels = size[0] * size[1]
    length = pixels * (2 * kind.itemsize + 3 + 2 * bool(flags & _SHARES)) + num_more * (kind.itemsize + 2)
    try:
        stream = pa.decompress(memoryview(data)[_HEADER.size :], decompressed_size=length, codec="zstd")
    except (OSError, pa.ArrowException) as error:
        raise ValueError(f"kept scores cannot be decompressed: {error}") from error
    from .loops import integrate_bytes, integrate_words

    content, start = np.frombuffer(stream, np.uint8), 0

    def take(num_bytes: int) -> NDArray[np.uint8]:
        nonlocal start
        start += num_bytes
        return content[start - num_bytes : start]

    def take_map() -> NDArray[np.uint16]:
        codes = np.empty(size, np.uint16)
        integrate_words(take(pixels), take(pixels), _CENTER, codes)
        return codes

    top = take(pixels * kind.itemsize).view(kind).reshape(size)
    code = take_map()
    share = take_map() if flags & _SHARES else None
    ratio = np.empty(size, np.uint8)
    integrate_bytes(take(pixels), ratio)
    counts = take(pixels * kind.itemsize).view(kind).reshape(size)
    classes = take(num_more * kind.itemsize).view(kind)
    codes = np.empty((1, num_more), np.uint16)
    integrate_words(take(num_more), take(num_more), _CENTER, codes)
    if int(counts.sum(dtype=np.int64)) != num_more:
        raise ValueError("kept scores are damaged: their counts do not match")
    for name, values, largest in (
        ("class", top, num_classes - 1),
        ("class", classes, num_classes - 1),
        ("code", code, NO_DATA),
        ("code", codes, NO_DATA),
        ("share", share, len(EDGES) - 1),
        ("dispersion", ratio, RATIO_LEVELS),
    ):
        if values is not None and values.size and values.max() > largest:
            raise ValueError(f"kept scores are damaged: a {name} is {values.max()}, expected at most {largest}")
    return KeptScores(
        top=top, code=code, share=share, ratio=ratio, num_more=counts, more_class=classes, more_code=codes[0]
    )


def _bytes_of_map(codes: NDArray[np.uint16]) -> list[bytes]:
    along = codes.copy()
    along[:, 1:] -= codes[:, :-1]
    both = along.copy()
    both[1:] -= along[:-1]
    return _halves(both)


def _halves(values: NDArray[np.uint16]) -> list[bytes]:
    """Return low and high bytes; small negative values get the high byte of small positive ones."""
    centered = (values + _CENTER).astype("<u2", copy=False).reshape(-1).view(np.uint8)
    return [centered[0::2].tobytes(), centered[1::2].tobytes()]
