"""Local maxima of maps with Numba: one pass over all pixels, then a search around the maxima of bands of rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np

from ...errors import UsageError
from ..plans.outputs import output
from ..plans.peaks import border_widths, cam_distance, check_maps
from ..types import CamMode, Peaks
from . import threads
from .compiled import compiled

_WORTH_THREADS = 1 << 20
"""Pixels below which starting threads costs more than it saves."""

_INF = 0x7F800000


@compiled()
def _range(bits):
    """Return the smallest and the largest value of float32 bits viewed as int32, and whether any is NaN.

    The loop compares integer keys in the order of the values (in negative numbers all bits except the sign are
    inverted): it runs in vectors, and NaN sorts beyond the infinities.
    """
    lowest, highest = np.int32(0x7FFFFFFF), np.int32(-0x80000000)
    for i in range(bits.size):
        key = np.int32(bits[i] ^ ((bits[i] >> 31) & 0x7FFFFFFF))
        lowest, highest = min(lowest, key), max(highest, key)
    has_nan = highest > _INF or lowest < -1 - _INF
    return _of_key(lowest), _of_key(highest), has_nan


@compiled()
def _of_key(key):
    return np.int32(key ^ ((key >> 31) & 0x7FFFFFFF)).view(np.float32)


@compiled()
def _larger(first, second, out):
    # The three arrays are distinct: LLVM does not vectorize a loop that overwrites its input.
    for x in range(out.size):
        out[x] = first[x] if first[x] > second[x] else second[x]


@compiled()
def _column_maxima(values, start, stop, maxima, spare):
    """Compute the column maxima of rows start..stop-1, in ``maxima`` or ``spare``, and return that array."""
    maxima[:] = values[start]
    for y in range(start + 1, stop):
        _larger(values[y], maxima, spare)
        maxima, spare = spare, maxima
    return maxima


@compiled()
def _spread(line, spare, third_line, window, out):
    """Compute the maxima of line[x : x + window] by doubling the window; both spare lines are overwritten."""
    step, length = 1, out.size + window - 1
    while 2 * step <= window:
        length -= step
        _larger(line, line[step:], spare[:length])
        line, spare, third_line = spare, third_line, spare
        step *= 2
    _larger(line, line[window - step :], out)


@compiled()
def _flag(values, maxima, threshold, flags):
    for x in range(values.size):
        flags[x] = (values[x] == maxima[x]) & (values[x] > threshold)


@compiled()
def _leads_other_rows(values, y, x, radius, start, stop):
    """Return True if no pixel within ``radius`` (Chebyshev), in rows < start or >= stop, exceeds this pixel."""
    value = values[y, x]
    left, right = max(x - radius, 0), min(x + radius + 1, values.shape[1])
    for distance in range(1, radius + 1):
        for row in (y - distance, y + distance):
            if 0 <= row < start or stop <= row < values.shape[0]:
                for column in range(left, right):
                    if values[row, column] > value:
                        return False
    return True


@compiled()
def _candidates(values, radius, threshold, highest, inside, indices):
    """Find the pixels that equal the maximum within ``radius`` of them (Chebyshev), and return their number.

    Fills ``indices`` with their raster indices, in the order of the search. Only pixels in ``inside`` = (top, bottom,
    left, right) that exceed the threshold count. In a band of radius + 1 rows such a pixel is the maximum of its
    column, and the column's maximum is the largest within ``radius`` columns. Few pixels pass this test; those that are
    not the map's maximum are then compared with the rows beyond the band.
    """
    width, window = values.shape[1], 2 * radius + 1
    top, bottom, left, right = inside
    first, second, row = np.empty(width, np.float32), np.empty(width, np.float32), np.empty(width, np.float32)
    line = np.full(width + 2 * radius, -np.inf, np.float32)
    spare, third_line = np.empty_like(line), np.empty_like(line)
    flags = np.zeros((right - left + 7) // 8 * 8, np.uint8)
    eights = flags.view(np.uint64)
    count = 0
    for start in range(top, bottom, radius + 1):
        stop = min(start + radius + 1, bottom)
        maxima = _column_maxima(values, start, stop, first, second)
        line[radius : radius + width] = maxima
        _spread(line, spare, third_line, window, row)
        _flag(maxima[left:right], row[left:right], threshold, flags)
        for k in range(eights.size):
            if eights[k] == 0:
                continue
            for x in range(left + 8 * k, min(left + 8 * k + 8, right)):
                if flags[x - left] == 0:
                    continue
                for y in range(start, stop):
                    if values[y, x] == maxima[x] and (
                        maxima[x] == highest or _leads_other_rows(values, y, x, radius, start, stop)
                    ):
                        indices[count] = y * width + x
                        count += 1
    return count


@compiled()
def _spaced(order, height, width, distance, limit, accepted):
    """Fill ``accepted`` with the indices that are far enough from all earlier ones, and return their number.

    A cell as wide as the distance holds at most one accepted peak, so nine cells are checked per index.
    """
    cells = np.full((height // distance + 3, width // distance + 3), -1, np.int64)
    count = 0
    for index in order:
        if count >= limit:
            break
        y, x = index // width, index % width
        row, column = y // distance + 1, x // distance + 1
        is_free = True
        for i in range(row - 1, row + 2):
            for j in range(column - 1, column + 2):
                neighbor = cells[i, j]
                if neighbor >= 0:
                    is_free &= max(abs(y - neighbor // width), abs(x - neighbor % width)) >= distance
        if is_free:
            cells[row, column] = index
            accepted[count] = index
            count += 1
    return count


def _threshold(lowest: float, highest: float, threshold_abs: float | None, threshold_rel: float | None) -> np.float32:
    threshold = np.float32(lowest if threshold_abs is None else threshold_abs)
    if threshold_rel is not None:
        # Not maximum(): 0 times an infinite maximum is NaN, which must not win.
        relative = np.float32(threshold_rel) * np.float32(highest)
        threshold = relative if relative > threshold else threshold
    return threshold


class _Finder:
    """Finds the peaks of one map after another in buffers of its own."""

    def __init__(self, shape: tuple[int, int], min_distance: int, border: tuple[int, int], limit: int) -> None:
        height, width = shape
        self.distance, self.limit = min_distance, limit
        self.inside = (border[0], height - border[0], border[1], width - border[1])
        self.indices, self.accepted = np.empty(height * width, np.int64), np.empty(height * width, np.int64)

    def peaks(self, values: np.ndarray, threshold_abs: float | None, threshold_rel: float | None) -> np.ndarray:
        """Return the raster indices of a map's first peaks, strongest first: int64 (count,), a view of a buffer."""
        lowest, highest, has_nan = _range(values.reshape(-1).view(np.int32))
        if has_nan:
            raise UsageError("a map holds NaN; peaks are defined on numbers and infinities only")
        top, bottom, left, right = self.inside
        if (lowest == highest and values.size > 1) or top >= bottom or left >= right:
            return self.indices[:0]
        threshold = _threshold(lowest, highest, threshold_abs, threshold_rel)
        count = _candidates(values, self.distance, threshold, highest, self.inside, self.indices)
        candidates = self.indices[:count]
        candidates.sort()
        order = candidates[np.argsort(-values.reshape(-1)[candidates], kind="stable")]
        if self.distance == 1:
            return order[: self.limit]
        height, width = values.shape
        return self.accepted[: _spaced(order, height, width, self.distance, self.limit, self.accepted)]


