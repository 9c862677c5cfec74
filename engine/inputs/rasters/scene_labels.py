"""Labels of windows: the part of a label map of the whole file that a window shows."""

from __future__ import annotations

import os
import threading
from typing import Any, Protocol

from numpy.typing import NDArray

from ....errors import ImageError, UsageError
from ...model.color_tables import ColorTable
from ...reading.geotiff import Window, raster_shape


class LabelFiles(Protocol):
    """Source of label maps, such as :class:`..labels.LabelSource`."""

    format: str
    """Format of the labels; empty for label maps."""

    def read(
        self, entry: Any, colors: ColorTable | None = None, *, size: tuple[int, int] | None = None
    ) -> NDArray[Any]:
        """Read label indices (H, W)."""
        ...


class SceneLabels:
    """Label maps of whole files, read window by window; the latest map is kept. Reads from any thread."""

    def __init__(self, labels: LabelFiles, colors: ColorTable | None) -> None:
        self._labels = labels
        self._colors = colors
        self._lock = threading.Lock()
        self._latest: tuple[str, NDArray[Any]] | None = None

    def __getstate__(self) -> dict[str, Any]:
        # locks cannot be sent to other processes
        return {"_labels": self._labels, "_colors": self._colors}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _lock=threading.Lock(), _latest=None)

    def read(self, entry: Any, path: str, window: Window) -> NDArray[Any]:
        """Return the label indices (H, W) of a window of the file ``path``.

        Raises :class:`UsageError` if the file's label map has another size, :class:`ImageError` if it cannot be read.
        """
        with self._lock:
            if self._latest is None or self._latest[0] != path:
                self._latest = path, self._whole(entry, path)
            label = self._latest[1]
        return label[window.row : window.row + window.height, window.column : window.column + window.width]

    def _whole(self, entry: Any, path: str) -> NDArray[Any]:
        try:
            shape = raster_shape(path)
        except ImageError as error:
            raise ImageError(error.kind, f"cannot read {path}: {error}") from error
        size = shape if self._labels.format else None
        label = self._labels.read(entry, self._colors, size=size)
        if label.shape != shape:
            raise UsageError(
                f"{entry.name} is {label.shape[1]}x{label.shape[0]} px, and {os.path.basename(path)}, which is read by "
                f"windows, {shape[1]}x{shape[0]}; they must be of the same size"
            )
        return label
