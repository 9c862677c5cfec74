"""Nonconformity scores of many images, spilled to disk."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

NO_CLASS = 65535
"""Class of a grid cell without a true class."""


class ScoreSpill:
    """True-class scores of many images in two files of a folder.

    With a ``grid`` (height, width) every image holds one score a cell, NaN where the cell has no true class.
    """

    def __init__(self, folder: Path, *, grid: tuple[int, int] | None = None) -> None:
        self.grid = grid
        self._paths = (folder / "scores.f32", folder / "classes.u16")
        self._streams = tuple(path.open("wb") for path in self._paths)
        self._ends = [0]
        self._maps: tuple[NDArray[np.float32], NDArray[np.uint16]] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for stream in self._streams:
            stream.close()

    def append(self, scores: NDArray[np.float32], classes: NDArray[np.integer[Any]]) -> None:
        """Add one image: scores and true classes of its pixels, both flat and of the same length."""
        self._streams[0].write(np.ascontiguousarray(scores, np.float32).tobytes())
        self._streams[1].write(np.ascontiguousarray(classes, np.uint16).tobytes())
        self._ends.append(self._ends[-1] + len(scores))

    def finish(self) -> None:
        """Close the files for writing and map them for reading."""
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
        return len(self._ends) - 1

    def image(self, index: int) -> tuple[NDArray[np.float32], NDArray[np.uint16]]:
        """Scores and classes of one image."""
        assert self._maps is not None, "finish() comes before reading"
        chosen = slice(self._ends[index], self._ends[index + 1])
        return self._maps[0][chosen], self._maps[1][chosen]

    def images(self, indices: Sequence[int]) -> Iterator[tuple[NDArray[np.float32], NDArray[np.uint16]]]:
        """Scores and classes of several images."""
        return (self.image(index) for index in indices)

    def rows(self, start: int, stop: int, indices: Sequence[int]) -> NDArray[np.float32]:
        """Scores (n, rows, width) of a band of the grid."""
        assert self.grid is not None, "only a grid has rows"
        assert self._maps is not None, "finish() comes before reading"
        cells = self._maps[0].reshape(len(self), *self.grid)
        return cells[np.asarray(indices), start:stop]