def _batch(maps: np.ndarray) -> np.ndarray:
    maps = np.ascontiguousarray(maps, np.float32)
    check_maps(maps.shape)
    return maps.reshape((-1, *maps.shape[-2:]))


def _in_threads(find: Callable[[np.ndarray], Iterable[np.ndarray]], maps: np.ndarray) -> list[np.ndarray]:
    """Call ``find`` on parts of the maps, in threads, and return its results of all maps, in order."""
    parts = np.array_split(maps, min(threads.num_threads(maps.size, _WORTH_THREADS), max(len(maps), 1)))
    results: list[list[np.ndarray]] = [[] for _ in parts]
    threads.share(lambda part, into: into.extend(find(part)), list(zip(parts, results, strict=True)), len(parts))
    return [indices for part in results for indices in part]


def _buffer(
    peaks: list[np.ndarray], width: int, capacity: int | None, out: Peaks[np.ndarray] | None
) -> Peaks[np.ndarray]:
    """Write the raster indices of each map's peaks to a buffer of fixed capacity."""
    if capacity is None:
        capacity = int(max(map(len, peaks), default=0) if out is None else out.coordinates.shape[1])
    number = len(peaks)
    coordinates = output(out and out.coordinates, (number, capacity, 2), np.int64, "out.coordinates")
    count = output(out and out.count, (number,), np.int64, "out.count")
    overflow = output(out and out.overflow, (number,), np.bool_, "out.overflow")
    for n, indices in enumerate(peaks):
        count[n], overflow[n] = min(len(indices), capacity), len(indices) > capacity
        points = coordinates[n, : count[n]]
        np.floor_divide(indices[:capacity], width, out=points[:, 0])
        np.remainder(indices[:capacity], width, out=points[:, 1])
        coordinates[n, count[n] :] = -1
    return Peaks(coordinates, count, overflow)


