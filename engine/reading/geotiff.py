"""TIFF through rasterio: windows of large files.

A window of a file is an image of its own, with a uri such as ``scene.tif::window=0,2048,2048,2048``: row, column,
height and width in pixels. Only its part of the file is read::

    for window in windows_of("scene.tif", Windows(side=2048, overlap=256)):
        data = read_window("scene.tif", window, max_bytes=2**30)    # the window as the bytes of a .npy file

Reading a file imports rasterio, which the extra ``geo`` installs.
"""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...errors import ImageError, MissingPackageError, UsageError

MARK = "::window="
"""Text between a file's name and the window in a uri."""
TIFF_ENDINGS = (".tif", ".tiff")

_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
SETTINGS = {"GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR", "GDAL_PAM_ENABLED": "NO", "CPL_LOG": os.devnull}
"""Options of GDAL: no files beside the one that is opened, and no log."""
_MAX_WINDOWS = 1_000_000


class Window(NamedTuple):
    """Part of a file, in pixels."""

    row: int
    column: int
    height: int
    width: int

    def text(self) -> str:
        """Return the text of a uri behind the file's name."""
        return f"{MARK}{self.row},{self.column},{self.height},{self.width}"


@dataclass(frozen=True, kw_only=True)
class Windows:
    """Cut of large GeoTIFF files into windows."""

    side: int
    """Height and width of a window, in pixels."""
    overlap: int = 0
    """Overlap of neighboring windows; a merged label map takes each pixel from the window whose border is farther."""

    def __post_init__(self) -> None:
        if self.side < 16 or not 0 <= self.overlap <= self.side // 2:
            raise UsageError(
                f"windows must be at least 16 pixels wide and overlap by at most half of that, got {self.side} pixels "
                f"with an overlap of {self.overlap}"
            )

    def cut(self, height: int, width: int) -> list[Window]:
        """Return the windows of a file of this size, row by row; the last ones of a row and column are smaller."""
        return [
            Window(row, column, min(self.side, height - row), min(self.side, width - column))
            for row in self._starts(height)
            for column in self._starts(width)
        ]

    def _starts(self, size: int) -> range:
        step = self.side - self.overlap
        return range(0, max(1, size - self.overlap), step)


def cut_of(side: int | None, overlap: int) -> Windows | None:
    """Return windows of this side and overlap, None without a side; raises :class:`UsageError`."""
    if side is None:
        if overlap:
            raise UsageError("an overlap of windows needs their side, --windows PIXELS; give both or neither")
        return None
    return Windows(side=side, overlap=overlap)


def split_window(uri: str) -> tuple[str, Window] | None:
    """Return (file, window) of the uri of a window; None for any other uri."""
    path, mark, text = uri.rpartition(MARK)
    parts = text.split(",")
    if not mark or len(parts) != 4 or not all(part.isdecimal() and len(part) < 10 for part in parts):
        return None
    return path, Window(*map(int, parts))


def files_of(uris: Sequence[str]) -> NDArray[np.int64]:
    """Return the index (n,) of the file of each uri; windows of one file share it, other images have their own."""
    first: dict[str, int] = {}
    parts = [split_window(uri) for uri in uris]
    keys = [index if part is None else first.setdefault(part[0], index) for index, part in enumerate(parts)]
    return np.unique(np.array(keys, np.int64), return_inverse=True)[1]


def is_tiff(data: bytes) -> bool:
    """Return True for the bytes of a TIFF file, BigTIFF included."""
    return data.startswith(_MAGIC)


def has_tiff_ending(name: str) -> bool:
    """Return True for a file name that ends in ``.tif`` or ``.tiff``, in any case."""
    return name.lower().endswith(TIFF_ENDINGS)


def rasterio_for(purpose: str) -> ModuleType:
    """Return the module rasterio; raises :class:`MissingPackageError` that names ``purpose``."""
    try:
        import rasterio
    except ImportError as error:
        raise MissingPackageError("rasterio", "geo", purpose) from error
    # a file without coordinates is valid here; functions that need coordinates check for them
    warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
    return rasterio


def raster_shape(path: str) -> tuple[int, int]:
    """Return the (height, width) of a TIFF file from its header; raises :class:`ImageError`."""
    rasterio = rasterio_for("windows of GeoTIFF files")
    try:
        with rasterio.Env(**SETTINGS), rasterio.open(path, driver="GTiff") as file:
            return file.height, file.width
    except Exception as error:
        # damaged files raise nearly every exception of GDAL's
        raise ImageError("unreadable", f"it is not a readable TIFF file: {error}") from error


def windows_of(path: str, windows: Windows) -> Iterator[Window]:
    """Yield the windows of a TIFF file; none if a single window would hold the file. Raises :class:`ImageError`."""
    height, width = raster_shape(path)
    step = windows.side - windows.overlap
    if (height // step + 1) * (width // step + 1) > _MAX_WINDOWS:
        raise ImageError("too-large", f"{width}x{height} pixels are more than {_MAX_WINDOWS:,} windows; cut it first")
    if height > windows.side or width > windows.side:
        yield from windows.cut(height, width)


def missing_samples(file: Any, numbers: Iterable[int], window: Any = None) -> NDArray[np.bool_] | None:
    """Return (bands, height, width), True for samples of an open file that are nodata or masked; None if none is.

    Transparency (alpha) is no mask: its bands are data.
    """
    from rasterio.enums import MaskFlags

    masks = []
    for number in numbers:
        flags = file.mask_flag_enums[number - 1]
        has_mask = MaskFlags.all_valid not in flags and MaskFlags.alpha not in flags
        masks.append(file.read_masks(number, window=window) == 0 if has_mask else None)
    first = next((mask for mask in masks if mask is not None), None)
    if first is None:
        return None
    missing_mask = np.stack([np.zeros_like(first) if mask is None else mask for mask in masks])
    return missing_mask if missing_mask.any() else None


def read_window(path: str, window: Window, max_bytes: int) -> bytes:
    """Read all bands of one window as the bytes of a ``.npy`` file, (1, bands, height, width); raises ImageError.

    The first axis says that bands come first, whatever the window's shape. If samples are missing, a second array of
    this shape follows, of booleans that are True for these.
    """
    rasterio = rasterio_for("windows of GeoTIFF files")
    from rasterio.windows import Window as RasterWindow

    try:
        with rasterio.Env(**SETTINGS), rasterio.open(path, driver="GTiff") as file:
            if window.row + window.height > file.height or window.column + window.width > file.width:
                raise ImageError("unreadable", f"the file has {file.width}x{file.height} pixels, too few for {window}")
            size = window.height * window.width * sum(np.dtype(name).itemsize for name in file.dtypes)
            if size > max_bytes:
                raise ImageError("too-large", f"the window has {size:,} bytes; at most {max_bytes:,} are read")
            part = RasterWindow(window.column, window.row, window.width, window.height)
            samples = file.read(window=part)
            missing_mask = missing_samples(file, range(1, file.count + 1), part)
    except ImageError:
        raise
    except Exception as error:
        # damaged files raise nearly every exception of GDAL's
        raise ImageError("truncated", f"the TIFF file is cut short or damaged: {error}") from error
    stream = io.BytesIO()
    np.lib.format.write_array(stream, np.ascontiguousarray(samples[None]), version=(1, 0), allow_pickle=False)
    if missing_mask is not None:
        np.lib.format.write_array(stream, missing_mask[None], version=(1, 0), allow_pickle=False)
    return stream.getvalue()
