"""Run-length encodings of masks: COCO's strings, CVAT's rows and Label Studio's brush.

All masks of a label map are encoded in one pass over its pixels::

    for mask in encode_classes(label):              # (H, W) uint8 or uint16
        mask.value, mask.counts, mask.area, mask.box

The common form of a mask is its *runs*: (n, 2) int64, the first position and the position after the last of every run
of set pixels, counted down the columns (position = x * height + y), as COCO counts them.

Sources: COCO, ``maskApi.c`` of pycocotools; CVAT, "mask" elements of CVAT for images 1.1; Label Studio, ``brush.py`` of
label-studio-sdk.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from ...errors import UsageError
from ...kernels.cpu.compiled import compiled

_STRING_BYTES = 7
"""Most bytes of one count in COCO's string: 5 bits per byte, counts below 2^31."""
_BRUSH_SIZES = (3, 4, 8, 16)
"""Bits of a run's length that Label Studio chooses from."""


@dataclass(frozen=True)
class ClassMask:
    """The pixels of one value of a label map."""

    value: int
    """The value, a class index or the ignore index."""
    counts: str
    """COCO's compressed run lengths, down the columns, the first of them unset pixels."""
    area: int
    """Number of pixels."""
    box: tuple[int, int, int, int]
    """(x, y, width, height) in pixels."""