def peak_local_max(
    maps: np.ndarray,
    *,
    min_distance: int = 1,
    threshold_abs: float | None = None,
    threshold_rel: float | None = None,
    exclude_border: bool | int | tuple[int, int] = True,
    num_peaks: int | None = None,
    capacity: int | None = None,
    out: Peaks[np.ndarray] | None = None,
) -> Peaks[np.ndarray]:
    """Run :func:`maskmill.kernels.peak_local_max` on NumPy arrays."""
    maps = _batch(maps)
    border = border_widths(exclude_border, min_distance)
    limit = maps.shape[1] * maps.shape[2] if num_peaks is None else num_peaks

    def find(part: np.ndarray) -> list[np.ndarray]:
        finder = _Finder((part.shape[1], part.shape[2]), min_distance, border, limit)
        return [finder.peaks(values, threshold_abs, threshold_rel).copy() for values in part]

    return _buffer(_in_threads(find, maps), maps.shape[2], capacity, out)


def cam_peaks(
    cams: np.ndarray,
    *,
    mode: CamMode = "paper",
    threshold: float = 0.5,
    min_distance: int | None = None,
    always_argmax: bool = False,
    capacity: int = 256,
) -> Peaks[np.ndarray]:
    """Run :func:`maskmill.kernels.cam_peaks` on NumPy arrays."""
    cams = _batch(cams)
    distance = cam_distance(mode, min_distance)

    def find(part: np.ndarray) -> Iterator[np.ndarray]:
        height, width = part.shape[1:]
        finder = _Finder((height, width), distance, border_widths(True, distance), height * width)
        for values in part:
            scores = values.reshape(-1)
            if mode == "paper":
                points = finder.peaks(values, threshold, None)
                if always_argmax and not (points == scores.argmax()).any():
                    points = np.append(points, scores.argmax())
            else:
                rows = np.pad(values, 1)
                rows = np.maximum(np.maximum(rows[:-2], rows[1:-1]), rows[2:])
                filtered = np.maximum(np.maximum(rows[:, :-2], rows[:, 1:-1]), rows[:, 2:])
                points = finder.peaks(filtered, None, None)
                points = points[scores[points] > np.float32(threshold)]
                points = np.concatenate([[scores.argmax()], points[1:]])
            yield points.copy()

    return _buffer(_in_threads(find, cams), cams.shape[2], capacity, None)
