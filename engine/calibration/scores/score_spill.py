"""Nonconformity scores of many images: on the device that computed them, or in files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from ....kernels.types import BackendArray
from ...backends.base import Backend
from ...backends.host import HOST

NO_CLASS = 65535
"""Class of a grid cell without a true class."""


class ScoreSpill:
    """True-class scores of many images, on a device while it has memory for them, otherwise in two files of a folder.

    With a ``grid`` (height, width) every image holds one score per cell, NaN if the cell has no true class.
    """

    def __init__(self, folder: Path, *, grid: tuple[int, int] | None = None) -> None:
        self.grid = grid
        self.backend: Backend = HOST
        """Backend that holds the scores."""
        self._kept: list[tuple[Any, Any]] = []
        self._num_bytes = 0
        self._paths = (folder / "scores.f32", folder / "classes.u16")
        self._streams = tuple(path.open("wb") for path in self._paths)
        self._ends = [0]
        self._firsts: list[int] = []  # windows of one file are one image
        self._maps: tuple[NDArray[np.float32], NDArray[np.uint16]] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for stream in self._streams:
            stream.close()

    def append(self, scores: Any, classes: Any, backend: Backend = HOST, *, joined: bool = False) -> None:
        """Add one image: scores float32 and true classes uint16 of its pixels, of the same shape, on ``backend``.

        With ``joined`` they belong to the previous image, as another window of its file; not with a grid.
        Pixels of :data:`NO_CLASS` have the score NaN; files without a grid leave them out.
        """
        if len(self) == 0:
            self.backend = backend if backend.keep_limit else HOST
        if not joined:
            self._firsts.append(len(self._kept) or len(self._ends) - 1)
        if self.backend is HOST:
            self._write(*backend.download(scores, classes))
            return
        self._kept.append((scores.ravel(), classes.ravel()))
        self._num_bytes += scores.nbytes + classes.nbytes
        if self._num_bytes > self.backend.keep_limit:
            self._move_to_files()

    def _move_to_files(self) -> None:
        for pair in self._kept:
            self._write(*self.backend.download(*pair))
        self.backend, self._kept = HOST, []

    def _write(self, scores: NDArray[np.float32], classes: NDArray[np.integer[Any]]) -> None:
        scores, classes = np.asarray(scores, np.float32).ravel(), np.asarray(classes, np.uint16).ravel()
        pixels = slice(None) if self.grid else classes != NO_CLASS
        self._streams[0].write(scores[pixels].tobytes())
        self._streams[1].write(classes[pixels].tobytes())
        self._ends.append(self._ends[-1] + len(scores[pixels]))

    def finish(self) -> None:
        """Close the files for writing and map them for reading, unless the scores are on a device."""
        for stream in self._streams:
            stream.close()
        if self._ends[-1] == 0:
            self._maps = (np.empty(0, np.float32), np.empty(0, np.uint16))
        else:
            self._maps = (
                np.memmap(self._paths[0], np.float32, mode="r"),
                np.memmap(self._paths[1], np.uint16, mode="r"),
            )

    def __len__(self) -> int:
        return len(self._firsts)

    def image(self, index: int) -> tuple[Any, Any]:
        """Return scores and classes of one image, flat, on ``backend``."""
        num_parts = len(self._kept) or len(self._ends) - 1
        first, last = self._firsts[index], self._firsts[index + 1] if index + 1 < len(self) else num_parts
        if self._kept:
            if last == first + 1:
                return self._kept[first]
            scores, classes = zip(*self._kept[first:last], strict=True)
            return self.backend.xp.concatenate(scores), self.backend.xp.concatenate(classes)
        assert self._maps is not None, "finish() comes before reading"
        part = slice(self._ends[first], self._ends[last])
        return self._maps[0][part], self._maps[1][part]

    def images(self, indices: Sequence[int]) -> Iterator[tuple[Any, Any]]:
        """Return scores and classes of several images, one image after the other."""
        return (self.image(index) for index in indices)

    def rows(self, start: int, stop: int, indices: Sequence[int]) -> BackendArray:
        """Return the scores (n, rows, width) of a band of the grid, on ``backend``."""
        assert self.grid is not None, "only a grid has rows"
        if self._kept:
            maps = [self._kept[index][0].reshape(self.grid) for index in indices]
            return self.backend.xp.stack([scores[start:stop] for scores in maps])
        assert self._maps is not None, "finish() comes before reading"
        cells = self._maps[0].reshape(len(self), *self.grid)
        return cells[np.asarray(indices), start:stop]