def encode_classes(label: NDArray[Any]) -> list[ClassMask]:
    """Encode every value that occurs in a label map (H, W) uint8 or uint16, in ascending order.

    The strings are those of ``pycocotools.mask.encode``, byte for byte.
    """
    if not label.size:
        raise ValueError(f"a label map must not be empty, got {label.shape}")
    height = label.shape[0]
    columns = cv2.transpose(label).reshape(-1)
    per_word = 8 // columns.itemsize
    words = columns[: columns.size // per_word * per_word].view(np.uint64)
    text, ends, areas, boxes = _encode(columns, words, per_word, height)
    return [
        ClassMask(
            value,
            text[ends[value, 0] : ends[value, 1]].tobytes().decode("ascii"),
            int(areas[value]),
            (x0, y0, x1 - x0 + 1, y1 - y0 + 1),
        )
        for value in np.flatnonzero(areas).tolist()
        for x0, y0, x1, y1 in [boxes[value].tolist()]
    ]


def string_to_counts(text: str | bytes) -> NDArray[np.int64]:
    """Decode COCO's compressed string to run lengths (n,) int64; raises :class:`UsageError` if it is damaged."""
    raw = np.frombuffer(text.encode() if isinstance(text, str) else text, dtype=np.uint8)
    counts, size = _from_string(raw)
    if size < 0:
        raise UsageError("a compressed RLE string is damaged: it ends within a number or holds other characters")
    return counts[:size]


def counts_to_string(counts: Sequence[int] | NDArray[np.integer[Any]]) -> str:
    """Encode run lengths as COCO's compressed string."""
    values = np.asarray(counts, dtype=np.int64)
    text = np.empty(len(values) * 2 * _STRING_BYTES, dtype=np.uint8)
    return text[: _to_string(values, text)].tobytes().decode("ascii")


def runs_of_counts(counts: Sequence[int] | NDArray[np.integer[Any]], size: int) -> NDArray[np.int64]:
    """Turn run lengths, the first of them unset pixels, into runs (n, 2) int64 within ``size`` pixels.

    Raises :class:`UsageError` unless the lengths add up to ``size``.
    """
    lengths = np.asarray(counts, dtype=np.int64)
    edges = np.cumsum(lengths)
    if lengths.ndim != 1 or (lengths < 0).any() or (edges[-1] if len(edges) else 0) != size:
        raise UsageError(
            f"the run lengths of a mask add up to {int(edges[-1]) if edges.ndim == 1 and len(edges) else 0:,} pixels, "
            f"expected {size:,} (height times width)"
        )
    edges = edges[: len(edges) // 2 * 2]
    return edges.reshape(-1, 2)


def runs_of_mask(mask: NDArray[Any]) -> NDArray[np.int64]:
    """Return the runs of the nonzero pixels of a mask (H, W)."""
    columns = np.zeros(mask.size + 2, dtype=np.int8)
    columns[1:-1] = (mask != 0).ravel(order="F")
    return np.flatnonzero(np.diff(columns)).astype(np.int64).reshape(-1, 2)


def paint_runs(columns: NDArray[Any], runs: NDArray[np.int64], value: int) -> None:
    """Set the pixels of ``runs`` in a map stored down the columns, (H * W,)."""
    _paint(columns, runs, value)


def row_counts(mask: NDArray[Any]) -> list[int]:
    """Return the run lengths of a mask (H, W) along its rows, starting with unset pixels, as CVAT writes them."""
    rows = np.zeros(mask.size + 2, dtype=np.int8)
    rows[1:-1] = (mask != 0).ravel()
    edges = np.flatnonzero(np.diff(rows))
    bounds = np.concatenate([[0], edges, [mask.size]])
    counts = np.diff(bounds)
    # a mask that ends in set pixels has its last edge at the end
    return counts[:-1].tolist() if counts[-1] == 0 and len(counts) > 1 else counts.tolist()


def mask_of_row_counts(counts: Sequence[int], height: int, width: int) -> NDArray[np.bool_]:
    """Invert :func:`row_counts`; raises :class:`UsageError` unless the lengths add up to the box."""
    mask = np.zeros(height * width, dtype=np.bool_)
    paint_runs(mask, runs_of_counts(counts, height * width), True)
    return mask.reshape(height, width)


def brush_of_mask(mask: NDArray[Any]) -> list[int]:
    """Encode a mask (H, W) as Label Studio's brush RLE: bytes of a bit stream over RGBA pixels, set pixels 255."""
    rows = np.ascontiguousarray(mask != 0).reshape(-1)
    data = np.zeros(13 + 4 * mask.size, dtype=np.uint8)
    return data[: _to_brush(rows, data)].tolist()


def mask_of_brush(data: Sequence[int], height: int, width: int) -> NDArray[np.bool_]:
    """Decode Label Studio's brush RLE to a mask (H, W): pixels whose alpha is not 0.

    Raises :class:`UsageError` if the stream is damaged or of another size.
    """
    try:
        raw = np.asarray(data, dtype=np.uint8)
    except (ValueError, OverflowError) as error:
        raise UsageError(f"a Label Studio brush is a list of bytes: {error}") from error
    mask = np.zeros(height * width, dtype=np.bool_)
    size = _from_brush(raw, mask)
    if size != 4 * mask.size:
        raise UsageError(
            f"a Label Studio brush holds {max(size, 0):,} bytes of RGBA, expected {4 * mask.size:,} for "
            f"{width}x{height} pixels; original_width and original_height must be those of the image"
        )
    return mask.reshape(height, width)


@compiled()
def _put(text, position, value):
    """Append a signed number to COCO's string; returns the next position."""
    continues = True
    while continues:
        code = value & 0x1F
        value >>= 5
        continues = value != -1 if code & 0x10 else value != 0
        if continues:
            code |= 0x20
        text[position] = code + 48
        position += 1
    return position


@compiled()
def _to_string(counts, text):
    position = 0
    for i in range(counts.size):
        value = counts[i]
        if i > 2:
            value -= counts[i - 2]
        position = _put(text, position, value)
    return position


@compiled()
def _from_string(raw):
    counts = np.empty(raw.size, np.int64)
    size, position = 0, 0
    while position < raw.size:
        value, shift, continues = np.int64(0), 0, True
        while continues:
            if position >= raw.size or shift > 60:
                return counts, -1
            code = np.int64(raw[position]) - 48
            if code < 0 or code > 63:
                return counts, -1
            value |= (code & 0x1F) << shift
            continues = (code & 0x20) != 0
            position += 1
            shift += 5
            if not continues and code & 0x10:
                value |= np.int64(-1) << shift
        if size > 2:
            value += counts[size - 2]
        if value < 0:
            return counts, -1
        counts[size] = value
        size += 1
    return counts, size


@compiled()
def _run_starts(columns, words, per_word):
    """Return the start of every run of equal values, then the size; ``words`` are the values, 64 bits at a time."""
    total = columns.size
    starts = np.empty(total + 1, np.int32)
    starts[0], count = 0, 1
    value = columns[0]
    bits = np.uint64(64 // per_word)
    repeat = np.uint64(0)
    for _ in range(per_word):
        repeat = repeat << bits | np.uint64(1)
    for word in range(words.size):
        if words[word] == repeat * np.uint64(value):
            continue
        for i in range(word * per_word, (word + 1) * per_word):
            if columns[i] != value:
                value = columns[i]
                starts[count] = i
                count += 1
    for i in range(words.size * per_word, total):
        if columns[i] != value:
            value = columns[i]
            starts[count] = i
            count += 1
    starts[count] = total
    return starts, count


@compiled()
def _encode(columns, words, per_word, height):
    """Return the strings, their ends, areas and boxes of every value in a map stored down the columns."""
    total = columns.size
    starts, num_runs = _run_starts(columns, words, per_word)
    largest = np.int64(0)
    for run in range(num_runs):
        largest = max(largest, np.int64(columns[starts[run]]))
    runs_of = np.zeros(largest + 1, np.int64)
    for run in range(num_runs):
        runs_of[columns[starts[run]]] += 1
    ends = np.zeros((largest + 1, 2), np.int64)
    room = np.int64(0)
    for value in range(largest + 1):
        ends[value, :] = room
        if runs_of[value]:
            room += (2 * runs_of[value] + 1) * 7
    text = np.empty(room, np.uint8)
    areas = np.zeros(largest + 1, np.int64)
    boxes = np.empty((largest + 1, 4), np.int64)
    last = np.zeros(largest + 1, np.int64)
    # the last two unset and set lengths of every value, which the string subtracts
    before = np.zeros((largest + 1, 2), np.int64)
    number = np.zeros(largest + 1, np.int64)
    for run in range(num_runs):
        start, stop = starts[run], starts[run + 1]
        value = np.int64(columns[start])
        unset, length = start - last[value], stop - start
        last[value] = stop
        x0, x1 = start // height, (stop - 1) // height
        y0, y1 = start - x0 * height, stop - 1 - x1 * height
        if x0 != x1:
            y0, y1 = 0, height - 1
        if number[value] == 0:
            boxes[value, 0], boxes[value, 1], boxes[value, 2], boxes[value, 3] = x0, y0, x1, y1
        else:
            boxes[value, 1] = min(boxes[value, 1], y0)
            boxes[value, 2] = x1
            boxes[value, 3] = max(boxes[value, 3], y1)
        areas[value] += length
        position = ends[value, 1]
        position = _put(text, position, unset - before[value, 0] if number[value] > 2 else unset)
        position = _put(text, position, length - before[value, 1] if number[value] > 1 else length)
        ends[value, 1] = position
        before[value, 0], before[value, 1] = unset, length
        number[value] += 2
    for value in range(largest + 1):
        if number[value] and last[value] < total:
            remainder = total - last[value]
            ends[value, 1] = _put(
                text, ends[value, 1], remainder - before[value, 0] if number[value] > 2 else remainder
            )
    return text, ends, areas, boxes


@compiled()
def _paint(columns, runs, value):
    for i in range(runs.shape[0]):
        for position in range(runs[i, 0], runs[i, 1]):
            columns[position] = value


@compiled()
def _put_bits(data, position, value, bits):
    for shift in range(bits - 1, -1, -1):
        if (value >> shift) & 1:
            data[position >> 3] |= np.uint8(128 >> (position & 7))
        position += 1
    return position


@compiled()
def _to_brush(rows, data):
    """Write the bit stream, which consists of series only (a run has at least four values); return its bytes."""
    position = _put_bits(data, 0, 4 * rows.size, 32)
    position = _put_bits(data, position, 7, 5)
    for bits in _BRUSH_SIZES:
        position = _put_bits(data, position, bits - 1, 4)
    start = 0
    while start < rows.size:
        stop = start + 1
        while stop < rows.size and rows[stop] == rows[start]:
            stop += 1
        length, value = 4 * (stop - start), 255 if rows[start] else 0
        while length > 0:
            piece = min(length, 65536)
            index = 0 if piece <= 8 else 1 if piece <= 16 else 2 if piece <= 256 else 3
            position = _put_bits(data, position, 4 + index, 3)
            position = _put_bits(data, position, piece - 1, _BRUSH_SIZES[index])
            position = _put_bits(data, position, value, 8)
            length -= piece
        start = stop
    # Label Studio pads a stream that ends on a byte by a whole byte
    return (position >> 3) + 1


@compiled()
def _bits(raw, position, bits):
    value = np.int64(0)
    for i in range(position, position + bits):
        value = value << 1 | (np.int64(raw[i >> 3]) >> (7 - (i & 7)) & 1)
    return value


@compiled()
def _from_brush(raw, mask):
    """Set the pixels whose alpha is not 0; returns the number of RGBA values, -1 for a damaged stream."""
    limit = 8 * raw.size
    if limit < 53:
        return -1
    total = _bits(raw, 0, 32)
    if total != 4 * mask.size:
        return total
    word = _bits(raw, 32, 5) + 1
    sizes = np.empty(4, np.int64)
    for i in range(4):
        sizes[i] = _bits(raw, 37 + 4 * i, 4) + 1
    position, i = 53, 0
    while i < total:
        if position + 3 > limit:
            return -1
        series = _bits(raw, position, 1)
        bits = sizes[_bits(raw, position + 1, 2)]
        position += 3
        if position + bits > limit:
            return -1
        stop = i + 1 + _bits(raw, position, bits)
        position += bits
        if stop > total or position + word * (1 if series else stop - i) > limit:
            return -1
        if series:
            value = _bits(raw, position, word)
            position += word
            if value:
                for pixel in range(i >> 2, (stop + 3) >> 2):
                    if 4 * pixel + 3 >= i and 4 * pixel + 3 < stop:
                        mask[pixel] = True
        else:
            for channel in range(i, stop):
                value = _bits(raw, position, word)
                position += word
                if value and channel & 3 == 3:
                    mask[channel >> 2] = True
        i = stop
    return total
